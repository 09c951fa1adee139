"""TorchScript archives are read without running anything of them."""

import pickle
import zipfile

import pytest
import torch
from torch import nn

from clipfh.core.errors import InputError
from clipfh.models.clip import load_clip
from clipfh.models.torchscript_archive import read_torchscript_tensors


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.BatchNorm2d(2))
        self.head = nn.Linear(3, 2, bias=False).half()
        self.tied = self.head.weight
        self.transposed = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)  # strides of its own
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("input_resolution", torch.tensor(16))
        self.numbers = [1, 2]

    def forward(self, x):
        return self.tower(x)


@pytest.mark.parametrize(
    "compile_module", [torch.jit.script, lambda m: torch.jit.trace(m.eval(), torch.zeros(1, 1, 4, 4))]
)
def test_tensors_are_those_of_the_state_dict(tmp_path, compile_module):
    torch.manual_seed(0)
    torch.jit.save(compile_module(Nested()), tmp_path / "a.pt")
    expected = torch.jit.load(tmp_path / "a.pt").state_dict()
    read = read_torchscript_tensors(tmp_path / "a.pt")
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name


class Writes(nn.Module):
    """Writes a file when `torch.jit.load` restores it."""

    path: str

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return (self.path, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.path = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save([state[1]], state[0])

    def forward(self, x):
        return x * self.weight


def test_nothing_is_run(tmp_path):
    torch.jit.save(torch.jit.script(Writes(str(tmp_path / "written"))), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt"):
        load_clip("tiny-vit", str(tmp_path / "a.pt"))
    assert not (tmp_path / "written").exists()
    torch.jit.load(tmp_path / "a.pt")
    assert (tmp_path / "written").exists()  # else this proves nothing


class Payload:
    def __init__(self, function, argument):
        self.called = function, (argument,)

    def __reduce__(self):
        return self.called


def test_names_that_are_no_tensors_are_refused(tmp_path, capsys):
    for function, argument in ((print, "ran"), (eval, "print('ran')"), (torch.load, "x"), (getattr, "x")):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/constants.pkl", b"")
            archive.writestr("a/data.pkl", pickle.dumps(Payload(function, argument), protocol=2))
        with pytest.raises(pickle.UnpicklingError, match=function.__name__):
            read_torchscript_tensors(tmp_path / "a.pt")
        with pytest.raises(InputError, match=rf"a\.pt.*{function.__name__}"):
            load_clip("tiny-vit", str(tmp_path / "a.pt"))
    assert "ran" not in capsys.readouterr().out


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(4, 4)), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as good, zipfile.ZipFile(tmp_path / "b.pt", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            bad.writestr(name, content[:8] if "/data/" in name else content)
    with pytest.raises(RuntimeError, match="out of bounds"):
        read_torchscript_tensors(tmp_path / "b.pt")

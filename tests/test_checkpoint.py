import os
import pickle

import pytest
import torch

from clipfh import checkpoint
from clipfh.checkpoint import (
    newest_checkpoint,
    read_checkpoint,
    require_training_state,
    weights_digest,
    write_checkpoint,
)
from clipfh.errors import InputError


def test_a_checkpoint_survives_the_file(tmp_path):
    content = {"model": "tiny-rn", "mean": (0.1, 0.2), "none": None, "state_dict": {"w": torch.arange(6.0).view(2, 3)}}
    write_checkpoint(tmp_path / "new" / "a.pth", content)
    loaded = read_checkpoint(tmp_path / "new" / "a.pth")
    assert torch.equal(loaded["state_dict"].pop("w"), content["state_dict"].pop("w"))
    assert loaded == content
    assert os.listdir(tmp_path / "new") == ["a.pth"]


def test_a_failing_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "a.pth", {"epoch": 1})

    def fail(content, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path / "a.pth", {"epoch": 2})
    assert read_checkpoint(tmp_path / "a.pth") == {"epoch": 1}
    assert os.listdir(tmp_path) == ["a.pth"]


def test_a_checkpoint_may_be_replaced_while_its_tensors_are_in_use(tmp_path):
    path = tmp_path / "a.pth"
    write_checkpoint(path, {"w": torch.ones(1000)})
    in_use = read_checkpoint(path)["w"]
    write_checkpoint(path, {"w": torch.zeros(1000)})
    assert in_use.sum() == 1000 and read_checkpoint(path)["w"].sum() == 0


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickled_objects_are_refused_and_not_executed(tmp_path, capsys):
    torch.save({"model": Payload()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth is not a file of plain tensors and values; it is not loaded"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match=r"b.pth"):
        read_checkpoint(tmp_path / "b.pth")
    assert capsys.readouterr().out == ""


def test_missing_damaged_and_other_files(tmp_path):
    with pytest.raises(InputError, match=r"a.pth does not exist"):
        read_checkpoint(tmp_path / "a.pth")
    write_checkpoint(tmp_path / "a.pth", {"w": torch.ones(5000)})
    whole = (tmp_path / "a.pth").read_bytes()
    for content in (whole[:5000], b"", b"text", whole[:-1]):
        (tmp_path / "b.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"b.pth"):
            read_checkpoint(tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"c.pth is not a dictionary of tensors"):
        read_checkpoint(tmp_path / "c.pth")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "stage_dir", lambda stage: tmp_path / f"stage{stage}")
    return tmp_path / "stage2" / "checkpoints"


def test_newest_checkpoint_goes_by_recorded_values_then_by_time(folder):
    for age, (name, dataset, variant) in enumerate(
        [("c_BEST", "hands", "v1"), ("b_BEST", "hands", "v4"), ("a_BEST", "cars", "v4"), ("d_LAST", "hands", "v1")]
    ):
        path = folder / f"{name}.pth"
        write_checkpoint(path, {"dataset": dataset, "variant": variant, "w": torch.ones(2)})
        os.utime(path, (1000 + age, 1000 + age))

    def newest(**recorded):
        return newest_checkpoint(2, "*_BEST.pth", made_by="python train.py", **recorded).name

    assert newest() == "a_BEST.pth"
    assert newest(dataset="hands") == "b_BEST.pth"
    assert newest(dataset="hands", variant="v1") == "c_BEST.pth"
    os.utime(folder / "c_BEST.pth", (5000, 5000))
    assert newest(dataset="hands") == "c_BEST.pth"
    with pytest.raises(InputError, match=r"no checkpoint \*_BEST.pth with dataset mugs in .*python train.py"):
        newest(dataset="mugs")
    with pytest.raises(InputError, match="no checkpoint"):
        newest(seed=0)  # one that doesn't record it doesn't count


def test_newest_checkpoint_without_a_folder(folder):
    with pytest.raises(InputError, match=r"Make one with: python train.py"):
        newest_checkpoint(2, "*.pth", made_by="python train.py", model="tiny-rn")


def test_training_state_is_of_the_same_stage_and_model(tmp_path):
    content = {"stage": 2, "model": "tiny-rn", "training": {"epoch": 3}}
    path = tmp_path / "a.pth"
    assert require_training_state(content, path, "tiny-rn", 2) == {"epoch": 3}
    with pytest.raises(InputError, match=r"a.pth is of stage 2 and model tiny-rn; this run is stage 3 with tiny-rn"):
        require_training_state(content, path, "tiny-rn", 3)
    with pytest.raises(InputError, match="this run is stage 2 with tiny-vit"):
        require_training_state(content, path, "tiny-vit", 2)
    del content["training"]
    with pytest.raises(InputError, match=r"holds weights only; resume from the _LAST checkpoint"):
        require_training_state(content, path, "tiny-rn", 2)


def test_a_digest_tells_the_last_bit_of_parameters_and_buffers_apart():
    model = torch.nn.BatchNorm1d(3)
    digest = weights_digest(model.state_dict())
    assert weights_digest(torch.nn.BatchNorm1d(3).state_dict()) == digest
    model.running_mean[1] = torch.nextafter(model.running_mean[1], torch.tensor(1.0))
    changed = weights_digest(model.state_dict())
    assert changed != digest
    with torch.no_grad():
        model.weight[0] += 2**-20
    assert weights_digest(model.state_dict()) not in (digest, changed)
    assert weights_digest(torch.nn.Linear(2, 2).to(memory_format=torch.channels_last).state_dict()) != digest

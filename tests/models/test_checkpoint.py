import os
import pickle

import pytest
import torch

from clipfh.core.errors import InputError
from clipfh.models import checkpoint
from clipfh.models.checkpoint import (
    newest_checkpoint,
    read_checkpoint,
    read_stage_checkpoint,
    require_training_state,
    weights_digest,
    write_checkpoint,
)


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
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=r"cannot write .*unexpected pos 64 vs 0"):
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


def test_newest_checkpoint_takes_no_fold_for_the_dataset(folder):
    def newest(**recorded):
        return newest_checkpoint(2, "*_BEST.pth", made_by="python train.py", dataset="hands", **recorded).name

    write_checkpoint(folder / "fold_BEST.pth", {"dataset": "hands", "data_digest": "5f", "val_fold": [0, 3]})
    for digest in ({}, {"data_digest": None}, {"data_digest": "5a"}):  # the fold is all that there is
        with pytest.raises(InputError, match=r"with dataset hands in .*passed over 1 of --val_fold.*python train.py"):
            newest(**digest)
    assert newest(data_digest="5f") == "fold_BEST.pth"  # as stage 3 of the same fold asks
    write_checkpoint(folder / "older_BEST.pth", {"dataset": "hands", "data_digest": "5b"})
    os.utime(folder / "older_BEST.pth", (1000, 1000))
    assert newest() == newest(data_digest="5a") == "older_BEST.pth"
    assert newest(data_digest="5f") == "fold_BEST.pth"


def test_newest_checkpoint_without_a_folder(folder):
    with pytest.raises(InputError, match=r"Make one with: python train.py"):
        newest_checkpoint(2, "*.pth", made_by="python train.py", model="tiny-rn")


def test_training_state_is_of_the_same_stage_and_model(tmp_path):
    kinds = ("modules", "optimizers", "scheduler", "sampler", "random", "best", "flags")
    state = {**{kind: {} for kind in kinds}, "epoch": 3, "step": 9}
    content = {"stage": 2, "model": "tiny-rn", "dataset": "mugs", "data_digest": "5a", "training": state}
    path = tmp_path / "a.pth"
    assert require_training_state(content, path, "tiny-rn", "5a") == state
    for kind in state:
        with pytest.raises(InputError, match=rf"what continues the run is damaged \({kind}\)"):
            require_training_state({**content, "training": {**state, kind: None}}, path, "tiny-rn", "5a")
    with pytest.raises(InputError, match=r"a.pth was trained on other photos or splits of mugs"):
        require_training_state(content, path, "tiny-rn", "5b")
    with pytest.raises(InputError, match="this run is of tiny-vit"):
        require_training_state(content, path, "tiny-vit", "5a")
    del content["training"]
    with pytest.raises(InputError, match=r"holds weights only; resume from the _LAST checkpoint"):
        require_training_state(content, path, "tiny-rn", "5a")


GOOD = {
    "stage": 2, "model": "tiny-rn", "dataset": "mugs", "variant": "triplet+center", "epoch": 3, "val_mAP": 0.5,
    "image_size": 64, "resize_mode": "shortest", "mean": (0.1, 0.2, 0.3), "std": [1.0, 1.0, 1.0], "quick_gelu": False,
    "data_digest": "5a", "seen_identities": {"5a": ["p01", "p02"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stage", "2"), ("stage", True), ("stage", -1), ("model", None), ("model", ["tiny-rn"]), ("model", "a\nb"),
        ("dataset", "../x"), ("dataset", "a/b"), ("dataset", ""), ("dataset", 3), ("dataset", "x" * 101),
        ("variant", "\x1b[31m"), ("variant", {}), ("epoch", "3"), ("epoch", 10**400), ("val_mAP", float("nan")),
        ("val_mAP", "high"), ("val_mean_mAP", "high"), ("image_size", 64.5), ("image_size", -3), ("mean", "abc"),
        ("mean", (1, 2)),
        ("std", (1, 2, None)), ("quick_gelu", "yes"), ("training", [1]), ("training", None), ("run", "../x"),
        ("seen_identities", "p01"), ("seen_identities", {"5a": [1]}), ("seen_identities", ["p01"]), ("data_digest", 7),
        ("val_fold", "0/3"), ("val_fold", [0]),
    ],
)  # fmt: skip
def test_what_a_checkpoint_records_has_its_type(tmp_path, key, value):
    write_checkpoint(tmp_path / "a.pth", {**GOOD, "state_dict": {}, key: value})
    with pytest.raises(InputError, match=rf"a.pth: {key} is ") as refused:
        read_checkpoint(tmp_path / "a.pth")
    assert str(refused.value).isprintable() and len(str(refused.value)) - len(str(tmp_path)) < 200


@pytest.mark.parametrize("absent", sorted(GOOD.keys() - {"stage", "resize_mode", "quick_gelu", "val_mAP"}))
def test_a_checkpoint_of_a_stage_records_all(tmp_path, absent):
    content = {**GOOD, "state_dict": {}}
    write_checkpoint(tmp_path / "a.pth", content)
    assert read_stage_checkpoint(tmp_path / "a.pth", 2) == content
    with pytest.raises(InputError, match=r"a.pth is of stage 2, not of stage 3"):
        read_stage_checkpoint(tmp_path / "a.pth", 3)
    del content[absent]
    write_checkpoint(tmp_path / "a.pth", content)
    with pytest.raises(InputError, match=f"a.pth lacks {absent}"):
        read_stage_checkpoint(tmp_path / "a.pth", 2)


def test_weights_of_others_may_name_things_as_they_like(tmp_path):
    content = {"model": {"w": torch.ones(2)}, "epoch": "last", "dataset": "/data/x"}
    write_checkpoint(tmp_path / "a.pth", content)
    assert read_checkpoint(tmp_path / "a.pth").keys() == content.keys()


def test_a_named_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"a.pth is no regular file"):
        read_checkpoint(tmp_path / "a.pth")


def test_newest_checkpoint_passes_over_damaged_files(folder, capsys):
    write_checkpoint(folder / "a_BEST.pth", {"stage": 2, "dataset": "mugs"})
    (folder / "b_BEST.pth").write_bytes(b"half")
    assert newest_checkpoint(2, "*_BEST.pth", made_by="python train.py", dataset="mugs").name == "a_BEST.pth"
    assert "note: passed over" in capsys.readouterr().out


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


def test_a_photo_is_said_to_be_no_checkpoint(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(1000))
    with pytest.raises(InputError, match=r"photo.jpg is no checkpoint: it is not in the format that torch.save"):
        read_checkpoint(tmp_path / "photo.jpg")

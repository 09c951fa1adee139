"""What is FAISS's alone: generations, tombstones, exactness at a size where lists and graphs have something to miss."""

import numpy as np
import pytest
from saved_features import model, save, unit_rows

pytest.importorskip("faiss", reason="the extra `scale` is not installed")

from clipfh.core.errors import InputError
from clipfh.index.faiss_folder import FaissFolder

COUNT = 3000
IDS = [str(number) for number in range(COUNT)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    features = unit_rows(COUNT)
    return save(tmp_path_factory.mktemp("features"), IDS, features, shards=4), features


def ids_of(matches):
    return [match.id for match in matches]


def test_flat_is_exact(many, tmp_path):
    index = FaissFolder(tmp_path)
    index.create(many[0], "flat")
    query = unit_rows(20, seed=1)
    expected = np.argsort(-query @ many[1].T, axis=1)[:, :10]
    found = index.search(model(), query, 10)
    assert [list(map(int, ids_of(matches))) for matches in found] == expected.tolist()


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_what_looks_at_a_part_finds_nearly_all(many, tmp_path, kind):
    index = FaissFolder(tmp_path)
    index.create(many[0], kind)
    query = unit_rows(50, seed=1)
    expected = np.argsort(-query @ many[1].T, axis=1)[:, :10]
    found = index.search(model(), query, 10)
    recall = np.mean([len(set(map(int, ids_of(m))) & set(row)) / 10 for m, row in zip(found, expected, strict=True)])
    assert recall > (0.6 if kind == "ivf" else 0.95)  # rows at random have no clusters: the worst case of an IVF
    assert all(np.diff([match.similarity for match in matches]).max() <= 0 for matches in found)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_narrow_filter_is_exact(many, tmp_path, kind):
    index = FaissFolder(tmp_path)
    index.create(many[0], kind)
    rest = [photo for photo in IDS if int(photo) % 3 == 0 and int(photo) > 600]
    index.delete(rest)  # 201 of camera 0 are left
    query = unit_rows(1, seed=1)
    of_camera = [int(photo) for photo in IDS if int(photo) % 3 == 0 and int(photo) <= 600]
    order = np.array(of_camera)[np.argsort(-(query @ many[1][of_camera].T)[0])]
    assert list(map(int, ids_of(index.search(model(), query, 20, camera="0")[0]))) == order[:20].tolist()


def test_deleted_rows_of_a_graph_stay_until_they_are_a_fifth(many, tmp_path):
    index = FaissFolder(tmp_path)
    index.create(many[0], "hnsw")
    index.delete(IDS[:500])
    assert index.info()["deleted, still in the graph"] == 500
    index.delete(IDS[500:700])
    for reader in (index, FaissFolder(tmp_path)):
        assert reader.info()["deleted, still in the graph"] == 0
        assert reader.info()["count"] == COUNT - 700
        assert ids_of(reader.search(model(), many[1][[800]], 1)[0]) == ["800"]
        assert ids_of(reader.search(model(), many[1][[3]], 1)[0]) != ["3"]


def test_one_generation_is_left_and_a_kill_before_the_switch_leaves_the_old(many, tmp_path, monkeypatch):
    index = FaissFolder(tmp_path)
    index.create(many[0], "flat")
    assert index.delete(["5"]) == 1
    assert [path.name for path in tmp_path.glob("generation_*")] == ["generation_00002"]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("clipfh.index.faiss_folder.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            index.delete(["6"])
    assert index.info()["count"] == FaissFolder(tmp_path).info()["count"] == COUNT - 1
    assert index.delete(["6"]) == 1
    assert [path.name for path in tmp_path.glob("generation_*")] == ["generation_00004"]


def test_two_writers_at_once_are_refused(many, tmp_path):
    index = FaissFolder(tmp_path)
    index.create(many[0], "flat")
    with index._writing(), pytest.raises(InputError, match="another process is changing"):
        FaissFolder(tmp_path).delete(["1"])


def test_a_change_while_an_index_is_read_is_no_damage(many, tmp_path, monkeypatch):
    writer = FaissFolder(tmp_path)
    writer.create(many[0], "flat")
    reader = FaissFolder(tmp_path)
    read_index, changes = reader.faiss.read_index, ["7"]

    def changed_meanwhile(file):
        index = read_index(file)
        if changes:
            writer.delete([changes.pop()])  # deletes what the reader has begun to read
        return index

    monkeypatch.setattr(reader.faiss, "read_index", changed_meanwhile)
    assert reader.info()["count"] == COUNT - 1


def test_a_change_of_what_is_no_index_leaves_nothing_there(many, tmp_path):
    (tmp_path / "photos").mkdir()
    for folder in (tmp_path / "photos", tmp_path / "absent"):
        for change in (lambda index: index.add(many[0]), lambda index: index.delete(["a"])):
            with pytest.raises(InputError, match="there is no index"):
                change(FaissFolder(folder))
    assert not any((tmp_path / "photos").iterdir()) and not (tmp_path / "absent").exists()


def test_a_damaged_generation_is_said(many, tmp_path):
    index = FaissFolder(tmp_path)
    index.create(many[0], "flat")
    file = tmp_path / "generation_00001" / "index.faiss"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"is damaged .*clipfh\.index build"):
        FaissFolder(tmp_path).info()

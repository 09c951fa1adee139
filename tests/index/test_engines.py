"""What both engines promise, by the same tests; what is FAISS's alone is in test_faiss_folder.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from saved_features import DIMENSION, model, save, unit_rows

from clipfh.core.errors import InputError
from clipfh.index.engine import KINDS, open_engine

COUNT = 60
IDS = [f"folder/{number}.jpg" for number in range(COUNT)]
BUILD = """
import sys
from pathlib import Path
from clipfh.index.engine import open_engine
from clipfh.index.shards import SavedFeatures
open_engine(sys.argv[1]).create(SavedFeatures(Path(sys.argv[2])), sys.argv[3])
"""


@pytest.fixture(params=["faiss", "milvus"])
def uri(request, tmp_path):
    package = {"faiss": "faiss", "milvus": "milvus_lite"}[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} of the extra `scale` is not installed")
    return str(tmp_path / {"faiss": "index", "milvus": "index.db"}[request.param])


@pytest.fixture
def opened(uri):
    """Opens the index anew; a file of Milvus takes one connection at a time."""
    engines = []

    def reopen():
        for engine in engines:
            close(engine)
        engines.append(open_engine(uri))
        return engines[-1]

    yield reopen
    for engine in engines:
        close(engine)


def close(engine):
    if hasattr(engine, "close"):
        engine.close()


def ids_of(matches):
    return [match.id for match in matches]


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_are_found_with_their_facts(opened, tmp_path, kind):
    features = unit_rows(COUNT)
    engine = opened()
    engine.create(save(tmp_path / "features", IDS, features, shards=3), kind)
    query = unit_rows(4, seed=1)
    expected = np.argsort(-query @ features.T, axis=1)[:, :5]
    found = opened().search(model(), query, 5)
    assert [ids_of(matches) for matches in found] == [[IDS[place] for place in row] for row in expected]
    assert found[0][0].item_id == f"item {found[0][0].id}"
    similarities = [[match.similarity for match in matches] for matches in found]
    np.testing.assert_allclose(similarities, -np.sort(-query @ features.T, axis=1)[:, :5], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_more_than_there_are_is_all_there_are(opened, tmp_path, kind):
    engine = opened()
    engine.create(save(tmp_path / "features", IDS, unit_rows(COUNT)), kind)
    assert sorted(ids_of(engine.search(model(), unit_rows(1, seed=1), 1000)[0])) == sorted(IDS)


@pytest.mark.parametrize("kind", KINDS)
def test_filters_hold_before_the_nearest_are_taken(opened, tmp_path, kind):
    features = unit_rows(COUNT)
    engine = opened()
    engine.create(save(tmp_path / "features", IDS, features), kind)
    query = unit_rows(1, seed=1)
    order = np.argsort(-(query @ features.T)[0])
    of_camera = [IDS[place] for place in order if place % 3 == 1]
    assert ids_of(engine.search(model(), query, 8, camera="1")[0]) == of_camera[:8]
    of_both = [IDS[place] for place in order if place % 3 == 1 and place % 2 == 1]
    assert ids_of(engine.search(model(), query, 50, camera="1", category='a "mug"')[0]) == of_both
    assert ids_of(engine.search(model(), query, 2, category="it's")[0]) == [IDS[p] for p in order if p % 2 == 0][:2]
    assert engine.search(model(), query, 8, camera="none") == [[]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_filter_leaves_is_found_also_far_from_the_query(opened, uri, tmp_path, kind):
    clusters, count = 5, 6000
    centers, of_row = unit_rows(clusters), np.arange(count) % clusters
    features = centers[of_row] + unit_rows(count, seed=1)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    save(tmp_path / "features", list(map(str, range(count))), features, categories=list(map(str, of_row)))
    # in another process: of rows that it has just been given, Milvus Lite makes no index before it ends
    subprocess.run([sys.executable, "-c", BUILD, uri, tmp_path / "features", kind], check=True)
    query = unit_rows(20, seed=2) + centers[1]  # near one cluster, and looked for in another
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    rows = np.flatnonzero(of_row == 2)
    expected = rows[np.argsort(-query @ features[rows].T, axis=1)[:, :10]]
    found = opened().search(model(), query, 10, category="2")
    assert [list(map(int, ids_of(matches))) for matches in found] == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_added_rows_replace_those_of_their_ids(opened, tmp_path, kind):
    features = unit_rows(COUNT)
    opened().create(save(tmp_path / "features", IDS, features), kind)
    moved = unit_rows(2, seed=2)
    engine = opened()
    assert engine.add(save(tmp_path / "more", [IDS[7], "new.jpg"], moved)) == 1
    for reader in (engine, opened()):
        assert ids_of(reader.search(model(), moved, 1)[0]) == [IDS[7]]
        assert ids_of(reader.search(model(), moved, 1)[1]) == ["new.jpg"]
        assert ids_of(reader.search(model(), features[7:8], COUNT + 1)[0]).count(IDS[7]) == 1
        assert reader.info()["count"] == COUNT + 1


@pytest.mark.parametrize("kind", KINDS)
def test_deleted_rows_are_not_found(opened, tmp_path, kind):
    features = unit_rows(COUNT)
    engine = opened()
    engine.create(save(tmp_path / "features", IDS, features), kind)
    assert engine.delete([IDS[3], IDS[4], "unknown"]) == 2
    for reader in (engine, opened()):
        found = ids_of(reader.search(model(), features[3:4], COUNT)[0])
        assert sorted(found) == sorted(set(IDS) - {IDS[3], IDS[4]})
        assert reader.info()["count"] == COUNT - 2


def test_another_model_is_refused_by_both_digests(opened, tmp_path):
    engine = opened()
    engine.create(save(tmp_path / "features", IDS, unit_rows(COUNT)), "flat")
    other = save(tmp_path / "other", ["x.jpg"], unit_rows(1), weights="b" * 64)
    for refused in (lambda: engine.add(other), lambda: engine.search(model("b" * 64), unit_rows(1), 1)):
        with pytest.raises(InputError, match=r"weights b{12} \(tiny-vit\), not by a{12}"):
            refused()
    with pytest.raises(InputError, match="image_size 32, not by 64"):
        engine.search({**model(), "image_size": 32}, unit_rows(1), 1)
    assert engine.info()["count"] == COUNT


def test_a_build_replaces_what_was_there_also_of_another_model(opened, tmp_path):
    engine = opened()
    engine.create(save(tmp_path / "features", IDS, unit_rows(COUNT)), "flat")
    engine.create(save(tmp_path / "other", IDS[:5], unit_rows(5), weights="b" * 64), "hnsw")
    facts = opened().info()
    assert (facts["count"], facts["kind"], facts["weights"]) == (5, "hnsw", "b" * 64)
    assert facts["dimension"] == DIMENSION and facts["bytes"] > 0


def test_a_killed_build_leaves_the_old_index(opened, tmp_path):
    features = unit_rows(COUNT)
    engine = opened()
    engine.create(save(tmp_path / "features", IDS, features), "flat")
    broken = save(tmp_path / "broken", IDS, unit_rows(COUNT, seed=3), shards=3)
    (tmp_path / "broken" / "features_00002.parquet").unlink()
    with pytest.raises(InputError, match=r"features_00002\.parquet cannot be read"):
        engine.create(broken, "flat")
    for reader in (engine, opened()):
        assert ids_of(reader.search(model(), features[9:10], 1)[0]) == [IDS[9]]
        assert reader.info()["count"] == COUNT
    reader.create(save(tmp_path / "whole", IDS[:4], unit_rows(4)), "flat")
    assert reader.info()["count"] == 4


def test_what_is_not_there_is_said_with_the_command_that_makes_it(opened):
    for use in (lambda: opened().info(), lambda: opened().delete(["a"])):
        with pytest.raises(InputError, match=r"there is no index .*clipfh\.index build"):
            use()


def test_nothing_is_written_into_a_folder_that_is_no_index(opened, uri, tmp_path):
    features = save(tmp_path / "features", IDS, unit_rows(COUNT))
    Path(uri).mkdir()
    (Path(uri) / "mine.jpg").write_text("mine")
    with pytest.raises(InputError, match=r"is no index and not empty.*Choose another"):
        opened().create(features, "flat")
    assert [path.name for path in Path(uri).iterdir()] == ["mine.jpg"]
    (Path(uri) / "mine.jpg").unlink()
    opened().create(features, "flat")  # an empty one may be filled
    opened().create(features, "flat")


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_categories_are_listed_up_to_a_limit(opened, tmp_path, kind):
    opened().create(save(tmp_path / "features", IDS, unit_rows(COUNT)), kind)
    assert opened().categories(10) == ['a "mug"', "it's"]
    assert opened().categories(2) == ['a "mug"', "it's"]
    assert len(opened().categories(1)) == 1


def test_what_an_index_was_built_of_is_known_when_more_is_added(opened, tmp_path):
    features = save(tmp_path / "features", IDS, unit_rows(COUNT))
    opened().create(features, "flat")
    opened().add(save(tmp_path / "more", ["new.jpg"], unit_rows(1)))
    origin = opened().origin()
    assert (origin.model, origin.image_dir) == (model(), "/photos") and features.image_dir == "/photos"

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from clipfh.core.cli import parse_config
from clipfh.core.errors import InputError
from clipfh.core.files import write_json
from clipfh.datasets import folder as folder_dataset
from clipfh.evaluation import evaluate as evaluation
from clipfh.evaluation import measure
from clipfh.evaluation.data import require_matches
from clipfh.evaluation.evaluate import evaluate_checkpoint, evaluate_clip
from clipfh.evaluation.settings import CheckpointConfig, EvaluationConfig, EvaluationLabels
from clipfh.features.extraction import extract_features
from clipfh.images.pixels import load_pixels
from clipfh.metrics.reranking import KReciprocal, QueryExpansion
from clipfh.metrics.text_fusion import TextFusion
from clipfh.models.checkpoint import write_checkpoint
from clipfh.models.clip import encode_texts, load_clip
from clipfh.prompts.files import write_prompts
from clipfh.reports.summary import read_summary
from clipfh.tables.prepared import SPLITS, TOKEN_SAFE_PROMPTS, PreparedDataset, load_prepared
from clipfh.tables.records import read_image_meta, write_image_meta
from clipfh.tables.splits import official_split, random_query_gallery_splits

CPU = torch.device("cpu")
LABELS = EvaluationLabels(1, "", "random")
NUM_IDENTITIES, IMAGES_EACH = 8, 15  # half of the identities are test: 4 x 7 queries, 4 x 8 gallery images


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return load_clip("tiny-rn", "random", image_size=32)


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Squares of similar colours an identity, prepared as by the numbered scripts; gives the flags to evaluate it."""
    generator = np.random.default_rng(0)
    photos, metadata = tmp_path / "photos", tmp_path / "metadata"
    for identity in range(NUM_IDENTITIES):
        (photos / f"square{identity}").mkdir(parents=True)
        color = generator.integers(0, 256, 3)
        for number in range(IMAGES_EACH):
            pixels = np.clip(color + generator.normal(0, 60, 3) + generator.normal(0, 20, (36, 40, 3)), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(pixels).save(photos / f"square{identity}" / f"{number}.png")
    data = folder_dataset.read(photos)
    write_image_meta(metadata / "image_paths.json", data.table)
    write_json(metadata / "dataset.json", {"image_dir": str(photos), "exclude_same_camera": False})
    write_prompts(metadata / TOKEN_SAFE_PROMPTS, {name: f"a {name}" for name in set(data.table["item_id"])})
    random = random_query_gallery_splits(data.table, seed=0, protocol=data.random_protocol)
    write_json(metadata / SPLITS, {"official": official_split(data.table), "random": random})
    monkeypatch.setattr(evaluation, "processed_dir", lambda name: tmp_path / "processed" / name)
    monkeypatch.chdir(tmp_path)  # a relative folder, as users give it
    return EvaluationConfig(dataset="squares", metadata_dir=metadata, results_dir=Path("results"), device="cpu")


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes most of the time."""
    for name in ("draw_figures", "draw_saliency"):
        monkeypatch.setattr(evaluation, name, lambda *_: [])
    monkeypatch.setattr(evaluation, "draw_map", lambda *_: ([], []))


def evaluate(clip, config):
    result = evaluate_clip(clip, evaluation.load_dataset(config), LABELS, CPU, config)
    (run_dir,) = [path for path in config.results_dir.iterdir() if path.is_dir()]
    return result, run_dir


def test_every_file_of_an_evaluation(clip, dataset, capsys):
    result, run_dir = evaluate(clip, dataset)
    summary = read_summary(dataset.results_dir / "summary.csv")
    assert summary["protocol"].tolist() == ["official", *["random"] * 10, "text_to_image"]
    assert summary["split"].fillna(-1).tolist() == [-1, *range(10), -1]
    assert set(summary["dataset"]) == {"squares"} and set(summary["model"]) == {"tiny-rn"}
    assert summary["num_query"].tolist() == [28] * 11 + [4] and set(summary["num_gallery"]) == {32}
    assert summary["time"].nunique() == 1 and summary[["rank1", "mAP"]].stack().between(0, 1).all()
    assert summary["mAP"].iloc[1:11].nunique() > 1  # the random splits differ

    written = json.loads((run_dir / "metrics.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert written["official"]["mAP"] == pytest.approx(summary["mAP"].iloc[0], abs=1e-6)
    assert written["official"]["mAP_interval95"] is None and written["official"]["rank1_interval95"] is None
    assert "no bootstrap intervals: resampling fewer than 10 identities" in (run_dir / "report.html").read_text()
    assert len(written["random"]) == 10 and written["images_left_out"] == 0
    assert written["text_to_image"]["num_query"] == 4
    assert written["checkpoint"] == written["first_weights"] == "random"

    names = {path.name for path in run_dir.iterdir()}
    assert names == {
        *("metrics.json", "per_query.csv", "rankings.csv", "report.html"),
        *("best_queries.png", "worst_queries.png", "text_queries.png", "map.png", "map_photos.jpg"),
        *("similarity.png", "saliency.png"),
    }
    split = json.loads((dataset.metadata_dir / SPLITS).read_text())["official"]
    assert set(summary["run"]) == {run_dir.name} and set(summary["seed"]) == set(summary["recipe"]) == {""}
    per_query = pd.read_csv(run_dir / "per_query.csv")
    images, prompts = (per_query[per_query["protocol"] == name] for name in ("official", "text_to_image"))
    assert len(images) + len(prompts) == len(per_query) and images["query"].tolist() == split["query"]
    assert images["average_precision"].mean() == pytest.approx(written["official"]["mAP"])
    assert (images["first_match_rank"] == 1).mean() == pytest.approx(written["official"]["rank1"])
    assert prompts["average_precision"].mean() == pytest.approx(written["text_to_image"]["mAP"])
    assert prompts["query"].tolist() == [f"a {item_id}" for item_id in prompts["item_id"]]
    ids = read_image_meta(dataset.metadata_dir / "image_paths.json").set_index("image")["item_id"]
    assert images["item_id"].tolist() == ids[split["query"]].tolist()

    rankings = pd.read_csv(run_dir / "rankings.csv")
    assert rankings["query"].unique().tolist() == split["query"]
    for _, ranking in rankings.groupby("query"):
        assert ranking["rank"].tolist() == list(range(1, 33))
        assert set(ranking["image"]) == set(split["gallery"])
        assert ranking["similarity"].is_monotonic_decreasing
    assert (rankings["is_match"] == (rankings["query_item_id"] == rankings["item_id"])).all()
    first = rankings[rankings["rank"] == 1]
    assert first["is_match"].mean() == pytest.approx(written["official"]["rank1"])
    clusters = written["clustering"]
    assert clusters["num_clusters"] == 4 and clusters["num_images"] == 60
    assert 0 < clusters["NMI"] < 1 and -0.5 < clusters["ARI"] < 1
    page = (run_dir / "report.html").read_text()
    assert f"<td>{100 * clusters['NMI']:.1f}</td><td>{100 * clusters['ARI']:.1f}</td>" in page and "map.png" in page
    printed = capsys.readouterr().out
    assert f"4 clusters of 60 images: NMI {100 * clusters['NMI']:.1f}, ARI" in printed
    assert "official split" in printed and "10 random splits" in printed and "text to image" in printed
    assert "left out" not in printed


def test_clusters_and_map_are_left_out_on_request(clip, dataset, capsys):
    result, run_dir = evaluate(clip, replace(dataset, clustering=False))
    assert result["clustering"] is None and not (run_dir / "map.png").exists()
    assert "NMI" not in capsys.readouterr().out + (run_dir / "report.html").read_text()


def test_what_stands_behind_the_figures_is_measured_and_shown(clip, dataset, monkeypatch):
    monkeypatch.setattr(measure, "FEWEST_IDENTITIES", 4)
    labels = replace(LABELS, interpolation={0.0: 0.3, 0.5: 0.6, 1.0: 0.4})
    config = replace(dataset, clustering=False, saliency=False)
    result = evaluate_clip(clip, evaluation.load_dataset(config), labels, CPU, config)
    (run_dir,) = [path for path in config.results_dir.iterdir() if path.is_dir()]
    details, official = result["details"], result["official"]
    assert sum(details["similarity"]["matches"]) == 28 * 8 and sum(details["similarity"]["others"]) == 28 * 24
    (group,) = details["by_gallery_photos"]
    assert (group["name"], group["num_query"]) == ("5 to 8", 28)
    assert group["rank1"] == pytest.approx(official["rank1"]) and group["mAP"] == pytest.approx(official["mAP"])
    wrong = round(28 * (1 - official["rank1"]))
    assert wrong and sum(pair["num_query"] for pair in details["confused"]) == wrong  # of 4 identities, 6 pairs
    page = (run_dir / "report.html").read_text()
    low, high = official["mAP_interval95"]
    assert f"mAP {100 * low:.1f} to {100 * high:.1f}" in page
    for name in ("similarity.png", "interpolation.png"):
        assert (run_dir / name).is_file() and f'src="{name}"' in page
    for item_id, prompt in zip(details["confused"][0]["item_ids"], details["confused"][0]["prompts"], strict=True):
        assert prompt == f"a {item_id}" and f"<p>{prompt}</p>" in page


def test_the_index_is_written_or_says_why_not(clip, dataset, without_figures, capsys):
    _, run_dir = evaluate(clip, dataset)
    index = dataset.results_dir / "index.html"
    assert f'href="{run_dir.name}/report.html"' in index.read_text()
    index.unlink()
    summary = dataset.results_dir / "summary.csv"
    summary.write_text(summary.read_text() + "half a line\n")
    evaluate_clip(clip, evaluation.load_dataset(dataset), LABELS, CPU, dataset)
    told = " ".join(capsys.readouterr().out.split())
    assert "index.html is not written: " in told and "line 14: 1 cells instead of" in told and not index.exists()


def test_pictures_on_request(clip, dataset, capsys):
    """The map's page part is there without saliency; the projector's files are there when asked for."""
    _, run_dir = evaluate(clip, replace(dataset, saliency=False, projector=True))
    page = (run_dir / "report.html").read_text()
    assert not (run_dir / "saliency.png").exists() and "saliency" not in page.split("Configuration")[0]
    assert '<canvas id="map"' in page and "By gallery photos" in page and "Identities mixed up most" in page
    assert "By category" not in page  # folders are the identities
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "tensorboard --logdir" in line]
    (metadata,) = (run_dir / "projector").rglob("metadata.tsv")
    rows = metadata.read_text().splitlines()
    assert len(rows) == 61 and rows[0] == "item_id\timage" and told.endswith("projector")
    (vectors,) = (run_dir / "projector").rglob("tensors.tsv")
    assert len(vectors.read_text().splitlines()) == 60
    assert list((run_dir / "projector").rglob("sprite.png"))


def test_a_second_evaluation_reuses_the_features_until_an_image_changes(
    clip, dataset, tmp_path, capsys, without_figures
):
    results = []
    for number in range(3):
        config = replace(dataset, results_dir=Path(f"results{number}"))
        if number == 2:
            split = json.loads((dataset.metadata_dir / SPLITS).read_text())["official"]
            Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "photos" / split["query"][0])
        results.append(evaluate(clip, config)[0])
        assert ("features: reused" in capsys.readouterr().out) == (number == 1)
    assert all(results[0][name] == results[1][name] for name in ("official", "random", "text_to_image"))
    assert results[2]["official"] != results[0]["official"]
    assert len(list((tmp_path / "processed" / "squares" / "test" / "features").iterdir())) == 2
    assert results[0]["configuration"]["batch_size"] == dataset.batch_size


PARAMETERS = {
    "k_reciprocal": {"rerank_k1": 9, "rerank_k2": 3, "rerank_lambda": 0.2},
    "aqe": {"aqe_n": 4, "aqe_alpha": 2.0},
    "text_fusion": {"text_weight": 0.25},
}


@pytest.mark.parametrize("method", PARAMETERS)
def test_re_ranked_figures_have_a_row_a_line_and_an_entry_of_their_own(clip, dataset, without_figures, capsys, method):
    plain, run_dir = evaluate(clip, dataset)
    assert plain["official_reranked"] is None and "re-ranked" not in (run_dir / "report.html").read_text()
    assert "re-ranked" not in capsys.readouterr().out
    shutil.rmtree(dataset.results_dir)

    result, run_dir = evaluate(clip, replace(dataset, rerank=method, **PARAMETERS[method]))
    for name in ("official", "random", "text_to_image", "clustering"):
        assert result[name] == plain[name]
    written = json.loads((run_dir / "metrics.json").read_text())["official_reranked"]
    assert {name: written[name] for name in ("method", *PARAMETERS[method])} == {
        "method": method,
        **PARAMETERS[method],
    }
    assert written["mAP_interval95"] is None and written["mAP"] != plain["official"]["mAP"]
    assert (written["num_query"], written["num_gallery"]) == (28, 32)
    summary = read_summary(dataset.results_dir / "summary.csv")
    assert summary["protocol"].tolist() == ["official", *["random"] * 10, "text_to_image", "official_reranked"]
    assert summary["mAP"].iloc[-1] == pytest.approx(written["mAP"], abs=1e-6)
    detail = f"{method} {'/'.join(f'{value:g}' for value in PARAMETERS[method].values())}"
    assert summary["detail"].tolist() == [*[""] * 12, detail]
    page = (run_dir / "report.html").read_text()
    assert f"<td>official split, re-ranked, {detail}</td><td>{100 * written['rank1']:.1f}</td>" in page
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"re-ranked, {method}")]
    assert f"{100 * written['mAP']:.1f}" in line.split()


def test_the_querys_camera_is_left_out_of_the_re_ranked_figures(clip, dataset, without_figures):
    with_cameras(dataset.metadata_dir)
    config = replace(dataset, exclude_same_camera=True, rerank="k_reciprocal", rerank_lambda=1.0)
    result, _ = evaluate(clip, config)  # the original distance alone: the ranking as it was
    for name in ("rank1", "mAP", "mINP", "num_query"):
        assert result["official_reranked"][name] == pytest.approx(result["official"][name], abs=1e-12)


def test_flags_of_re_ranking_that_do_not_fit():
    with pytest.raises(InputError, match="--rerank_k2 is 6, more than --rerank_k1 5"):
        EvaluationConfig(rerank="k_reciprocal", rerank_k1=5)
    assert EvaluationConfig(rerank="k_reciprocal").reranking == KReciprocal(20, 6, 0.3)
    assert CheckpointConfig(rerank="aqe").reranking == QueryExpansion(5, 3.0)
    assert CheckpointConfig(rerank="text_fusion").reranking == TextFusion()
    assert EvaluationConfig(rerank="text_fusion", text_weight=0.0).reranking == TextFusion(0.0)
    assert EvaluationConfig().reranking is None


@pytest.mark.parametrize("method", ["none", *PARAMETERS])
def test_a_flag_of_a_method_that_is_not_chosen(method):
    for other, parameters in PARAMETERS.items():
        for flag, value in parameters.items():
            if other == method:
                assert EvaluationConfig(rerank=method, **parameters).reranking.as_dict()[flag] == value
            else:
                with pytest.raises(InputError, match=f"^--{flag} is for --rerank {other}, and --rerank is {method}$"):
                    EvaluationConfig(rerank=method, **{flag: value})


def test_the_default_of_each_parameter_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        parse_config(EvaluationConfig, None, ["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for method in (KReciprocal(), QueryExpansion(), TextFusion()):
        for flag, value in list(method.as_dict().items())[1:]:
            assert re.search(rf"--{flag} [NX] {method.method}: [^()]*\(default: {value}\)", told)


def test_a_query_of_photo_and_description(clip, dataset, without_figures, tmp_path):
    """An identity of two prompts, and one that the gallery lacks; similarities added up query by query."""
    prompts = json.loads((dataset.metadata_dir / TOKEN_SAFE_PROMPTS).read_text())
    ids = read_image_meta(dataset.metadata_dir / "image_paths.json").set_index("image")["item_id"]
    split = json.loads((dataset.metadata_dir / SPLITS).read_text())["official"]
    several, absent = sorted(set(ids[split["query"]]))[:2]
    prompts[several] = ["a red square", "a photo of something blue"]
    split["gallery"] = [image for image in split["gallery"] if ids[image] != absent]
    write_json(dataset.metadata_dir / SPLITS, {"official": split, "random": []})
    write_prompts(dataset.metadata_dir / TOKEN_SAFE_PROMPTS, prompts)
    result, _ = evaluate(clip, replace(dataset, rerank="text_fusion", text_weight=0.4))

    queries = [image for image in split["query"] if ids[image] != absent]
    pixels = load_pixels(
        tmp_path / "photos", [*split["query"], *split["gallery"]], 32, tmp_path / "p", resize_mode=clip.resize_mode
    )
    features = dict(zip(pixels.images, extract_features(clip, pixels.array, CPU).double().numpy(), strict=True))
    gallery, texts = np.stack([features[image] for image in split["gallery"]]), {}
    for item_id in set(ids[queries]):
        of_prompts = encode_texts(clip, np.atleast_1d(prompts[item_id]).tolist(), CPU).double().numpy()
        texts[item_id] = of_prompts.sum(axis=0) / np.linalg.norm(of_prompts.sum(axis=0))
    by_photo = {image: gallery @ features[image] for image in split["query"]}
    by_text = {image: gallery @ texts[ids[image]] for image in queries}
    spreads = [np.mean([values.std() for values in part.values()]) for part in (by_photo, by_text)]
    precision = []
    for image in queries:
        order = np.argsort(-(0.6 * by_photo[image] / spreads[0] + 0.4 * by_text[image] / spreads[1]))
        ranks = np.flatnonzero(ids[split["gallery"]].to_numpy()[order] == ids[image]) + 1
        precision.append((np.arange(1, len(ranks) + 1) / ranks).mean())
    assert result["official_reranked"]["mAP"] == pytest.approx(np.mean(precision), abs=1e-6)
    assert result["official_reranked"]["num_without_match"] == result["official"]["num_without_match"] == 7


def test_descriptions_that_are_all_the_same_cannot_stand_beside_photos(clip, dataset, monkeypatch):
    ids = json.loads((dataset.metadata_dir / TOKEN_SAFE_PROMPTS).read_text())
    write_prompts(dataset.metadata_dir / TOKEN_SAFE_PROMPTS, dict.fromkeys(ids, "a square"))
    monkeypatch.setattr(evaluation, "load_features", lambda *_, **__: pytest.fail("told too late"))
    with pytest.raises(InputError, match=r"^--rerank text_fusion .* identities of squares have the same prompt$"):
        evaluate(clip, replace(dataset, rerank="text_fusion"))
    assert not (dataset.results_dir / "summary.csv").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--rerank", "yes"], "invalid choice: 'yes'"),
        (["--rerank_k1", "0"], "--rerank_k1: it must be at least 1"),
        (["--rerank_k1", "2000"], "at most 100,"),
        (["--aqe_n", "2000"], "at most 1000,"),
        (["--rerank_k2", "0"], "--rerank_k2: it must be at least 1"),
        (["--rerank_lambda", "2"], "--rerank_lambda: it must be at least 0 and at most 1, not 2"),
        (["--rerank_lambda", "nan"], "not a finite number"),
        (["--aqe_n", "0"], "--aqe_n: it must be at least 1"),
        (["--aqe_alpha", "-1"], "--aqe_alpha: it must be at least 0"),
        (["--rerank", "text_fusion", "--text_weight", "nan"], "--text_weight: nan is not a finite number"),
        (["--rerank", "text_fusion", "--text_weight", "2"], "--text_weight: it must be at least 0 and at most 1"),
        (["--rerank", "text_fusion", "--text_weight", "half"], "--text_weight: invalid float value"),
    ],
)
def test_impossible_flags_of_re_ranking(flags, says, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(EvaluationConfig, None, flags)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and says in message and message.count("\n") == 1


@pytest.mark.parametrize("fast_decode", [False, True])
def test_fast_decoding_is_passed_on_and_recorded(clip, dataset, tmp_path, without_figures, fast_decode):
    _, run_dir = evaluate(clip, replace(dataset, fast_decode=fast_decode))
    written = json.loads((run_dir / "metrics.json").read_text())
    assert written["configuration"]["fast_decode"] is fast_decode
    (cache,) = (tmp_path / "processed" / "squares" / "test").glob("pixels_*.npy")
    assert cache.stem.endswith("_fast") == fast_decode


def with_cameras(metadata):
    """Give every image of an identity one of two cameras."""
    table = read_image_meta(metadata / "image_paths.json")
    table["camera"] = [f"{item_id}-{number % 2}" for number, item_id in enumerate(table["item_id"])]
    write_image_meta(metadata / "image_paths.json", table)
    return table.set_index("image")["camera"]


def test_rows_say_what_is_not_the_datasets_own(clip, dataset, without_figures, capsys):
    own = dataset.metadata_dir / TOKEN_SAFE_PROMPTS
    shutil.copy(own, "copy.json")
    write_prompts(Path("other.json"), {f"square{number}": f"square {number}" for number in range(NUM_IDENTITIES)})
    with_cameras(dataset.metadata_dir)
    plain = replace(dataset, exclude_same_camera=False, prompt_json=Path("copy.json"), clustering=False)
    result, _ = evaluate(clip, plain)
    assert result["detail"] == "" and "note:" not in capsys.readouterr().out
    shutil.rmtree(dataset.results_dir)

    config = replace(plain, exclude_same_camera=True, prompt_json=Path("other.json"), rerank="aqe")
    result, _ = evaluate(clip, config)
    summary = read_summary(dataset.results_dir / "summary.csv")
    assert re.fullmatch("same camera left out, prompts [0-9a-f]{12}", result["detail"])
    assert summary["detail"].tolist() == [*[result["detail"]] * 12, f"aqe 5/3, {result['detail']}"]
    assert f"squares itself is measured otherwise ({result['detail']})" in capsys.readouterr().out


def test_rankings_leave_the_querys_camera_out(clip, dataset, without_figures):
    cameras = with_cameras(dataset.metadata_dir)
    table = read_image_meta(dataset.metadata_dir / "image_paths.json")
    # all but one query of each identity join the gallery: 56 images, more than a ranking holds
    queries = table[table["split"] == "query"].groupby("item_id")["image"].first().tolist()
    test_images = table.loc[table["split"].isin(["query", "gallery"]), "image"]
    split = {"query": queries, "gallery": [image for image in test_images if image not in queries]}
    write_json(dataset.metadata_dir / SPLITS, {"official": split, "random": []})
    result, run_dir = evaluate(clip, replace(dataset, exclude_same_camera=True))
    assert result["exclude_same_camera"] is True and result["random"] == []
    rankings = pd.read_csv(run_dir / "rankings.csv")
    same = rankings["query"].map(cameras) == rankings["image"].map(cameras)
    assert not (same & rankings["is_match"]).any()
    gallery_ids = table.set_index("image").loc[split["gallery"], "item_id"]
    for query, ranking in rankings.groupby("query"):
        own = (gallery_ids == ranking["query_item_id"].iloc[0]) & (cameras[gallery_ids.index] == cameras[query])
        assert ranking["rank"].tolist() == list(range(1, min(50, len(gallery_ids) - own.sum()) + 1))
        assert own.sum() > 0
    assert result["official"]["num_query"] == 4 and result["official"]["mAP"] < 1


def test_long_rankings_are_cut_at_50(clip, dataset, without_figures):
    table = read_image_meta(dataset.metadata_dir / "image_paths.json")
    test_images = table.loc[table["split"].isin(["query", "gallery"]), "image"].tolist()
    split = {"query": test_images[:2], "gallery": test_images[2:]}
    write_json(dataset.metadata_dir / SPLITS, {"official": split, "random": []})
    _, run_dir = evaluate(clip, dataset)
    assert pd.read_csv(run_dir / "rankings.csv").groupby("query").size().tolist() == [50, 50]


def test_an_unreadable_image_stops_the_evaluation_unless_skipped(clip, dataset, tmp_path, capsys):
    split = json.loads((dataset.metadata_dir / SPLITS).read_text())["official"]
    broken = [split["query"][3], split["gallery"][5]]
    for image in broken:
        (tmp_path / "photos" / image).write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2 of 60 images cannot be read.*unreadable_images.csv.*--skip_unreadable"):
        evaluate(clip, dataset)
    assert not (dataset.results_dir / "summary.csv").exists()
    for path in dataset.results_dir.glob("*/*"):
        assert path.name == "unreadable_images.csv"
        path.unlink()
        path.parent.rmdir()

    result, run_dir = evaluate(clip, replace(dataset, skip_unreadable=True))
    assert result["images_left_out"] == 2
    assert (result["official"]["num_query"], result["official"]["num_gallery"]) == (27, 31)
    assert sorted(pd.read_csv(run_dir / "unreadable_images.csv")["image"]) == sorted(broken)
    rankings = pd.read_csv(run_dir / "rankings.csv")
    assert not set(broken) & {*rankings["query"], *rankings["image"]}
    assert "left out: 2 unreadable images" in capsys.readouterr().out
    assert len(read_summary(dataset.results_dir / "summary.csv")) == 12


def test_queries_without_a_match_are_said(clip, dataset, capsys):
    table = read_image_meta(dataset.metadata_dir / "image_paths.json")
    gallery = table.loc[table["split"] == "gallery"]
    lonely = gallery["item_id"].iloc[0]
    split = official_split(table)
    split["gallery"] = gallery.loc[gallery["item_id"] != lonely, "image"].tolist()
    write_json(dataset.metadata_dir / SPLITS, {"official": split, "random": []})
    result, run_dir = evaluate(clip, dataset)
    assert result["official"]["num_without_match"] == 7 and result["official"]["num_query"] == 21
    per_query = pd.read_csv(run_dir / "per_query.csv")
    without = per_query[per_query["item_id"] == lonely]
    assert len(without) == 7 and without["average_precision"].isna().all() and not without["first_match_rank"].any()
    assert result["text_to_image"]["num_query"] == 3  # an identity without gallery images is no text query
    assert "up to 7 queries without a match in the gallery (official split)" in capsys.readouterr().out


def test_distractors_are_no_text_queries(clip, dataset, without_figures):
    table = read_image_meta(dataset.metadata_dir / "image_paths.json")
    split = official_split(table)
    distractor = table.loc[table["split"] == "query", "item_id"].iloc[0]
    others = set(table.loc[table["item_id"] != distractor, "image"])
    split["query"] = [image for image in split["query"] if image in others]
    write_json(dataset.metadata_dir / SPLITS, {"official": split, "random": []})
    result, _ = evaluate(clip, dataset)
    assert result["text_to_image"]["num_query"] == 3 and result["text_to_image"]["num_gallery"] == 32


def test_equal_prompts_have_no_text_to_image_figures(clip, dataset, capsys):
    ids = set(evaluation.load_dataset(dataset).table["item_id"])
    write_prompts(dataset.metadata_dir / TOKEN_SAFE_PROMPTS, dict.fromkeys(ids, "a photo of a person"))
    result, run_dir = evaluate(clip, dataset)
    assert result["text_to_image"] is None and not (run_dir / "text_queries.png").exists()
    assert set(read_summary(dataset.results_dir / "summary.csv")["protocol"]) == {"official", "random"}
    printed = capsys.readouterr().out
    assert "have the same prompt" in printed and "text to image  " not in printed


def test_missing_splits_and_prompts(clip, dataset):
    (dataset.metadata_dir / SPLITS).rename(dataset.metadata_dir / "away")
    with pytest.raises(InputError, match=r"image_splits.json does not exist. .*05_make_retrieval_splits.py"):
        evaluate(clip, dataset)
    (dataset.metadata_dir / "away").rename(dataset.metadata_dir / SPLITS)
    write_prompts(dataset.metadata_dir / TOKEN_SAFE_PROMPTS, {"square0": "a"})
    with pytest.raises(InputError, match="identities without prompt"):
        evaluate(clip, dataset)


def checkpoint_content(clip, **changes):
    recorded = {
        "stage": 2,
        "dataset": "squares",
        "variant": "v1",
        "epoch": 4,
        "val_mAP": 0.5,
        "data_digest": "5a",
        "seen_identities": {},
    }
    return {**clip.architecture(), **recorded, **changes, "state_dict": clip.model.state_dict()}


def test_a_checkpoint_gives_the_figures_of_its_model(clip, dataset, tmp_path, capsys, without_figures):
    expected, _ = evaluate(clip, dataset)
    path = tmp_path / "run_BEST.pth"
    write_checkpoint(path, checkpoint_content(clip))
    config = CheckpointConfig(**{**vars(dataset), "ckpt": path})
    result = evaluate_checkpoint(config, stage=2, variant=None, made_by="python train.py")
    for name in ("official", "random", "text_to_image"):
        assert result[name] == expected[name]
    assert (result["stage"], result["variant"], result["checkpoint"]) == (2, "v1", str(path))
    assert "run_BEST.pth (tiny-rn, v1, trained on squares, epoch 4, val mAP 50.0)" in capsys.readouterr().out


def test_rows_say_which_training_seed_and_recipe_they_are_of(clip, dataset, tmp_path, without_figures):
    path = tmp_path / "run_BEST.pth"
    config = CheckpointConfig(**{**vars(dataset), "ckpt": path, "seed": 5})  # of the intervals
    for recorded in ({"train_seed": 3, "recipe": "f00d", "start_recipe": "beef"}, {}):  # an older version: none of them
        write_checkpoint(path, checkpoint_content(clip, **recorded))
        result = evaluate_checkpoint(config, stage=2, variant=None, made_by="")
        expected = (recorded.get("train_seed"), recorded.get("recipe", ""))
        assert (result["seed"], result["recipe"]) == expected
        assert result["start_recipe"] == recorded.get("start_recipe")
        row = read_summary(dataset.results_dir / "summary.csv").iloc[-1]
        assert (row["seed"], row["recipe"]) == ("" if expected[0] is None else str(expected[0]), expected[1])
    write_checkpoint(path, checkpoint_content(clip, train_seed=-1))
    with pytest.raises(InputError, match="train_seed is -1"):
        evaluate_checkpoint(config, stage=2, variant=None, made_by="")


@pytest.mark.parametrize("stage", [1, 2])
def test_weights_that_have_seen_test_identities_are_refused(clip, dataset, tmp_path, without_figures, capsys, stage):
    data = evaluation.load_dataset(dataset)
    seen = sorted(set(data.rows("query")["item_id"]))[:3]
    path = tmp_path / "run_BEST.pth"
    write_checkpoint(path, checkpoint_content(clip, seen_identities={"another": [*seen, "x"]}))

    def evaluate_it(**changes):
        config = CheckpointConfig(**{**vars(dataset), "ckpt": path, **changes})
        if stage == 2:
            return evaluate_checkpoint(config, stage=2, variant=None, made_by="")
        return evaluate_clip(load_clip("tiny-rn", str(path)), data, replace(LABELS, stage=1), CPU, config)

    with pytest.raises(InputError, match=r"3 of the \d+ test identities of squares were trained or validated on"):
        evaluate_it()
    assert not dataset.results_dir.exists()
    assert evaluate_it(unrelated_ids=True)["data_digest"] == data.digest[:12]
    assert "taken as unrelated" in capsys.readouterr().out
    write_checkpoint(path, checkpoint_content(clip, seen_identities={data.digest: seen}))  # of this very dataset
    assert evaluate_it()["official"]


@pytest.mark.parametrize(
    ("cameras", "says"),
    [
        (("1", "1"), r"each of the 2 query identities .* one camera alone.*: --no-exclude_same_camera keeps it in"),
        (("1", "2"), None),
        (("", ""), None),
        (None, "none of the 2 query identities .* has a photo in the gallery"),
    ],
)
def test_why_no_query_has_a_match_is_said(cameras, says):
    rows = [
        (f"{item}{side}.jpg", item, side, camera)
        for item in "ab"
        for side, camera in zip(("query", "gallery"), cameras or ("1", "2"), strict=True)
    ]
    if cameras is None:
        rows = [(image, item if side == "query" else "c", side, camera) for image, item, side, camera in rows]
    table = pd.DataFrame(rows, columns=["image", "item_id", "split", "camera"])
    data = PreparedDataset("shop", Path(), Path(), table, exclude_same_camera=True, digest="")
    with pytest.raises(InputError, match=says) if says else nullcontext():
        require_matches(data, table, official_split(table))


def test_an_old_summary_is_found_before_the_work(clip, dataset, monkeypatch):
    monkeypatch.setattr(evaluation, "load_evaluation_data", None)
    dataset.results_dir.mkdir()
    (dataset.results_dir / "summary.csv").write_text("time,dataset,model\n")
    with pytest.raises(InputError, match="is not a summary of this version"):
        evaluate(clip, dataset)


def test_checkpoints_that_do_not_fit(clip, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("clipfh.models.checkpoint.stage_dir", lambda stage: tmp_path / "stage")
    config = CheckpointConfig(**vars(dataset))
    with pytest.raises(InputError, match=r"no checkpoint .*stage 2, dataset squares.*variant v4.*python train.py"):
        evaluate_checkpoint(config, stage=2, variant="v4", made_by="python train.py")
    path = tmp_path / "run_BEST.pth"
    write_checkpoint(path, checkpoint_content(clip))
    with pytest.raises(InputError, match=r"run_BEST.pth is of stage 2, not of stage 3"):
        evaluate_checkpoint(replace(config, ckpt=path), stage=3, variant=None, made_by="")
    with pytest.raises(InputError, match=r"run_BEST.pth holds a tiny-rn, not a tiny-vit"):
        evaluate_checkpoint(replace(config, ckpt=path, model="tiny-vit"), stage=2, variant=None, made_by="")
    torch.save({"state_dict": clip.model.state_dict()}, path)  # weights of somewhere else
    with pytest.raises(InputError, match="is of stage None"):
        evaluate_checkpoint(replace(config, ckpt=path), stage=2, variant=None, made_by="")


def test_the_table_may_be_given_as_the_folder(dataset):
    config = replace(dataset, metadata_dir=dataset.metadata_dir / "image_paths.json")
    assert evaluation.load_dataset(config).table.equals(load_prepared("x", folder=dataset.metadata_dir).table)

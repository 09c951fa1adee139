"""Rankings as a user looks at them: a table of every query's nearest images, pictures of the best and worst.

Shapes: Q queries, G gallery, K length of a ranking.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from clipfh.features.extraction import rank_gallery
from clipfh.metrics.retrieval import RetrievalFigures, evaluate_retrieval
from clipfh.models.clip import LoadedClip, encode_texts
from clipfh.reports.figures import RankedImage, RankedQuery, ranked_results_figure

TOP_K = 50  # length of the rankings that are written for every query
FIGURE_ROWS = 6


@dataclass(frozen=True)
class TextQueries:
    """Text-to-image retrieval: Q prompts against G gallery images."""

    item_ids: list[str]
    prompts: list[str]
    features: torch.Tensor  # (Q, D), unit rows
    gallery: pd.DataFrame
    indices: torch.Tensor  # (Q, K) into the gallery
    similarities: torch.Tensor  # (Q, K)
    figures: RetrievalFigures

    def of_identities(self, item_ids: list[str]) -> torch.Tensor:
        """Each identity's description (len(item_ids), D), on the CPU: its prompts' mean direction, of unit length.

        Zeros for identities without gallery images: no figure counts them.
        """
        prompts = pd.DataFrame(self.features.cpu().numpy(), index=self.item_ids)
        sums = prompts.groupby(level=0).sum().reindex(item_ids, fill_value=0)
        return F.normalize(torch.from_numpy(sums.to_numpy()), dim=1)


def text_to_image(
    clip: LoadedClip,
    features: torch.Tensor,
    table: pd.DataFrame,
    gallery_images: list[str],
    query_ids: set[str],
    prompts: dict[str, list[str]],
    device: torch.device,
) -> TextQueries:
    """Every prompt of a query identity with gallery images is a query; its matches are that identity's images.

    Args:
        clip, device: the model, and where it is.
        features: (N, D) of the images of `table`, unit rows.
        table: the test images.
        gallery_images: G images of `table`.
        query_ids: identities with query images; the gallery's others are distractors, for prompts as well.
        prompts: of each identity.
    """
    place = pd.Series(np.arange(len(table)), index=table["image"])[gallery_images].to_numpy()
    gallery = table.iloc[place].reset_index(drop=True)
    pairs = [
        (item_id, prompt) for item_id in sorted(query_ids & set(gallery["item_id"])) for prompt in prompts[item_id]
    ]
    item_ids, texts = [item_id for item_id, _ in pairs], [prompt for _, prompt in pairs]
    text_features = encode_texts(clip, texts, device).to(features.device)
    gallery_features = features[place]
    figures = evaluate_retrieval(text_features, gallery_features, item_ids, gallery["item_id"].tolist())
    indices, similarities = rank_gallery(text_features, gallery_features, TOP_K)
    return TextQueries(item_ids, texts, text_features, gallery, indices, similarities, figures)


def ranking_table(
    features: torch.Tensor, table: pd.DataFrame, split: dict[str, list[str]], *, exclude_same_camera: bool
) -> pd.DataFrame:
    """The first `TOP_K` gallery images of every query, without the ones that the protocol leaves out."""
    place = pd.Series(np.arange(len(table)), index=table["image"])
    q, g = place[split["query"]].to_numpy(), place[split["gallery"]].to_numpy()
    ids, cameras, images = (table[name].to_numpy() for name in ("item_id", "camera", "image"))
    extra = 0
    if exclude_same_camera:  # look deeper by as many images as can be left out of one ranking
        extra = int(table.iloc[g].groupby(["item_id", "camera"]).size().max())
    indices, similarities = rank_gallery(features[q], features[g], TOP_K + extra)
    query_place = np.repeat(q, indices.shape[1])
    gallery_place = g[indices.numpy().ravel()]
    is_match = ids[query_place] == ids[gallery_place]
    ranking = pd.DataFrame(
        {
            "query": images[query_place],
            "query_item_id": ids[query_place],
            "image": images[gallery_place],
            "item_id": ids[gallery_place],
            "similarity": similarities.numpy().ravel(),
            "is_match": is_match,
        }
    )
    if exclude_same_camera:
        same = cameras[query_place] == cameras[gallery_place]
        ranking = ranking[~(is_match & same & (cameras[query_place] != ""))]
    ranking.insert(2, "rank", ranking.groupby("query", sort=False).cumcount() + 1)
    return ranking[ranking["rank"] <= TOP_K].reset_index(drop=True)


def draw_rankings(
    run_dir: Path,
    image_dir: Path,
    rankings: pd.DataFrame,
    query_images: list[str],
    figures: RetrievalFigures,
    text: TextQueries | None,
    stage_name: str,
) -> list[tuple[Path, str]]:
    """Draw the worst and best queries of the official split and a range of prompts: pictures with their captions."""
    drawn = []
    by_query = rankings.groupby("query", sort=False)
    order = np.argsort(figures.average_precision, kind="stable")  # NaN, queries without a match, come last
    order = order[: figures.num_query]
    for name, chosen in (("worst", order[:FIGURE_ROWS]), ("best", order[::-1][:FIGURE_ROWS])):
        rows = []
        for index in chosen:
            ranking = by_query.get_group(query_images[index])
            rows.append(
                RankedQuery(
                    item_id=ranking["query_item_id"].iloc[0],
                    image=query_images[index],
                    gallery=[
                        RankedImage(r.image, r.item_id, r.similarity, bool(r.is_match)) for r in ranking.itertuples()
                    ],
                    average_precision=float(figures.average_precision[index]),
                    first_match_rank=int(figures.first_match_rank[index]),
                )
            )
        drawn.append((run_dir / f"{name}_queries.png", f"{name} queries by average precision"))
        ranked_results_figure(drawn[-1][0], image_dir, rows, title=f"{stage_name}: {drawn[-1][1]}")
    if text is None:
        return drawn
    # evenly spaced from the worst prompt to the best: neither a showcase nor a pillory
    order = np.argsort(text.figures.average_precision, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, FIGURE_ROWS).round().astype(int))][::-1]
    rows = [_text_row(text, int(index)) for index in chosen]
    drawn.append((run_dir / "text_queries.png", "prompts as queries, from best to worst"))
    ranked_results_figure(drawn[-1][0], image_dir, rows, title=f"{stage_name}: {drawn[-1][1]}")
    return drawn


def _text_row(text: TextQueries, index: int) -> RankedQuery:
    images = text.gallery.iloc[text.indices[index].numpy()]
    return RankedQuery(
        item_id=text.item_ids[index],
        prompt=text.prompts[index],
        gallery=[
            RankedImage(image, item_id, float(similarity), item_id == text.item_ids[index])
            for image, item_id, similarity in zip(
                images["image"], images["item_id"], text.similarities[index], strict=True
            )
        ],
        average_precision=float(text.figures.average_precision[index]),
        first_match_rank=int(text.figures.first_match_rank[index]),
    )

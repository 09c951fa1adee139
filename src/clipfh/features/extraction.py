"""From a model and pixels to features, and from features to rankings.

Shapes: N images, B batch, S image size, D embedding, Q queries, G gallery, K length of a ranking.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from clipfh.images.prefetch import prefetch
from clipfh.images.transforms import to_input
from clipfh.metrics.match_ranks import match_ranks
from clipfh.metrics.retrieval import MatchRanks, RetrievalFigures, evaluate_retrieval
from clipfh.models.clip import LoadedClip

MAX_DISTRACTORS = 1000  # train images in the gallery of the val queries


def usual_batch_size(device: str | torch.device) -> int:
    """Images at a time where nobody says how many: a CPU is no faster with more than 32, which take memory.

    small-clip at 160 px on one core: 3.1 s for 256 images and 2.2 GB with 128 at a time, 3.5 s and 1.1 GB with 32.
    """
    return 32 if torch.device(device).type == "cpu" else 128


def encode_batches(
    clip: LoadedClip,
    pixels: np.ndarray,
    device: str | torch.device,
    *,
    batch_size: int | None = None,
    start: int = 0,
    quiet: bool = False,
) -> Iterator[torch.Tensor]:
    """Unit-length image features in float32, a batch at a time: (N, S, S, 3) uint8 to (B, D) on the CPU.

    Always float32, whatever a run trains in: test figures do not depend on the precision of training. The model is in
    evaluation mode until the iterator ends or is closed, and then in the mode it was in; so is cuDNN, without TF32.

    Args:
        clip, device: the model, and where it is.
        pixels: N images; a memory map is read batch by batch.
        batch_size: B; the last batch may be smaller. None: `usual_batch_size`.
        start: the image to begin with.
        quiet: without a progress bar.
    """
    device = torch.device(device)
    batch_size = batch_size or usual_batch_size(device)
    starts = range(start, len(pixels), batch_size)
    parts = (pixels[i : i + batch_size] for i in starts)
    if device.type == "cuda":
        batches = prefetch(_copied_beside_the_forward_pass(parts, clip, device))
    else:  # no thread: the forward pass takes all cores of a CPU
        batches = (to_input(part, clip.mean, clip.std, device) for part in parts)
    was_training, tf32 = clip.model.training, torch.backends.cudnn.allow_tf32
    clip.model.eval()
    torch.backends.cudnn.allow_tf32 = False  # cuDNN's default: convolutions with 10 bits of each factor, not float32's
    bar = tqdm(total=len(starts), desc="extract features", unit="batch", disable=True if quiet else None, leave=False)
    try:
        with contextlib.closing(batches) as ready, bar:
            for images in ready:
                with torch.inference_mode():  # not around the yield: it would hold in the consumer's code as well
                    features = clip.model.encode_image(images, normalize=True).float()
                # on a GPU this waits for the batch, while the next one is on its way; until then `images` must be held,
                # lest its memory, which belongs to the other stream, be given to a batch to come
                features = features.cpu()
                del images  # now: the next batch gets its memory, which fresh from the system would cost page faults
                yield features
                bar.update()
    finally:
        clip.model.train(was_training)
        torch.backends.cudnn.allow_tf32 = tf32


def _copied_beside_the_forward_pass(
    parts: Iterator[np.ndarray], clip: LoadedClip, device: torch.device
) -> Iterator[torch.Tensor]:
    """Input batches, complete on a CUDA device: (B, S, S, 3) uint8 to (B, 3, S, S) float32."""
    stream = torch.cuda.Stream(device)  # the forward pass has the default stream
    with torch.cuda.stream(stream):
        for part in parts:
            pinned = torch.empty(part.shape, dtype=torch.uint8, pin_memory=True).numpy()
            pinned[:] = part
            images = to_input(pinned, clip.mean, clip.std, device)
            stream.synchronize()  # holds up the thread of `prefetch` alone
            yield images


def extract_features(
    clip: LoadedClip,
    pixels: np.ndarray,
    device: str | torch.device,
    *,
    batch_size: int | None = None,
    quiet: bool = False,
) -> torch.Tensor:
    """All features of `encode_batches`, without gradients: (N, S, S, 3) uint8 to (N, D) float32 on `device`."""
    parts = list(encode_batches(clip, pixels, device, batch_size=batch_size, quiet=quiet))
    return torch.cat(parts).to(device)  # made outside inference mode: may be used in autograd


def rank_gallery(
    query_features: torch.Tensor, gallery_features: torch.Tensor, top_k: int, *, chunk_size: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` most similar gallery images of each query, best first: indices (Q, K) and similarities (Q, K)."""
    top_k = min(top_k, len(gallery_features))
    similarities, indices = [], []
    for start in range(0, len(query_features), chunk_size):
        best = (query_features[start : start + chunk_size] @ gallery_features.T).topk(top_k, dim=1)
        similarities.append(best.values.cpu())
        indices.append(best.indices.cpu())
    return torch.cat(indices), torch.cat(similarities)


def val_figures(
    val_features: torch.Tensor,
    val_table: pd.DataFrame,
    distractor_features: torch.Tensor,
    *,
    exclude_same_camera: bool,
) -> RetrievalFigures:
    """The figures by which BEST is chosen: every val image is a query against all the others and the distractors.

    There are few val identities, so a gallery of their images alone is too easy to tell checkpoints apart. Train images
    fill it up: they match nobody, but they are in the way, as the images of other test identities will be.

    Args:
        val_features: (N, D) unit rows, in the order of `val_table`.
        val_table: N rows with `item_id` and `camera`.
        distractor_features: (M, D) unit rows of images of other identities; M may be 0.
        exclude_same_camera: leave a query's own camera (occasion) out, as the dataset's protocol does.
    """
    ids, cameras = val_table["item_id"].tolist(), val_table["camera"].tolist()
    nobody = [""] * len(distractor_features)
    return evaluate_retrieval(
        val_features,
        torch.cat([val_features, distractor_features]),
        ids,
        ids + nobody,
        query_cameras=cameras if exclude_same_camera else None,
        gallery_cameras=cameras + nobody if exclude_same_camera else None,
        query_positions=range(len(val_features)),
    )


def draw_distractors(num_images: int, seed: int) -> np.ndarray:
    """Which of the train images stand in the way of val queries: at most `MAX_DISTRACTORS` places, sorted."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.permutation(num_images)[:MAX_DISTRACTORS])


def image_to_image(
    features: torch.Tensor,
    table: pd.DataFrame,
    query: Sequence[str],
    gallery: Sequence[str],
    *,
    exclude_same_camera: bool,
    ranks: MatchRanks = match_ranks,
) -> RetrievalFigures:
    """The figures of one query-gallery split.

    Args:
        features: (N, D) unit rows, in the order of `table`.
        table: N rows with `image`, `item_id`, `camera`.
        query, gallery: images of the table.
        exclude_same_camera: leave gallery images of the query's identity and camera out.
        ranks: by what the gallery is ranked, see `evaluate_retrieval`.
    """
    place = pd.Series(np.arange(len(table)), index=table["image"])
    q, g = place[list(query)].to_numpy(), place[list(gallery)].to_numpy()
    ids, cameras = table["item_id"].to_numpy(), table["camera"].to_numpy()
    return evaluate_retrieval(
        features[q],
        features[g],
        ids[q],
        ids[g],
        query_cameras=cameras[q] if exclude_same_camera else None,
        gallery_cameras=cameras[g] if exclude_same_camera else None,
        ranks=ranks,
    )

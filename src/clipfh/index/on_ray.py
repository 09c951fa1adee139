"""An extraction on Ray: one machine's processes, or a cluster's.

The list goes through Ray Data in batches: decoded in tasks on CPUs, embedded in actors that hold the model, on GPUs
where there are any. Features come back in the list's order to this process, which writes the shards: the machines need
no common folder to write to. A batch of a worker that was killed is made again by Ray; of a run that was killed, the
shards that are written stay.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clipfh.core.errors import InputError, shortened, shown
from clipfh.images.transforms import ImageSize
from clipfh.index.embedding import Decoded, decode_photos, embed_photos
from clipfh.index.packages import scale_package
from clipfh.index.photos import PhotoSource
from clipfh.models.clip import LoadedClip

if TYPE_CHECKING:
    from clipfh.index.extract import ShardWriter, Task

LOCAL = "local"
PHOTOS_OF_A_TASK = 256  # about 40 MB of pixels at 224 px
MEMORY_OF_A_TASK = 2**28  # bytes


def extract_on_ray(
    clip: LoadedClip,
    source: PhotoSource,
    tasks: "list[Task]",
    writer: "ShardWriter",
    batch_size: int,
    workers: int,
    address: str,
    advance: Callable[[int], Any],
) -> None:
    """Extract the shards of `tasks`, which `writer` writes.

    Args:
        clip: is sent to the actors.
        source: the photos; a folder must be there on all machines.
        tasks, writer, batch_size: see `clipfh.index.extract`.
        workers: CPUs that Ray uses here, at least 2; in a cluster, tasks that decode at once and actors that embed.
        address: `local`, or that of a cluster.
        advance: is called with the number of photos that were done.

    Raises:
        InputError: Ray is not installed, the cluster cannot be reached, or it gave a task up.
    """
    if address != LOCAL:
        _require_answer(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray, pa = scale_package("ray"), scale_package("pyarrow")
    data = scale_package("ray.data")
    where: dict[str, Any] = {"num_cpus": max(2, workers), "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(None if address == LOCAL else address, log_to_driver=False, logging_level="ERROR", **where)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray at {shown(address)} ({shortened(error)}); --ray alone starts one here") from error
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        facts = {"source": source, "image_size": clip.image_size, "resize_mode": clip.resize_mode}
        sent = {"clip": replace(clip, model=clip.model.cpu(), tokenizer=None), "use_gpu": num_gpus > 0}
        rows = pa.concat_tables([task.rows.select(["id"]) for task in tasks])
        size = max(batch_size, PHOTOS_OF_A_TASK)
        blocks = [rows.slice(start, size).combine_chunks() for start in range(0, len(rows), size)]
        features = (
            data.from_arrow(blocks)
            .map_batches(
                _decode,
                batch_size=batch_size,
                fn_kwargs=facts,
                compute=data.TaskPoolStrategy(max(1, workers - 1)),
                memory=MEMORY_OF_A_TASK,  # stages that ask for the same are run as one: the actors would decode
            )
            .map_batches(
                _Embed,
                batch_size=batch_size,
                fn_constructor_kwargs=sent,
                compute=data.ActorPoolStrategy(size=num_gpus or max(1, workers // 2)),
                num_gpus=1 if num_gpus else None,
            )
        )
        for batch in features.iter_batches(batch_size=None):
            writer.add(batch["id"].tolist(), batch["features"], batch["reason"].tolist())
            advance(len(batch["id"]))
    except ray.exceptions.RayError as error:
        raise InputError(f"Ray gave up ({shortened(error)}); run the same command again: it goes on") from error
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Be sure that somebody listens at HOST:PORT: Ray itself would try for minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise InputError(f"no Ray at {shown(address)} ({shortened(error)}); --ray alone starts one here") from error


def _decode(
    batch: dict[str, np.ndarray], source: PhotoSource, image_size: ImageSize, resize_mode: str
) -> dict[str, np.ndarray]:
    """A task: the photos of a batch to their pixels; those that cannot be read stay as black ones with a reason."""
    torch.set_num_threads(1)
    decoded = decode_photos(source, batch["id"].tolist(), image_size, resize_mode)
    return {"id": batch["id"], "pixels": decoded.pixels, "reason": np.array(decoded.reasons, dtype=object)}


class _Embed:
    """An actor: it gets the model once, from the process that loaded it, and so the same weights everywhere."""

    def __init__(self, clip: LoadedClip, use_gpu: bool) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.clip = replace(clip, model=clip.model.to(self.device))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        decoded = Decoded(np.array(batch["pixels"]), batch["reason"].tolist())  # a copy: Ray's memory is read-only
        features = embed_photos(self.clip, decoded, self.device)
        return {"id": batch["id"], "features": features, "reason": batch["reason"]}

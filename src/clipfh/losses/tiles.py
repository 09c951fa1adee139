"""Logits between two sets of rows, a square tile at a time, so that no N x M matrix is held. D: embedding.

Contrastive losses need them twice: for the normalisers of their softmax, and, once these are known, for the gradient.
A tile fits the processor's cache, and the first ones are kept in between, as far as `KEPT_LOGITS` goes; the others are
computed again. This bounds the memory at any batch size, and small batches compute nothing twice.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

CPU_TILE_ROWS = 512  # 1 MiB of float32, about a core's cache
GPU_TILE_ROWS = 1024  # fewer, larger kernels
KEPT_LOGITS = 2**23  # 32 MiB of float32


def blocks(features: Tensor) -> list[slice]:
    """Cut the rows of `features` into blocks; two of them make a tile."""
    length = CPU_TILE_ROWS if features.device.type == "cpu" else GPU_TILE_ROWS
    return [slice(start, min(start + length, len(features))) for start in range(0, len(features), length)]


class LogitTiles:
    """Iterates, as often as asked, over `(rows, columns, logits)` with logits = scale * x[rows] . y[columns].

    The logits may not be changed by the caller.

    Args:
        x: (N, D), float32 or float64, without gradient, as the other two.
        y: (M, D).
        scale: 0-d.
        tiles: rows of `x` and rows of `y` of each tile.
        leave_out: called as leave_out(logits, rows, columns), sets the logits of pairs that do not count to -inf.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        tiles: Sequence[tuple[slice, slice]],
        leave_out: Callable[[Tensor, slice, slice], None],
    ) -> None:
        self.x, self.y, self.scale, self.tiles, self.leave_out = x, y, scale, tiles, leave_out
        self._kept: dict[int, Tensor] = {}
        self._num_kept = 0

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        for number, (rows, columns) in enumerate(self.tiles):
            logits = self._kept.get(number)
            if logits is None:
                logits = (self.x[rows] @ self.y[columns].T).mul_(self.scale)  # (R, C)
                self.leave_out(logits, rows, columns)
                if self._num_kept + logits.numel() <= KEPT_LOGITS:
                    self._kept[number] = logits
                    self._num_kept += logits.numel()
            yield rows, columns, logits


def add_to_log_normaliser(log_normaliser: Tensor, logits: Tensor, dim: int) -> None:
    """Extend log sum of exp, (R,) in place, by the sum of a tile along `dim`; starts at -inf, safe for any logits."""
    torch.logaddexp(log_normaliser, logits.logsumexp(dim), out=log_normaliser)


def softmax_both_ways(logits: Tensor, row_log_normaliser: Tensor, column_log_normaliser: Tensor) -> Tensor:
    """exp(s(i, j) - r_i) + exp(s(i, j) - c_j), (R, C): the softmax over a row's pairs plus the one over a column's."""
    over_row = (logits - row_log_normaliser[:, None]).exp_()
    return over_row.add_((logits - column_log_normaliser).exp_())

import pytest
import torch

from clipfh.losses import tiles


def random_rows(rows, seed):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_blocks_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", 4)
    assert tiles.blocks(random_rows(9, 0)) == [slice(0, 4), slice(4, 8), slice(8, 9)]


@pytest.mark.parametrize("kept, products", [(2**23, 4), (20, 6), (0, 8)])
def test_two_passes_give_the_same_logits(kept, products, monkeypatch):
    """Tiles that fit in what may be kept are computed once; here 2 x 3 of 16, 8, 8 and 4 logits."""
    monkeypatch.setattr(tiles, "CPU_TILE_ROWS", 4)
    monkeypatch.setattr(tiles, "KEPT_LOGITS", kept)
    x, y, computed = random_rows(6, 0), random_rows(6, 1), []

    def leave_out(logits, rows, columns):
        computed.append(logits)
        logits[0, 0] = -torch.inf

    pairs = [(rows, columns) for rows in tiles.blocks(x) for columns in tiles.blocks(y)]
    logits_of = tiles.LogitTiles(x, y, torch.tensor(7.0, dtype=torch.float64), pairs, leave_out)
    expected = 7 * x @ y.T
    expected[::4, ::4] = -torch.inf
    for _ in range(2):
        found = torch.zeros(6, 6, dtype=torch.float64)
        for rows, columns, logits in logits_of:
            found[rows, columns] = logits
        torch.testing.assert_close(found, expected)
    assert len(computed) == products


def test_log_normaliser_over_tiles():
    logits = 300 * random_rows(4, 0)  # exp of them is infinite
    logits[1] = -torch.inf  # nothing to sum
    log_normaliser = torch.full((4,), -torch.inf, dtype=torch.float64)
    for part in logits.split(2, dim=1):
        tiles.add_to_log_normaliser(log_normaliser, part, dim=1)
    torch.testing.assert_close(log_normaliser, logits.logsumexp(1))

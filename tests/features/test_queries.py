import pytest
import torch
import torch.nn.functional as F

from clipfh.features.queries import TEXT_WEIGHT, query_direction


def unit(*values):
    return F.normalize(torch.tensor(values), dim=0)


def test_words_count_with_their_weight():
    photo, text = unit(1.0, 0.0, 0.0), unit(0.0, 1.0, 0.0)
    found = query_direction(photo[None], text)
    assert found.norm() == pytest.approx(1) and found[2] == 0
    assert float(found[1] / found[0]) == pytest.approx(TEXT_WEIGHT / (1 - TEXT_WEIGHT))


def test_alone_each_is_its_own_direction():
    photo, text = unit(1.0, 2.0, 0.0), unit(0.0, 1.0, 3.0)
    assert torch.allclose(query_direction(photo[None], None), photo)
    assert torch.allclose(query_direction(None, text), text)
    with pytest.raises(ValueError, match="needs photos, a text, or both"):
        query_direction(None, None)


def test_many_photos_count_as_much_as_one():
    photos, text = torch.stack([unit(1.0, 0.0, 0.2), unit(1.0, 0.4, 0.0), unit(0.8, 0.0, 0.0)]), unit(0.0, 0.0, 1.0)
    together = query_direction(photos, None)
    assert torch.allclose(together, F.normalize(photos.sum(dim=0), dim=0))
    assert torch.allclose(query_direction(photos, text), query_direction(together[None], text))

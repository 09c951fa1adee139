import json

import pytest

from clipfh.core.errors import InputError
from clipfh.datasets import folder
from clipfh.datasets.garments_folder import Config, main


def test_garments_lie_as_anybody_s_photos_do_and_are_left_alone(tmp_path):
    config = Config(out=tmp_path / "wardrobe", num_identities=6, image_px=96)
    main(config)
    dataset = folder.read(config.out)
    prompts = json.loads((config.out / "prompts.json").read_text(encoding="utf-8"))
    item_ids = set(dataset.table["item_id"])
    assert (
        len(item_ids) == len(set(prompts.values())) == 6 and prompts.keys() == dataset.descriptions.keys() == item_ids
    )
    for item_id, prompt in prompts.items():
        assert item_id.split("_")[-1] in prompt  # jeans, dress
    assert not dataset.left_out
    with pytest.raises(InputError, match="is there already"):
        main(config)

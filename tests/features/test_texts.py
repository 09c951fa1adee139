"""Features of captions in a file: encoded once, made again for other captions, weights, or a damaged file."""

import torch
import torch.nn.functional as F

from clipfh.features.texts import MAX_KEPT, load_text_features


class Encoder:
    """Counts what it is asked for."""

    def __init__(self):
        self.seen = []

    def __call__(self, texts):
        self.seen += texts
        return F.normalize(torch.tensor([[len(text), text.count("a") + 1.0] for text in texts]), dim=1)


def test_encoded_once_in_batches_then_read_from_the_file(tmp_path):
    texts, encode = ["a", "bb", "aaa", "b", "abab"], Encoder()
    first = load_text_features(texts, encode, "weights", tmp_path, batch_size=2)
    assert encode.seen == texts and torch.equal(torch.from_numpy(first.copy()), Encoder()(texts))
    again = load_text_features(texts, encode, "weights", tmp_path)
    assert len(encode.seen) == 5 and (again == first).all() and again.filename  # a memory map


def test_other_captions_or_weights_are_encoded_anew(tmp_path):
    encode = Encoder()
    load_text_features(["a", "b"], encode, "weights", tmp_path)
    load_text_features(["b", "a"], encode, "weights", tmp_path)
    load_text_features(["a", "b"], encode, "other weights", tmp_path)
    assert len(encode.seen) == 6


def test_a_damaged_file_is_made_again(tmp_path):
    encode = Encoder()
    first = load_text_features(["a", "b"], encode, "weights", tmp_path).copy()
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:-5])
    assert (load_text_features(["a", "b"], encode, "weights", tmp_path) == first).all() and len(encode.seen) == 4


def test_few_files_are_kept(tmp_path):
    for number in range(MAX_KEPT + 3):
        load_text_features([str(number)], Encoder(), "weights", tmp_path)
    assert len(list(tmp_path.iterdir())) == MAX_KEPT

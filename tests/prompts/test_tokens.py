import pytest

from clipfh.core.errors import InputError
from clipfh.models.clip import load_clip
from clipfh.prompts.description import Description
from clipfh.prompts.structured import structure_prompt
from clipfh.prompts.tokens import TokenCounter, counter_of, token_counter


class Words:
    """A tokenizer of transformers in open_clip's wrapper: a word a token, an end token alone."""

    context_length = 12
    clean_fn = staticmethod(str.lower)

    class Inner:
        def __call__(self, text, add_special_tokens, truncation, verbose):
            assert not add_special_tokens and not truncation
            return {"input_ids": [len(word) for word in text.split()]}

        def num_special_tokens_to_add(self, pair):
            return 1

    tokenizer = Inner()


def test_other_tokenizers_are_counted_uncut_with_their_own_special_tokens():
    counter = token_counter(Words())
    assert counter == TokenCounter(counter.tokenizer, context_length=12, num_special=1)
    assert counter.encode("A Red MUG") == [1, 3, 3] and counter.count("A Red MUG") == 4
    prompts = {"a": ["word " * 11], "b": ["word " * 12, "word"]}
    assert counter.num_cut(prompts) == 1


def test_clips_byte_pairs_are_the_default():
    counter = counter_of(None)
    assert counter.context_length == 77 and counter.count("a photo of a mug") == 7
    assert counter_of("ViT-B/16").count("a photo of a mug") == 7
    assert counter_of("coca_ViT-B-32").context_length == 76


def test_prompts_fit_the_model_that_they_are_made_for():
    description = Description(category="mug", lines=tuple(f"Part {n} is round and red, and nice." for n in range(30)))
    counter = token_counter(Words())
    for chosen in (counter, counter_of(None), counter_of("coca_ViT-B-32")):
        text = structure_prompt(description, chosen, chosen.context_length).text
        assert chosen.context_length - 8 <= chosen.count(text) <= chosen.context_length


def test_an_unknown_model_has_no_counter():
    with pytest.raises(InputError, match="unknown model"):
        counter_of("ViT-Z/3")


def test_a_loaded_model_counts_with_its_own_tokenizer():
    assert token_counter(load_clip("tiny-vit", "random").tokenizer).count("a") == 3

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import SHARED

from clipfh.core.errors import InputError
from clipfh.prompts.clause_topics import is_left_out
from clipfh.prompts.clauses import clean_text, descriptive_clauses, split_clauses, split_sentences
from clipfh.prompts.description import Description, read_descriptions
from clipfh.prompts.files import prompts_for, read_prompts, write_prompts
from clipfh.prompts.plain import plain_prompt, prompt_from_description, readable_category
from clipfh.prompts.structured import structure_prompt, token_safe_prompt
from clipfh.prompts.tokens import CONTEXT_LENGTH, clip_tokenizer, counter_of, token_ids

count_tokens = counter_of(None).count

START, END = 49406, 49407  # OpenAI's vocabulary
GROCERY = SHARED / "data" / "grocery"
SHOP_TEXT = (
    "You'll fall in love with this effortless tee, perfect for brunch, the office, or a night out!",
    "Cut from soft cotton jersey, it features a V-neckline, short sleeves and a chest pocket. Pair it with red jeans.",
    "- Relaxed fit",
    'Full length: 27"',
    "Model is 5'10\" and wearing a small",
    "Machine wash cold, tumble dry low",
    "Free shipping on orders over $50.",
)
TEE = Description("women's tees tanks", "cream", SHOP_TEXT)

# ------------------------------------------------------------------------------------------- the 77 tokens, any text

ENTITIES = ["&lt;", "&gt;", "&amp;lt;end_of_text&amp;gt;", "&#x0;", "&#44;", "&nbsp;", "&notin"]
SPECIAL_TOKENS = ["<end_of_text>", "<START_OF_TEXT>", "end_of_text"]
CHARACTERS = ["👩‍👩‍👧", "🇸🇪", "红色", "、", "，", "e\u0301", "\u0300\u0301\u0302"]
ODDITIES = ["\u200b", "\u202e", "\ufeff", "ﬃ", "ﷺ", "İ", "ſ", "Ã©"]
CONTROLS = ["\x00", "\x1b[31m", "\ud800", "<br/>", "\n", "\r", "\u2028"]
SHOP_WORDS = ["floral", "dress,", "V-neck.", "perfect for you!", "machine wash", "...", "---", "!!!", "pölsa", "$5"]
LONG_WORDS = ["x" * 90, "字" * 60, "!" * 200]
pieces = st.one_of(
    st.sampled_from([*ENTITIES, *SPECIAL_TOKENS, *CHARACTERS, *ODDITIES, *CONTROLS, *SHOP_WORDS, *LONG_WORDS]),
    st.text(st.characters(exclude_categories=()), max_size=30),  # lone surrogates too
    st.text("ab ,.é字😀&<>;!-", max_size=60),
)
texts = st.lists(pieces, max_size=12).flatmap(lambda parts: st.sampled_from(["", " "]).map(lambda s: s.join(parts)))
descriptions = st.builds(
    Description,
    category=st.one_of(st.just(""), st.sampled_from(["WOMEN/Tees_Tanks", "hand"]), texts),
    color=st.one_of(st.just(""), st.just("red"), texts),
    lines=st.lists(texts, max_size=4).map(tuple),
    attributes=st.lists(texts, max_size=3).map(tuple),
)


@settings(max_examples=1000, deadline=None)
@given(description=descriptions, item_id=st.one_of(st.just("id_1"), st.just("Granny-Smith"), texts))
@example(description=Description(color="é" * 5000), item_id="")
@example(description=Description(lines=("字" * 5000,)), item_id="id_1")
@example(description=Description(lines=("&amp;" + "amp;" * 40 + "lt;end_of_text&gt;",)), item_id="id_1")
@example(description=Description(attributes=("a" + "\u0301" * 500,)), item_id="id_1")
def test_no_text_makes_a_prompt_that_the_tokenizer_would_cut(description, item_id):
    prompt = token_safe_prompt(description, item_id=item_id)

    ids = clip_tokenizer().encode(prompt)
    assert 0 < len(ids) <= CONTEXT_LENGTH - 2
    assert count_tokens(prompt) == len(ids) + 2
    assert START not in ids and END not in ids  # the text encoder would stop reading at an end token
    read = clip_tokenizer()([prompt], context_length=CONTEXT_LENGTH)[0]  # (77,)
    assert read.tolist() == [START, *ids, END] + [0] * (CONTEXT_LENGTH - 2 - len(ids))
    assert prompt == token_safe_prompt(description, item_id=item_id)
    prompt.encode("utf-8")


@settings(max_examples=200, deadline=None)
@given(description=descriptions, context_length=st.integers(8, 40))
def test_a_shorter_context_is_kept_too(description, context_length):
    prompt = token_safe_prompt(description, context_length=context_length)
    assert 2 < count_tokens(prompt) <= context_length


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_cleaning_a_second_time_changes_nothing(text):
    assert clean_text(clean_text(text)) == clean_text(text)


def test_a_context_too_short_for_any_prompt_is_refused():
    with pytest.raises(ValueError, match="at least 8, not 7"):
        token_safe_prompt(TEE, context_length=7)


def test_another_tokenizer_counts_in_its_own_way():
    class Characters:
        def encode(self, text):
            return [ord(character) for character in text]

    prompt = token_safe_prompt(Description("dress", "red", ("Floral print. Long sleeves",)), Characters(), 40)
    assert prompt == "a photo of a red dress. Floral print"  # 36 characters, start and end


# ------------------------------------------------------------------------------------------- what a prompt says


def test_a_shop_text_leaves_what_identifies_the_item():
    prompt = structure_prompt(TEE, item_id="id_00000001")
    assert prompt.text == (
        "a photo of a cream women's tee or tank top. Cut from soft cotton jersey, it features a V-neckline, "
        "short sleeves and a chest pocket. Relaxed fit"
    )
    assert (prompt.left_out, prompt.no_room, prompt.shortened) == (10, 0, "")


def test_attributes_lead():
    hand = Description("hand", attributes=("right hand", "fair skin"), lines=("Shiny nails.",))
    assert token_safe_prompt(hand) == "a photo of a hand, right hand, fair skin. Shiny nails"


def test_visible_sentences_come_before_the_others():
    description = Description("pear", lines=("Grown by a family. The shell is green.",))
    assert token_safe_prompt(description) == "a photo of a pear. The shell is green. Grown by a family"


def test_clauses_are_whole_or_absent_and_counted():
    clauses = [f"a {name} print on the {place} panel" for name in ("moon", "star") for place in ("front", "side")]
    prompt = structure_prompt(Description("dress", "red", (", ".join(clauses), "Lace trim")), context_length=36)
    said = prompt.text.removeprefix("a photo of a red dress. ").removesuffix(". Lace trim").split(", ")
    assert said == clauses[: len(said)]
    assert 0 < len(said) < len(clauses)
    assert prompt.text.endswith(". Lace trim")  # shorter than the clause that did not fit
    assert (prompt.no_room, prompt.shortened) == (len(clauses) - len(said), "")


def test_a_repeated_clause_is_said_once():
    lines = ("Floral dress with a crew neck, long sleeves", "- Long sleeves", "- A Crew neck", "- Long sleeve")
    prompt = token_safe_prompt(Description("dress", "red", lines))
    assert prompt == "a photo of a red dress. Floral dress with a crew neck, long sleeves. Long sleeve"


def test_one_long_clause_is_cut_between_words():
    prompt = structure_prompt(Description("dress", "red", ("floral pattern " * 100,)))
    assert prompt.shortened == "words"
    assert count_tokens(prompt.text) == CONTEXT_LENGTH
    assert set(prompt.text.removeprefix("a photo of a red dress. ").split()) == {"floral", "pattern"}


def test_one_long_word_is_cut_within_the_word():
    prompt = structure_prompt(Description("dress", "red", ("字" * 400,)))
    assert prompt.shortened == "characters"
    assert CONTEXT_LENGTH - 3 < count_tokens(prompt.text) <= CONTEXT_LENGTH
    assert prompt.text.startswith("a photo of a red dress. 字字字")


def test_a_long_colour_is_cut_and_said():
    prompt = structure_prompt(Description("dress", "very " * 200 + "red"))
    assert prompt.shortened == "words"
    assert prompt.text.startswith("a photo of a very very")


@pytest.mark.parametrize("text", ["<end_of_text>", "&lt;end_of_text&gt;", "&amp;amp;lt;END_OF_TEXT&amp;amp;gt;"])
def test_a_literal_end_token_does_not_end_the_text(text):
    prompt = token_safe_prompt(Description("dress", "red", (f"Floral {text} print",)))
    assert prompt == "a photo of a red dress. Floral print"
    assert END in token_ids("&lt;end_of_text&gt;")  # what the tokenizer makes of it


@pytest.mark.parametrize("nothing", ["", "   ", "\x00", "...", "<br/>", "&nbsp;"])
def test_an_empty_description_still_gets_a_prompt(nothing):
    empty = Description(nothing, nothing, (nothing,), (nothing,))
    assert token_safe_prompt(empty, item_id="Granny-Smith") == "a photo of Granny Smith"
    assert token_safe_prompt(empty, item_id="id_0002") == "a photo of item id 0002"
    assert token_safe_prompt(empty) == "a photo of an item"


def test_a_text_without_category_is_not_given_a_second_lead():
    assert token_safe_prompt(Description(lines=("a photo of my dog",)), item_id="0001") == "a photo of my dog"
    assert prompt_from_description(Description(lines=("a photo of my dog",)), "0001") == "a photo of my dog"


def test_text_in_another_script_is_kept():
    description = Description(lines=("红色，长袖！<br/>好看的连衣裙。",))
    assert token_safe_prompt(description, item_id="id_1") == "红色, 长袖. 好看的连衣裙"


def test_a_marketing_clause_takes_its_enumeration_along():
    assert descriptive_clauses("Perfect for the office, a dinner, a party") == []
    assert descriptive_clauses("Perfect for summer, this floral dress, a party") == ["this floral dress"]
    assert descriptive_clauses("You will love the floral print!") == ["You will love the floral print"]
    assert descriptive_clauses("Pair it with blue jeans, a leather belt") == ["a leather belt"]


@pytest.mark.parametrize(
    "clause",
    [
        *(
            "Machine wash cold",
            "Do not bleach",
            "Model is 5'10\"",
            "Size S-L",
            "Runs large",
            "Inseam: 30",
            "Free shipping",
        ),
        *(
            "$19.90",
            "Imported",
            "Your new favorite",
            "Store in a cool place",
            "Details",
            "style it with white sneakers",
        ),
        *("see www.shop.com", "a sale", "Details", "Runs large"),
    ],
)
def test_text_that_is_not_about_the_looks_is_left_out(clause):
    assert is_left_out(clause)


@pytest.mark.parametrize(
    "clause",
    ["Crew neck", "Designed in red and cream", "medium sized pear", "Long sleeves", "Collared", "Made from wool"],
)
def test_description_is_kept(clause):
    assert not is_left_out(clause)


def test_sentences_and_clauses_are_told_apart():
    sentences = split_sentences("Soft knit. Weighs 27.5 g; striped\n• Two pockets!")
    assert sentences == ["Soft knit", "Weighs 27.5 g", "striped", "Two pockets!"]
    clauses = split_clauses("Round neck, and 1,000 beads – lace: trimmed")
    assert clauses == ["Round neck", "1,000 beads", "lace", "trimmed"]


# ------------------------------------------------------------------------------------------- raw and plain prompts


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        ("Tees_Tanks", "tee or tank top"),
        ("WOMEN/Rompers_Jumpsuits", "women's romper or jumpsuit"),
        ("men's graphic tees", "men's graphic tee"),
        ("women's denim", "women's denim"),
        ("Pants", "pants"),
        ("passion fruit", "passion fruit"),
        ("", ""),
    ],
)
def test_categories_are_made_readable(category, expected):
    assert readable_category(category) == expected


@pytest.mark.parametrize(
    ("description", "item_id", "expected"),
    [
        (Description("women's dresses", "red"), "id_1", "a photo of a red women's dress"),
        (Description("men's pants", "olive"), "id_1", "a photo of olive men's pants"),
        (Description("Dresses", "cream, black"), "id_1", "a photo of a cream and black dress"),
        (Description("Dresses", "Mint/mustard"), "id_1", "a photo of a Mint and mustard dress"),
        (Description("apple"), "id_1", "a photo of an apple"),
        (Description("apple"), "Granny-Smith", "a photo of Granny Smith apple"),
        (Description("onion"), "Yellow-Onion", "a photo of Yellow Onion"),
        (Description("", "red"), "id_1", "a photo of red"),
        (Description(), "Granny_Smith", "a photo of Granny Smith"),
        (Description(), "0002", "a photo of item 0002"),
        (Description(), "", "a photo of an item"),
    ],
)
def test_plain_prompts(description, item_id, expected):
    assert plain_prompt(description, item_id) == expected


def test_raw_prompts_keep_everything():
    prompt = prompt_from_description(TEE, "id_1")
    assert prompt == "a photo of a cream women's tee or tank top. " + " ".join(SHOP_TEXT)
    assert count_tokens(prompt) > CONTEXT_LENGTH


def test_tokens_are_counted_with_start_and_end():
    assert count_tokens("") == 2
    assert count_tokens("a photo of a dress") == 7
    assert count_tokens("A &amp;amp; B") == 5  # HTML is undone twice before counting


# ------------------------------------------------------------------------------------------- files


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_prompts_are_read_as_lists_and_written_back(tmp_path):
    path = write(tmp_path / "p.json", {"b": ["one", "two"], "a": "three", "c": ["four"], "d": "half \ud800"})
    prompts = read_prompts(path)
    assert prompts == {"b": ["one", "two"], "a": ["three"], "c": ["four"], "d": ["half \ufffd"]}
    write_prompts(path, prompts)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "a": "three",
        "b": ["one", "two"],
        "c": "four",
        "d": "half \ufffd",
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "x",\n "b" "y"}', "line 2"),
        (["x"], "unexpected shape"),
        ({"a": 3}, "'a' must be a string or a list of strings, found 3"),
        ({"a": None}, "'a' must be a string or a list of strings, found None"),
        ({"a": ["x", {}]}, "'a' must be"),
        ({"fine": "x", "a": " "}, "the prompt of 'a' is empty"),
        ({"a": []}, "the prompt of 'a' is empty"),
        ({"a": ["x", ""]}, "the prompt of 'a' is empty"),
    ],
)
def test_bad_prompt_files_are_named(tmp_path, content, message):
    path = write(tmp_path / "p.json", content)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(path)
    assert str(path) in str(error.value)


def test_a_missing_prompt_file_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match="01_generate_prompts_from_descriptions"):
        read_prompts(tmp_path / "absent.json")


def test_empty_prompts_can_be_read_for_analysis(tmp_path):
    assert read_prompts(write(tmp_path / "p.json", {"a": "", "b": []}), allow_empty=True) == {"a": [], "b": []}


def test_identities_without_prompt_are_listed():
    prompts = {"a": ["x"], "b": []}
    assert prompts_for(["a", "a"], prompts, Path("p.json")) == {"a": ["x"]}
    with pytest.raises(InputError, match=r"p\.json: 2 of 3 identities without prompt: c, b\. .*01_generate"):
        prompts_for(["a", "c", "b"], prompts, Path("p.json"))
    with pytest.raises(InputError, match=r"24 of 24 .* 19, \.\.\."):
        prompts_for(map(str, range(24)), {}, Path("p.json"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "must be an object"),
        ({"category": 3}, '"category" of'),
        ({"lines": "text"}, '"lines" of'),
        ({"attributes": [1]}, '"attributes" of'),
    ],
)
def test_bad_descriptions_are_named(tmp_path, entry, message):
    path = write(tmp_path / "descriptions.json", {"id_7": entry})
    with pytest.raises(InputError, match=f"{message}.*'id_7'|'id_7'.*{message}"):
        read_descriptions(path)


def test_parts_of_a_description_may_be_absent(tmp_path):
    path = write(tmp_path / "descriptions.json", {"a": {}, "b": {"color": None, "lines": ["x"]}})
    assert read_descriptions(path) == {"a": Description(), "b": Description(lines=("x",))}


# ------------------------------------------------------------------------------------------- real texts, imports


def test_real_shop_texts():
    if not GROCERY.is_dir():
        pytest.skip(f"{GROCERY} is not on this machine")
    from clipfh.datasets import grocery

    described = grocery.read(GROCERY).descriptions
    raw = {item_id: prompt_from_description(description, item_id) for item_id, description in described.items()}
    safe = {item_id: token_safe_prompt(description, item_id=item_id) for item_id, description in described.items()}
    assert sum(count_tokens(prompt) > CONTEXT_LENGTH for prompt in raw.values()) >= 10  # else this proves nothing
    assert max(map(count_tokens, safe.values())) <= CONTEXT_LENGTH
    assert len(set(safe.values())) == len(safe) == 81
    assert safe["Golden-Delicious"].endswith("Golden Delicious has a white juicy pulp and a greenish yellow shell")


def test_open_clip_imports_after_the_guard_without_a_warning():
    command = "import clipfh.models.torchvision_guard, torchvision, timm, open_clip; open_clip.SimpleTokenizer()"
    arguments = ["-W", "error", "-W", "ignore::DeprecationWarning", "-c", command]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_guard_declares_only_what_is_missing():
    from clipfh.models import torchvision_guard

    assert hasattr(torch.ops.torchvision, "nms") and hasattr(torch.ops.torchvision, "qnms")
    from torchvision.extension import _has_ops

    assert (torchvision_guard._library is None) == _has_ops()


def test_reading_prompts_does_not_load_the_tokenizer():
    command = "import sys, clipfh.prompts.plain, clipfh.prompts.structured; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0

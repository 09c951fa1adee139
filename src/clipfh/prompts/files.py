"""Files of prompts: `{item_id: prompt or [prompts]}`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipfh.core.errors import InputError, shown
from clipfh.core.files import read_json, write_json
from clipfh.core.values import without_lone_surrogates
from clipfh.prompts.description import by_id

_MADE_BY = {  # file name to script; prompts of another name are a user's own, in the place of script 01's
    "image_prompts_clean.json": "03_filter_valid_identities.py",
    "image_prompts_cleaned_for_v4.json": "04_generate_structured_prompts_for_v4.py",
}


def read_prompts(path: Path, *, allow_empty: bool = False) -> dict[str, list[str]]:
    """Read `{item_id: prompt or [prompts]}`; every identity gets a list.

    Args:
        path: the JSON file.
        allow_empty: take identities without text, with an empty list, instead of raising.

    Raises:
        InputError: the file is missing or malformed; a value is no text; an identity has no or an empty prompt.
    """
    prompts: dict[str, list[str]] = {}
    for item_id, value in by_id(read_json(path, made_by=_made_by(path)), path):
        texts: list[Any] = value if isinstance(value, list) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise InputError(
                    f"{path}: the prompt of {item_id!r} must be a string or a list of strings, found {shown(text)}"
                )
        filled = [without_lone_surrogates(text) for text in texts if text.strip()]
        if len(filled) < max(len(texts), 1) and not allow_empty:
            raise InputError(
                f"{path}: the prompt of {item_id!r} is empty. Fill it in, or make the file with: {_made_by(path)}"
            )
        prompts[item_id] = filled
    return prompts


def write_prompts(path: Path, prompts: Mapping[str, str | list[str]]) -> None:
    """Write `{item_id: prompt}`, sorted by id; a list of one prompt becomes that prompt."""
    values = {}
    for item_id in sorted(prompts):
        value = prompts[item_id]
        values[item_id] = value[0] if isinstance(value, list) and len(value) == 1 else value
    write_json(path, values)


def prompts_for(item_ids: Iterable[str], prompts: Mapping[str, list[str]], path: Path) -> dict[str, list[str]]:
    """The prompts of the given identities, in their order; `path` is the file they came from.

    Raises:
        InputError: identities without a prompt; the first 20 are named.
    """
    item_ids = list(dict.fromkeys(item_ids))
    absent = [item_id for item_id in item_ids if not prompts.get(item_id)]
    if absent:
        named = ", ".join(absent[:20]) + (", ..." if len(absent) > 20 else "")
        raise InputError(
            f"{path}: {len(absent)} of {len(item_ids)} identities without prompt: {named}. Make them with: "
            f"{_made_by(path)}"
        )
    return {item_id: prompts[item_id] for item_id in item_ids}


def _made_by(path: Path) -> str:
    """The command that makes a file of prompts."""
    script = _MADE_BY.get(Path(path).name, "01_generate_prompts_from_descriptions.py")
    return f"python preprocessing/{script} --dataset NAME"

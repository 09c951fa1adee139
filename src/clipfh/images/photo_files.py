"""Which files below a folder are photos, and why the others are not: nothing is left out without being counted."""

import csv
import io
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from clipfh.core.errors import InputError, printable
from clipfh.core.files import write_text

# Pillow opens more than this: documents, films and measurements, which a folder of photos holds for other reasons.
PHOTO_FORMATS = frozenset(
    ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "TGA", "QOI")
)
# photos that Pillow cannot open, or not in every build of it
OTHER_PHOTOS = frozenset(
    suffix
    for suffixes in (".heic .heif .hif .avif .jxl .jp2 .psd .svg", ".raw .dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .pef")
    for suffix in suffixes.split()
)
NOT_A_PHOTO = "not a photo"
HIDDEN = "hidden, or left there by the system"
SYSTEM_NAMES = frozenset(("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"))
LeftOut = tuple[str, str]  # (file below the image root, reason)


@lru_cache(maxsize=1)
def photo_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the photos that the installed Pillow opens."""
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in PHOTO_FORMATS
        and (kind in Image.OPEN or kind == "MPO")  # an MPO is opened as the JPEG that it begins with
    )


def name_problem(name: str) -> str | None:
    """Why a file of this name is not taken for a photo, or None. Upper and lower case of a suffix are the same."""
    if name.startswith(".") or name.lower() in SYSTEM_NAMES:
        return HIDDEN
    if printable(name) != name:
        return "control characters in its name, or a name that is not UTF-8: rename them"
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in photo_suffixes():
        return None
    if suffix in OTHER_PHOTOS:
        return f"cannot be opened here ({suffix}): convert them to JPEG"
    if not suffix:
        return f"{NOT_A_PHOTO} (no suffix)"
    # numbered backups and the like would make a reason each
    kind = suffix if re.fullmatch(r"\.[a-z][a-z0-9]{0,7}", suffix) else "other suffix"
    return f"{NOT_A_PHOTO} ({kind})"


def file_problem(path: Path) -> str | None:
    """Why `path`, whatever its name, holds nothing to decode, or None. It is looked at, but not opened."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "broken link" if os.path.islink(path) else "file not found"
    except (OSError, ValueError):  # a loop of links, a folder that may not be entered, a NUL in the name
        return "broken link" if os.path.islink(path) else "cannot be looked at"
    if stat.S_ISDIR(status.st_mode):
        return "a folder"
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        return "not a regular file"
    return None if status.st_size else "empty file"


def find_photos(root: Path, folders: Collection[str] = ("**",)) -> tuple[list[str], list[LeftOut]]:
    """All photos below `root`, however deep, and all that is left out.

    Links to folders are followed, but every folder is looked into once: a loop ends, and the second way to a folder is
    left out. Hidden folders, and those that a system leaves behind (`__MACOSX`), count as one and are not looked into.

    Args:
        root: the image root.
        folders: look only into these folders below it, "" being the root itself without its folders.

    Returns:
        The photos, sorted, and (file, reason) of the others; paths are relative to `root`, with / separators.
    """
    photos, left_out = [], []
    for path, problem in _walk(root, folders):
        problem = problem or name_problem(path.rpartition("/")[2]) or file_problem(root / path)
        if problem is None:
            photos.append(path)
        else:  # a name that is not UTF-8 could not be printed
            left_out.append((path.encode(errors="backslashreplace").decode(), problem))
    return sorted(photos), sorted(left_out)


def _walk(root: Path, folders: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """(Path below the root, why it is left out if that is known) of files, and of folders that are not looked into."""
    waiting = deque([""] if "" in folders or "**" in folders else [folder for folder in folders if folder])
    linked: deque[str] = deque()  # after all others: a photo has the name of its own folder, not that of a link
    seen: set[tuple[int, int]] = set()
    while waiting or linked:
        folder = waiting.popleft() if waiting else linked.popleft()
        try:
            status = os.stat(root / folder)
            if (status.st_dev, status.st_ino) in seen:
                yield folder, "a link to a folder that is looked into already"
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            if os.path.lexists(root / folder):
                yield folder, "a folder that cannot be looked into"
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if not _is_folder(entry):
                yield path, None
            elif name_problem(entry.name) == HIDDEN:
                yield path, HIDDEN
            elif folder or "**" in folders:
                (linked if entry.is_symlink() else waiting).append(path)
        if folder == "" and "**" not in folders:
            waiting.extend(folder for folder in folders if folder)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def compare_with_list(
    root: Path,
    listed: Iterable[str],
    listing: str,
    *,
    folders: Collection[str] = ("**",),
    reasons: Mapping[str, str] | None = None,
) -> tuple[list[LeftOut], list[LeftOut]]:
    """Compare the files below `root` with the images that a dataset's list names.

    Args:
        root: the image root.
        listed: the images that are used, as paths below it; their suffixes may be any.
        listing: the name of the list, for the reason "not in LISTING".
        folders: as of `find_photos`.
        reasons: why further images of the list are not used.

    Returns:
        (file, reason) of the files that are left out, and of the listed images that cannot be read.
    """
    reasons = reasons or {}
    photos, others = find_photos(root, folders)
    found = {os.path.normpath(photo) for photo in photos}
    used = {os.path.normpath(image): image for image in listed}
    left_out = [(photo, reasons.get(photo, f"not in {listing}")) for photo in photos if photo not in used]
    left_out += [(file, reason) for file, reason in others if file not in used]
    checked = ((image, file_problem(root / image)) for path, image in used.items() if path not in found)
    return sorted(left_out), [(image, problem) for image, problem in checked if problem]


def meant_as_photos(left_out: Iterable[LeftOut]) -> list[LeftOut]:
    """Those that somebody may miss: without files that are no photos by their name, and those of the system."""
    return [(file, reason) for file, reason in left_out if reason != HIDDEN and not reason.startswith(NOT_A_PHOTO)]


def count_reasons(left_out: Iterable[LeftOut]) -> dict[str, int]:
    """How many files each reason left out, the most frequent first."""
    return dict(sorted(Counter(reason for _, reason in left_out).items(), key=lambda item: (-item[1], item[0])))


def account(num_used: int, left_out: Collection[LeftOut]) -> str:
    """What became of all files, for a terminal: `found 120 files: 100 used; left out: ...`, a line each reason."""
    found = f"found {num_used + len(left_out):,} files: {num_used:,} used"
    if not left_out:
        return found
    first: dict[str, str] = {}
    for file, reason in left_out:
        first.setdefault(reason, printable(file))
    lines = [
        f"left out: {number:,} ({why}), the first: {first[why]}" for why, number in count_reasons(left_out).items()
    ]
    return "\n".join([f"{found}, {len(left_out):,} left out", *lines])


def require_photos(root: Path, photos: Collection[str], left_out: Collection[LeftOut]) -> None:
    """Raise InputError, with the most frequent reasons, where nothing is left to use."""
    if not photos:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in list(count_reasons(left_out).items())[:3])
        raise InputError(f"{root} has no photo that can be used ({reasons or 'it is empty'})")


def write_left_out(path: Path, left_out: Iterable[LeftOut]) -> None:
    """Write the CSV `what,reason`, with a header even where nothing is left out."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("what", "reason"), *left_out])
    write_text(path, text.getvalue())

"""Where photos lie, in a folder or in a bucket, and how one of them becomes pixels."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from clipfh.core.errors import InputError, shortened, shown
from clipfh.images.pixels import why_unreadable
from clipfh.images.transforms import ImageSize, decode
from clipfh.index.packages import scale_package


@dataclass(frozen=True)
class FolderPhotos:
    """Photos below a folder that every process which decodes can open."""

    root: Path

    @property
    def address(self) -> str:
        """What `photos_at` finds them by."""
        return str(self.root)

    @contextmanager
    def local(self, photo: str) -> Iterator[Path]:
        """The file of a photo, whether it is there or not."""
        yield self.root / photo

    def stamp(self, photo: str) -> str:
        """What changes when the photo does: its size and modification time."""
        try:
            status = os.stat(self.root / photo)
        except OSError:
            return "missing"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def read(self, photo: str, image_size: ImageSize, resize_mode: str) -> np.ndarray | str:
        """The pixels (S, S, 3) uint8 of a photo, or why there are none."""
        path = self.root / photo
        try:
            return decode(path, image_size, resize_mode)
        except Exception as error:  # a damaged file makes a decoder raise anything: SyntaxError, struct.error, ...
            return why_unreadable(error, path, str(self.root))


@dataclass(frozen=True)
class BucketPhotos:
    """Photos below a URI such as `s3://bucket/photos`, fetched one by one; each process connects for itself."""

    uri: str

    @property
    def address(self) -> str:
        """What `photos_at` finds them by."""
        return self.uri

    @cached_property
    def _place(self) -> tuple[Any, str]:
        return open_bucket(self.uri)

    @contextmanager
    def local(self, photo: str) -> Iterator[Path]:
        """A photo as a temporary file.

        Raises:
            OSError: it is not there, or cannot be fetched.
        """
        with tempfile.NamedTemporaryFile(suffix=Path(photo).suffix) as file:
            self._fetch(photo, file)
            yield Path(file.name)

    def _fetch(self, photo: str, file: IO[bytes]) -> None:
        filesystem, root = self._place
        with filesystem.open_input_stream(f"{root}/{photo}") as stream:
            while block := stream.read(1 << 20):
                file.write(block)
        file.flush()

    def stamp(self, photo: str) -> str:
        """Nothing: to ask for a million objects' times would take hours. An object is taken to stay what it is."""
        return ""

    def read(self, photo: str, image_size: ImageSize, resize_mode: str) -> np.ndarray | str:
        """The pixels (S, S, 3) uint8 of a photo, or why there are none."""
        with tempfile.NamedTemporaryFile(suffix=Path(photo).suffix) as file:
            path = Path(file.name)
            try:
                self._fetch(photo, file)
                return decode(path, image_size, resize_mode)
            except Exception as error:  # as above; and what a network raises
                return why_unreadable(error, path, str(path.parent))


PhotoSource = FolderPhotos | BucketPhotos


def photos_at(image_dir: str) -> PhotoSource:
    """The photos below a folder or a URI.

    Raises:
        InputError: the folder does not exist, or the URI cannot be opened.
    """
    if is_uri(image_dir):
        open_bucket(image_dir)  # a wrong one is said now, not once a photo
        return BucketPhotos(image_dir)
    if not Path(image_dir).is_dir():
        raise InputError(f"the image folder {image_dir} does not exist; give it with --image_dir")
    return FolderPhotos(Path(image_dir).absolute())  # processes of Ray have a current folder of their own


def is_uri(text: str) -> bool:
    """Whether it names a scheme, as in `s3://bucket/photos`."""
    return "://" in text


def open_bucket(uri: str) -> tuple[Any, str]:
    """The file system of pyarrow that a URI is in, and the path in it; fsspec's where pyarrow does not know the scheme.

    Raises:
        InputError: neither knows the scheme, or it needs a package that is not there, or the place cannot be reached.
    """
    fs = scale_package("pyarrow.fs")
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path.rstrip("/")
    except (ValueError, OSError, NotImplementedError) as error:
        from_arrow = error
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError, OSError) as error:
        raise InputError(
            f"cannot open {shown(uri)} ({shortened(from_arrow, 80)}; {shortened(error, 80)}); give a folder, a table, "
            "or a URI such as s3://BUCKET/PHOTOS"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path.rstrip("/")

"""FER2013 as folders and as a CSV."""

import numpy as np
import pytest
from PIL import Image

from clipfh.core.errors import InputError
from clipfh.datasets.fer2013 import CSV_EMOTIONS, EMOTIONS, read_faces
from clipfh.drawn.faces import generate, render_face


@pytest.fixture
def folder(tmp_path):
    """Two train faces and one test face of each emotion; the grey level tells them apart."""
    for number, emotion in enumerate(EMOTIONS):
        for split, count in (("train", 2), ("test", 1)):
            (tmp_path / "faces" / split / emotion).mkdir(parents=True)
            for index in range(count):
                image = Image.new("L", (48, 48), 20 * number + 5 * index + (split == "test"))
                image.save(tmp_path / "faces" / split / emotion / f"{index}.png")
    return tmp_path / "faces"


def read(source, tmp_path, size=64, **flags):
    return read_faces(source, size, tmp_path / "cache", tmp_path / "unreadable.csv", **flags)


def test_folders_are_read(folder, tmp_path):
    splits = read(folder, tmp_path)
    assert list(splits) == ["train", "test"]
    assert splits["train"][:].shape == (14, 64, 64, 3) and splits["train"][:].dtype == np.uint8
    for name in splits:
        faces = splits[name]
        for pixels, label, path in zip(faces, faces.labels, faces.names, strict=True):
            assert path.split("/")[:2] == [name, EMOTIONS[label]]
            assert set(np.unique(pixels)) == {20 * label + 5 * int(path[-5]) + (name == "test")}


def test_take_keeps_rows_together(folder, tmp_path):
    faces = read(folder, tmp_path)["train"].take(np.array([3, 0]))
    assert faces.names == ("train/disgust/1.png", "train/angry/0.png") and list(faces.labels) == [1, 0]
    assert len(faces) == 2 and faces[0][0, 0, 0] == 25


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "train" / "bored").mkdir(), ["bored", "unknown emotion", "surprise"]),
        (lambda root: [p.unlink() for p in (root / "train" / "sad").iterdir()], ["sad", "holds no image"]),
        (lambda root: [p.unlink() for p in (root / "test" / "fear").iterdir()], ["fear", "holds no image"]),
        (lambda root: (root / "train").rename(root / "training"), ["no folder train/<emotion>/"]),
        (lambda root: (root / "test" / "sad").rename(root / "sad"), ["split test", "no face", "sad"]),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder, tmp_path, spoil, says):
    spoil(folder)
    with pytest.raises(InputError) as error:
        read(folder, tmp_path)
    assert all(text in str(error.value) for text in says), error.value


def test_unreadable_images_are_listed_and_left_out_on_demand(folder, tmp_path, capsys):
    (folder / "train" / "happy" / "0.png").write_text("no image")
    with pytest.raises(InputError, match=r"1 of 21 images cannot be read.*happy/0.png.*--skip_unreadable"):
        read(folder, tmp_path)
    splits = read(folder, tmp_path, skip_unreadable=True)
    assert len(splits["train"]) == 13 and "train/happy/0.png" not in splits["train"].names
    assert "left out 1 unreadable" in capsys.readouterr().out
    assert list(splits["train"].labels) == [0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6]


def test_photos_deeper_down_are_used_and_others_counted(folder, tmp_path, capsys):
    (folder / "train" / "happy" / "deep").mkdir()
    (folder / "train" / "happy" / "0.png").rename(folder / "train" / "happy" / "deep" / "0.PNG")
    for name in ("loose.jpg", "train/loose.jpg", "train/sad/a.heic", "train/sad/notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "train" / "__MACOSX").mkdir()
    splits = read(folder, tmp_path)
    assert len(splits["train"]) == 14 and "train/happy/deep/0.PNG" in splits["train"].names
    printed = capsys.readouterr().out
    assert "found 26 files: 21 used, 5 left out" in printed
    assert "left out: 2 (outside train/, val/ and test/<emotion>/), the first: loose.jpg" in printed


def csv_lines():
    """Two train faces, one val and one test face of each emotion; a corner pixel of its own."""
    lines = ["emotion,pixels,Usage"]
    for number in range(7):
        for usage, corner in (("Training", 1), ("Training", 2), ("PublicTest", 3), ("PrivateTest", 4)):
            lines.append(f"{number},{' '.join([str(corner)] + [str(30 * number)] * 2303)},{usage}")
    return lines


def test_a_csv_is_read(tmp_path):
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(csv_lines()) + "\n")
    splits = read(path, tmp_path, size=48)
    assert [(name, len(faces)) for name, faces in splits.items()] == [("train", 14), ("val", 7), ("test", 7)]
    for faces in splits.values():
        for pixels, label in zip(faces, faces.labels, strict=True):
            assert pixels.shape == (48, 48, 3) and (pixels[1:] == 30 * CSV_EMOTIONS.index(EMOTIONS[label])).all()
    assert {image[0, 0, 0] for image in splits["test"]} == {4}
    assert splits["train"].names[:2] == ("line 2", "line 3")
    assert read(path, tmp_path, size=64)["val"][:].shape == (7, 64, 64, 3)


def test_column_names_are_read_without_the_spaces_around_them(tmp_path):
    faces = [line.split(",") for line in csv_lines()[1:]]
    path, copy = tmp_path / "fer2013.csv", tmp_path / "icml_face_data.csv"
    path.write_text("\n".join(csv_lines()) + "\n")
    copy.write_text("\n".join(["emotion, Usage, pixels", *(f"{e},{usage},{pixels}" for e, pixels, usage in faces)]))
    for name, expected in read(path, tmp_path, size=48).items():
        same = read(copy, tmp_path, size=48)[name]
        assert (same[:] == expected[:]).all() and (same.labels == expected.labels).all()


@pytest.mark.parametrize(
    ("line", "content", "says"),
    [
        (1, "emotion,pixels", "line 1: no column Usage"),
        (5, "0,1 2 3,Training", "line 5: 3 pixels, not 48 x 48 = 2304"),
        (9, "1," + "0 " * 2305 + ",Training", "line 9: 2305 pixels"),
        (3, "7," + "0 " * 2304 + ",Training", "line 3: unknown emotion '7'; valid: 0 angry"),
        (3, "sad," + "0 " * 2304 + ",Training", "line 3: unknown emotion 'sad'"),
        (3, "-1," + "0 " * 2304 + ",Training", "line 3: unknown emotion '-1'"),
        (4, "1," + "0 " * 2303 + "256,Training", "line 4: pixels must lie in 0..255, not 0..256"),
        (4, "1," + "0 " * 2303 + "9" * 40 + ",Training", "line 4: a pixel is not a whole number"),
        (4, "1," + "0 " * 2303 + "x,Training", "line 4: a pixel is not a whole number"),
        (4, "1," + "0 " * 2304 + ",Test", "line 4: unknown Usage 'Test'; valid: Training"),
        (4, "1", "line 4: unknown Usage ''"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, content, says):
    path, lines = tmp_path / "fer2013.csv", csv_lines()
    lines[line - 1] = content
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError) as error:
        read(path, tmp_path)
    assert str(path) in str(error.value) and says in str(error.value)


def test_files_that_are_no_csv_of_faces_are_refused(tmp_path):
    path = tmp_path / "fer2013.csv"
    for content, says in ((b"", "no column"), (b"\xff\xfe\x00", "not a CSV"), (b"emotion,pixels,Usage\n", "Training")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=says):
            read(path, tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "gone", tmp_path)


def test_generated_faces_have_the_layout_and_are_made_once(tmp_path):
    generate(tmp_path / "made", num_train=3, num_test=2, seed=1)
    splits = read(tmp_path / "made", tmp_path, size=48)
    assert {name: len(faces) for name, faces in splits.items()} == {"train": 21, "test": 14}
    images = [image.tobytes() for faces in splits.values() for image in faces]
    assert len(set(images)) == 35
    path = tmp_path / "made" / "train" / "sad" / "0000.png"
    before = path.stat().st_mtime_ns, path.read_bytes()
    generate(tmp_path / "made", num_train=3, num_test=2, seed=1)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    generate(tmp_path / "made", num_train=2, num_test=2, seed=2)
    assert path.read_bytes() != before[1] and not (path.parent / "0002.png").exists()


def test_generated_faces_never_replace_other_files(tmp_path):
    (tmp_path / "photo.png").write_text("mine")
    with pytest.raises(InputError, match="not generated here"):
        generate(tmp_path, num_train=1, num_test=1, seed=0)
    assert (tmp_path / "photo.png").read_text() == "mine"


def test_emotions_of_generated_faces_differ_in_the_mouth():
    """The mean mouth of one emotion is unlike another's, by more than between two halves of one emotion."""
    import random

    def mean_mouth(emotion, start):
        faces = [render_face(emotion, random.Random(f"{emotion} {start + n}")) for n in range(40)]
        return np.mean([np.asarray(face, dtype=float)[26:44, 12:36] for face in faces], axis=0)

    def apart(first, second):
        return np.abs((first - first.mean()) - (second - second.mean())).mean()

    same = apart(mean_mouth("happy", 0), mean_mouth("happy", 100))
    for other in ("surprise", "sad", "fear"):
        assert apart(mean_mouth("happy", 0), mean_mouth(other, 0)) > 1.5 * same

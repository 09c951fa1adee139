"""clipfh.drawn.generated_folder: whole or not at all."""

import json

import pytest

from clipfh.core.errors import InputError
from clipfh.drawn.generated_folder import PARAMETERS, generated_folder, in_processes, is_generated

PARAMETERS_1, PARAMETERS_2 = {"seed": 1}, {"seed": 2}


def make(root, parameters, text="made"):
    with generated_folder(root, parameters) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)


def test_a_folder_is_known_by_its_parameters_and_its_files(tmp_path):
    root = tmp_path / "deep" / "data"
    assert not is_generated(root, PARAMETERS_1)
    make(root, PARAMETERS_1)
    assert is_generated(root, PARAMETERS_1) and not is_generated(root, PARAMETERS_2)
    assert json.loads((root / PARAMETERS).read_text()) == {"seed": 1, "num_files": 1}
    (root / ".DS_Store").write_text("of a file manager")
    assert is_generated(root, PARAMETERS_1)
    (root / "inner" / "a.txt").unlink()
    assert not is_generated(root, PARAMETERS_1)


def test_another_generation_replaces_the_folder(tmp_path):
    make(tmp_path / "data", PARAMETERS_1, "old")
    make(tmp_path / "data", PARAMETERS_2, "new")
    assert (tmp_path / "data" / "inner" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_failure_leaves_the_folder_as_it_was(tmp_path):
    make(tmp_path / "data", PARAMETERS_1, "old")
    with pytest.raises(RuntimeError), generated_folder(tmp_path / "data", PARAMETERS_2) as folder:
        (folder / "half.txt").write_text("half")
        raise RuntimeError
    assert is_generated(tmp_path / "data", PARAMETERS_1)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_another_process_finished_first_is_left_alone(tmp_path):
    with generated_folder(tmp_path / "data", PARAMETERS_1) as folder:
        (folder / "a.txt").write_text("second")
        make(tmp_path / "data", PARAMETERS_1, "first")
    assert (tmp_path / "data" / "inner" / "a.txt").read_text() == "first"


@pytest.mark.parametrize("generated", ["[]", "{", '{"seed": 1}'])
def test_a_damaged_record_is_not_trusted(tmp_path, generated):
    make(tmp_path / "data", PARAMETERS_1)
    (tmp_path / "data" / PARAMETERS).write_text(generated)
    assert not is_generated(tmp_path / "data", PARAMETERS_1)


def test_files_of_others_are_never_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    make(tmp_path / "data", PARAMETERS_1)  # an empty folder may be filled
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("mine")
    for taken in (tmp_path / "photos", tmp_path / "photos" / "mine.jpg"):
        with pytest.raises(InputError, match="not generated here") as refused, generated_folder(taken, PARAMETERS_1):
            pass
        assert "remove" not in str(refused.value)  # they may be somebody's only photos
    assert (tmp_path / "photos" / "mine.jpg").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), generated_folder(tmp_path / "file" / "data", PARAMETERS_1):
        pass


@pytest.mark.parametrize("num_processes", [None, 1, 2])
def test_results_are_in_order_for_any_number_of_processes(num_processes):
    calls = [(number, 2) for number in range(12)]
    assert list(in_processes(pow, calls, num_processes)) == [number**2 for number in range(12)]

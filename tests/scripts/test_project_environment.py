import ast
import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT))
import project_environment

HOOKED = "import sys; sys.path.insert(0, {root!r}); import project_environment; print(sys.executable, sys.argv[1:])"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of set-up in a folder with a blank in its name, with neither sources nor .venv that work."""
    folder = tmp_path / "a checkout"
    (folder / "src" / "clipfh").mkdir(parents=True)
    (folder / "src" / "clipfh" / "__init__.py").touch()
    for name in ("project_environment.py", "constraints.txt", "pyproject.toml", "set_up.sh"):
        shutil.copy(ROOT / name, folder)
    return folder


def clean_environment(**variables: str) -> dict[str, str]:
    left_out = {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON", "PYTHONPATH"}
    return {**{key: value for key, value in os.environ.items() if key not in left_out}, **variables}


def bare_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """A Python without site-packages, as of a user who has activated nothing."""
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, env=clean_environment(**variables), capture_output=True, text=True)


def make_venv_python(folder: Path, script: str) -> Path:
    """A stand-in for `.venv/bin/python`."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/usr/bin/env bash\n" + script)
    python.chmod(0o755)
    return python


def set_up(folder: Path, *extras: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(folder / "set_up.sh"), *extras],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_this_environment_satisfies_the_constraints() -> None:
    assert project_environment.lacking(["test"]) == []


def test_every_declared_requirement_is_pinned() -> None:
    from packaging.requirements import Requirement

    pins = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for version in ("3.10", "3.11", "3.13"):
        pinned = {
            pin.name.lower().replace("_", "-")
            for pin in pins
            if pin.marker is None or pin.marker.evaluate({"python_version": version})
        }
        for text in project_environment._declared_requirements(
            ["test", "lint", "hf", "lora", "scale", "export", "app", "docs"]
        ):
            assert Requirement(text).name.lower().replace("_", "-") in pinned
    assert all(str(pin.specifier).startswith("==") for pin in pins)


def test_declared_requirements_are_what_the_project_imports() -> None:
    sources = [path for folder in ("src", "preprocessing", "model") for path in (ROOT / folder).rglob("*.py")]
    imported = set()
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {name.split(".")[0] for name in names}
    imported -= {*sys.stdlib_module_names, *(path.stem for path in sources), "clipfh", "project_environment"}
    through = {"tensorboard", "timm", "torchvision"}  # imported by torch and by open_clip
    imported -= {"huggingface_hub", "transformers", "tokenizers", "peft"}  # of open_clip, and of the extras hf and lora
    imported -= {"fsspec", "onnxruntime", "gradio", "playwright"}  # of torch, and of the extras export, app and docs
    modules = {"open_clip_torch": "open_clip", "Pillow": "PIL", "PyYAML": "yaml", "scikit-learn": "sklearn"}
    declared = [re.split("[<>=]", text)[0] for text in project_environment._declared_requirements([])]
    assert imported | through == {modules.get(name, name) for name in declared}


def test_other_version_and_missing_package_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==1.0  # old\nPillow==999 ; python_version < '3'\nsympy==0.1\n")
    monkeypatch.setattr(project_environment, "CONSTRAINTS", constraints)
    monkeypatch.setattr(
        project_environment, "_declared_requirements", lambda extras: ["numpy", "torch", "Not_There>=2"]
    )
    lacking = project_environment.lacking()
    assert [text.split(" ")[0] for text in lacking] == [
        "not-there",
        "numpy==1.0",
        "sympy==0.1",
    ]  # sympy: torch needs it


def test_scripts_run_where_the_package_can_be_imported() -> None:
    result = subprocess.run([sys.executable, "-c", HOOKED.format(root=str(ROOT)), "a"], capture_output=True, text=True)
    assert result.stdout.strip() == f"{sys.executable} ['a']"


def test_bare_python_without_venv_is_told_what_to_run(checkout: Path) -> None:
    result = bare_python("-c", HOOKED.format(root=str(checkout)))
    assert result.returncode == 2
    assert "run_all.sh --setup-only" in result.stderr
    assert "Traceback" not in result.stderr


def test_bare_python_starts_the_same_command_with_the_venv(checkout: Path) -> None:
    python = make_venv_python(checkout, 'printf "%s\\n" "$0" "$@"\n')
    script = checkout / "script.py"
    script.write_text(HOOKED.format(root=str(checkout)))
    result = bare_python(str(script), "--flag", "two words", "")
    assert result.stdout.splitlines() == [str(python), "-S", str(script), "--flag", "two words", ""]


def test_venv_that_lacks_packages_does_not_start_itself_again(checkout: Path) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    command = [str(python), "-S", "-c", HOOKED.format(root=str(checkout))]  # without site-packages
    result = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")


def test_unfinished_venv_is_not_used(checkout: Path) -> None:
    make_venv_python(checkout, "echo used\n")
    (checkout / ".venv" / ".set-up-unfinished").touch()
    result = bare_python("-c", HOOKED.format(root=str(checkout)))
    assert (result.returncode, result.stdout) == (2, "")


def test_satisfied_python_without_the_package_takes_the_sources_of_this_checkout(checkout: Path) -> None:
    code = (
        HOOKED.format(root=str(checkout))
        + "; import clipfh, os; print(clipfh.__file__); print(os.environ['PYTHONPATH'])"
    )
    result = subprocess.run([sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True)
    assert result.stdout.splitlines()[1:] == [str(checkout / "src/clipfh/__init__.py"), str(checkout / "src")]


def test_activated_environment_that_satisfies_is_used_and_nothing_is_installed(checkout: Path) -> None:
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        result = set_up(checkout, "test", **{variable: sys.prefix})
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"{sys.prefix}/bin/python\n"
    assert not (checkout / ".venv").exists()


def test_activated_environment_that_does_not_satisfy_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    make_venv_python(checkout, "exit 0\n")  # a .venv that lacks nothing
    other = tmp_path / "other"
    make_venv_python(tmp_path / "other", "echo numpy==9; exit 1\n")
    shutil.move(other / ".venv" / "bin", other / "bin")
    result = set_up(checkout, VIRTUAL_ENV=str(other))
    assert result.stdout == f"{checkout}/.venv/bin/python\n"
    assert f"{other} lacks numpy==9" in result.stderr


def test_interrupted_venv_is_made_again_and_a_failing_pip_says_so(checkout: Path) -> None:
    make_venv_python(checkout, "exit 0\n")
    (checkout / ".venv" / "leftover").touch()
    (checkout / ".venv" / ".set-up-unfinished").touch()
    result = set_up(checkout, PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert (result.returncode, result.stdout) == (1, "")
    assert "interrupted" in result.stderr
    assert "pip could not install" in result.stderr
    assert not (checkout / ".venv" / "leftover").exists()
    assert (checkout / ".venv" / "pyvenv.cfg").exists()
    assert not (checkout / ".venv" / ".set-up-unfinished").exists()  # pip failed cleanly: the next set-up goes on


def test_python_that_cannot_make_a_venv_says_so(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "venv.py").write_text("raise SystemExit(1)\n")
    result = set_up(checkout, PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert "cannot make a virtual environment" in result.stderr
    assert (checkout / ".venv" / ".set-up-unfinished").exists()  # the next set-up makes it again


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        (["a Python that starts"], ["make", "install"]),  # such as after an upgrade of the system's Python
        (["numpy==1.0"], ["install"]),
        (["clipfh of this checkout"], ["install"]),  # such as after the checkout was moved
        ([], []),  # another set-up has just finished it
    ],
)
def test_venv_is_completed_rather_than_made_again(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, lacking: list[str], expected: list[str]
) -> None:
    done: list[str] = []
    venv_python = make_venv_python(checkout, "")
    monkeypatch.setattr(project_environment, "VENV", checkout / ".venv")
    monkeypatch.setattr(project_environment, "VENV_PYTHON", venv_python)
    monkeypatch.setattr(project_environment, "UNFINISHED", checkout / ".venv" / "unfinished")
    monkeypatch.setattr(project_environment, "_make_venv", lambda: done.append("make"))
    monkeypatch.setattr(project_environment, "_install", lambda extras: done.append("install"))
    monkeypatch.setattr(
        project_environment, "_lacking_in", lambda *_, **__: [] if done and done[-1] == "install" else lacking
    )
    project_environment._complete_venv([])
    assert done == expected
    assert venv_python.exists() == ("make" not in expected)


def test_a_set_up_says_that_it_waits_for_another_and_uses_what_that_made(checkout: Path) -> None:
    python = make_venv_python(checkout, "exit 1\n")
    with open(checkout / "constraints.txt", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = subprocess.Popen(
            ["bash", str(checkout / "set_up.sh")],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert f"another command is setting up {checkout}/.venv: waiting" in waiting.stderr.readline()
        python.write_text("#!/usr/bin/env bash\nexit 0\n")
    made, said = waiting.communicate(timeout=60)
    assert (waiting.returncode, made, said) == (0, f"{python}\n", "")


def test_python_that_is_too_old_or_missing_is_named(checkout: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.8"
    old.write_text("#!/usr/bin/env bash\nexit 1\n")
    old.chmod(0o755)
    for python in (str(old), "no-such-python"):
        result = set_up(checkout, PYTHON=python)
        assert result.returncode == 2
        assert "no Python 3.10 or newer" in result.stderr
        assert python in result.stderr


def test_unknown_extra_is_an_error(checkout: Path) -> None:
    make_venv_python(checkout, f'exec "{sys.executable}" "$@"\n')
    result = set_up(checkout, "tests", PYTHON=sys.executable)
    assert result.returncode != 0
    assert "no extra 'tests'" in result.stderr

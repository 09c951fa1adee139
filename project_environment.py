"""Which Python runs the project. Only the standard library is needed to get started.

Imported, as the first thing in every script: where this Python lacks the project's packages, the script is started
again with the project's `.venv`.

Run, by `set_up.sh`: `python project_environment.py [EXTRA ...]` uses the activated environment if that satisfies
`constraints.txt`, else makes or completes `.venv`, and prints the interpreter to use. With `--check` it prints what
this interpreter lacks and installs nothing.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "src"
CONSTRAINTS = ROOT / "constraints.txt"
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
UNFINISHED = VENV / ".set-up-unfinished"  # there while pip works; still there after an interrupted set-up
DOES_NOT_START = "a Python that starts"


def use_project_environment():
    """Return if this Python can run the project; else start the same command with the Python of `.venv`."""
    if _importable():
        return
    if not lacking():
        # Everything is here but the package itself, or clipfh is another checkout's: take the sources beside us.
        sys.path.insert(0, str(SOURCES))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
        return
    if VENV_PYTHON.exists() and not UNFINISHED.exists() and Path(sys.prefix).resolve() != VENV.resolve():
        sys.stdout.flush()
        arguments = getattr(sys, "orig_argv", [sys.executable, *sys.argv])  # keeps the flags before the script, too
        os.execv(str(VENV_PYTHON), [str(VENV_PYTHON), *arguments[1:]])
    print(f"error: {sys.executable} lacks the packages of this project, and {VENV} is not set up.", file=sys.stderr)
    print(f"Set it up once: bash {ROOT / 'run_all.sh'} --setup-only", file=sys.stderr)
    sys.exit(2)


def _importable():
    """Whether clipfh of this checkout and what it stands on can be imported; nothing is imported to find out."""
    spec = importlib.util.find_spec("clipfh")
    if spec is None or spec.origin is None or SOURCES not in Path(spec.origin).resolve().parents:
        return False
    return all(importlib.util.find_spec(name) for name in ("torch", "open_clip"))


def lacking(extras=()):
    """Say what this interpreter lacks to satisfy `constraints.txt`, one text an item.

    Every package that the project needs, directly or not, must be installed in the pinned version.
    """
    if sys.version_info < (3, 10):  # noqa: UP036  (this file is also what an old Python meets first)
        return [f"Python 3.10 or newer (it is {sys.version.split()[0]})"]
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError:  # itself among the packages that are needed
        return ["all packages"]
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()]
    constraints = [Requirement(line) for line in lines if line]
    pins = {canonicalize_name(pin.name): pin for pin in constraints if pin.marker is None or pin.marker.evaluate()}

    found, missing = set(), []
    needed = [Requirement(text) for text in _declared_requirements(extras)]
    while needed:
        requirement = needed.pop()
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(str(pins.get(name, name)).split(";")[0])
            continue
        pin = pins.get(name)
        if pin is not None and not pin.specifier.contains(distribution.version, prereleases=True):
            missing.append(f"{name}{pin.specifier} (it has {distribution.version})")
        needed += _needed_by(distribution, requirement.extras, Requirement)
    return sorted(missing)


def _declared_requirements(extras):
    """The requirement texts of pyproject.toml; Python 3.10 has no TOML parser, so its lists are read as text."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = dict(re.findall(r'^(\w+) = \[((?:[^\]"]|"[^"]*")*)\]', text, flags=re.MULTILINE))
    for extra in extras:
        if extra not in lists:
            sys.exit(f"error: pyproject.toml has no extra {extra!r}")
    return [requirement for key in ("dependencies", *extras) for requirement in re.findall(r'"([^"]*)"', lists[key])]


def _needed_by(distribution, extras, requirement_class):
    requirements = [requirement_class(text) for text in distribution.requires or ()]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def set_up(extras):
    """Return the interpreter of an environment that satisfies the constraints, installing what is missing."""
    for prefix, python in _chosen_by_user():
        problems = _lacking_in(python, extras)
        if not problems:
            return python
        _say(f"{prefix} lacks {_shortened(problems)}: using {VENV} instead")
    if not UNFINISHED.exists() and VENV_PYTHON.exists() and not _lacking_in(VENV_PYTHON, extras, installed=True):
        return VENV_PYTHON
    with _one_at_a_time():
        _complete_venv(extras)
    return VENV_PYTHON


def _chosen_by_user():
    """The activated environment and the Python named by the user, but not `.venv` itself."""
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = os.environ.get(variable)
        if prefix and Path(prefix).resolve() != VENV.resolve():
            yield f"the activated environment {prefix}", Path(prefix) / "bin" / "python"
    if os.environ.get("PYTHON") and Path(sys.prefix).resolve() != VENV.resolve():
        yield sys.executable, Path(sys.executable)


def _lacking_in(python, extras, installed=False):
    """What another interpreter lacks; `installed` asks for the package itself, too."""
    command = [str(python), str(Path(__file__).resolve()), "--check", *(["--installed"] if installed else []), *extras]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return [DOES_NOT_START]
    return result.stdout.splitlines() or ([] if result.returncode == 0 else [DOES_NOT_START])


def _complete_venv(extras):
    if UNFINISHED.exists():
        _say(f"an earlier set-up of {VENV} was interrupted: making it again")
        shutil.rmtree(VENV)
    if VENV.exists():
        problems = _lacking_in(VENV_PYTHON, extras, installed=True)
        if not problems:
            return  # another set-up has just finished it
        if DOES_NOT_START in problems:
            _say(f"{VENV_PYTHON} does not start: making {VENV} again")
            shutil.rmtree(VENV)
    if not VENV.exists():
        _make_venv()
    _install(extras)
    problems = _lacking_in(VENV_PYTHON, extras, installed=True)
    if problems:
        sys.exit(f"error: {VENV} still lacks {_shortened(problems)}. Remove it and run the same command again.")
    _say(f"{VENV} is ready")


def _make_venv():
    _say(f"making {VENV} with Python {sys.version.split()[0]} ({sys.executable})")
    VENV.mkdir()
    UNFINISHED.touch()
    has_ensurepip = importlib.util.find_spec("ensurepip") is not None
    commands = [[sys.executable, "-m", "venv", *([] if has_ensurepip else ["--without-pip"]), str(VENV)]]
    if not has_ensurepip:  # Debian keeps it in python3-venv; the pip outside can fill the environment as well
        commands.append([sys.executable, "-m", "pip", "--python", str(VENV_PYTHON), "install", "--quiet", "pip"])
    for command in commands:
        if subprocess.run(command, stdout=sys.stderr).returncode:
            shutil.rmtree(VENV)
            sys.exit(
                f"error: {sys.executable} cannot make a virtual environment (its message is above). On Debian and "
                "Ubuntu: apt install python3-venv. Or name another Python: PYTHON=/path/to/python3 bash run_all.sh"
            )


def _install(extras):
    project = str(ROOT) + (f"[{','.join(extras)}]" if extras else "")
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    _say("installing the versions of constraints.txt; the first time this takes some minutes")
    UNFINISHED.touch()
    # setuptools first: without build isolation it is the pinned one that builds the package.
    for arguments in (["setuptools"], ["--no-build-isolation", "--editable", project]):
        code = subprocess.run([*pip, *arguments], stdout=sys.stderr, env={**os.environ, "PIP_USER": "0"}).returncode
        if code:
            if code > 0:
                UNFINISHED.unlink()  # pip has cleaned up after itself; the next set-up goes on from here
            sys.exit(
                "error: pip could not install the packages (its message is above). Check the network and "
                "`pip config list`, then run the same command again."
            )
    UNFINISHED.unlink()


@contextlib.contextmanager
def _one_at_a_time():
    """Hold a lock that the system lets go of with the process; a file that is always there serves as its handle."""
    import fcntl

    with open(CONSTRAINTS, "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another set-up of this checkout is running: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _shortened(problems):
    return ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")


def _say(text):
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def main():
    """Check or set up, as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="extras of pyproject.toml, such as test and lint")
    parser.add_argument("--check", action="store_true", help="print what this interpreter lacks; install nothing")
    parser.add_argument("--installed", action="store_true", help="with --check: clipfh itself must be importable, too")
    options = parser.parse_args()
    _declared_requirements(options.extras)  # an unknown extra ends here
    if not options.check:
        print(set_up(options.extras))
        return
    problems = lacking(options.extras)
    if options.installed and not problems and not _importable():
        problems = ["clipfh of this checkout"]
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"error: {error}")
else:
    use_project_environment()

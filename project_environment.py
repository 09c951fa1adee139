"""Which Python runs the project. Only the standard library is needed to get started.

Imported, as the first thing in every script: where this Python lacks the project's packages, the script is started
again with the project's `.venv`.

Run, by `set_up.sh`: `python project_environment.py [EXTRA ...]` uses the activated environment if that satisfies
`constraints.txt`, else makes or completes `.venv`, and prints the interpreter to use. With `--check` first it prints
what this interpreter lacks and installs nothing.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SOURCES, CONSTRAINTS, VENV = ROOT / "src", ROOT / "constraints.txt", ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
UNFINISHED = VENV / ".set-up-unfinished"  # there while it is made or filled; still there after an interrupted set-up
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
    if VENV_PYTHON.exists() and not UNFINISHED.exists() and not _is_venv(Path(sys.executable).parent.parent):
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


def _is_venv(prefix):
    return Path(prefix).resolve() == VENV.resolve()


def lacking(extras=()):
    """Say what this interpreter lacks: of all that the project needs, directly or not, what is not as pinned."""
    if sys.version_info < (3, 10):  # noqa: UP036  (this file is also what an old Python meets first)
        return [f"Python 3.10 or newer (it is {sys.version.split()[0]})"]
    try:
        from packaging.requirements import Requirement
        from packaging.utils import canonicalize_name
    except ImportError:  # itself among the packages that are needed
        return ["all packages"]

    def applies(requirement, extras=()):
        return requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras))

    lines = re.findall(r"^[^#\s][^#\n]*", CONSTRAINTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, lines) if applies(pin)}
    found, missing = set(), []
    needed = [Requirement(text) for text in _declared_requirements(extras)]
    for requirement in needed:  # which grows
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        found.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(str(pins.get(name, name)).split(";")[0])
            continue
        if name in pins and not pins[name].specifier.contains(distribution.version, prereleases=True):
            missing.append(f"{name}{pins[name].specifier} (it has {distribution.version})")
        own = map(Requirement, distribution.requires or ())
        needed += [one for one in own if applies(one, requirement.extras)]
    return sorted(missing)


def _declared_requirements(extras):
    """The requirement texts of pyproject.toml; Python 3.10 has no TOML parser, so its lists are read as text."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = dict(re.findall(r'^(\w+) = \[((?:[^\]"]|"[^"]*")*)\]', text, flags=re.MULTILINE))
    for extra in extras:
        if extra not in lists:
            sys.exit(f"error: pyproject.toml has no extra {extra!r}")
    return [requirement for key in ("dependencies", *extras) for requirement in re.findall(r'"([^"]*)"', lists[key])]


def set_up(extras):
    """Return the interpreter of an environment that satisfies the constraints, installing what is missing."""
    activated = filter(None, map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX")))
    chosen = [(prefix, Path(prefix) / "bin" / "python") for prefix in activated]
    if os.environ.get("PYTHON"):
        chosen.append((sys.prefix, Path(sys.executable)))
    for prefix, python in chosen:
        if not _is_venv(prefix):
            problems = _lacking_in(python, extras)
            if not problems:
                return python
            _say(f"{prefix} lacks {_shortened(problems)}: using {VENV} instead")
    if UNFINISHED.exists() or _lacking_in(VENV_PYTHON, extras):
        import fcntl

        with open(CONSTRAINTS, "ab") as handle:  # always there: the handle of a lock that ends with the process
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"another command is setting up {VENV}: waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            _complete_venv(extras)
    return VENV_PYTHON


def _lacking_in(python, extras):
    """What another interpreter lacks; that of `.venv` needs the package itself, too."""
    try:
        result = subprocess.run([python, __file__, "--check", *extras], capture_output=True, text=True)
    except OSError:
        return [DOES_NOT_START]
    return result.stdout.splitlines() or ([] if result.returncode == 0 else [DOES_NOT_START])


def _complete_venv(extras):
    problems = [DOES_NOT_START] if UNFINISHED.exists() else _lacking_in(VENV_PYTHON, extras)
    if not problems:
        return  # another set-up has just finished it
    if DOES_NOT_START in problems:
        if VENV.exists():
            _say(f"{VENV} does not start, or its set-up was interrupted: making it again")
            shutil.rmtree(VENV)
        _make_venv()
    _install(extras)
    problems = _lacking_in(VENV_PYTHON, extras)
    if problems:
        sys.exit(f"error: {VENV} still lacks {_shortened(problems)}. Remove it and run the same command again.")


def _make_venv():
    _say(f"making {VENV} with Python {sys.version.split()[0]} ({sys.executable})")
    VENV.mkdir()
    UNFINISHED.touch()
    commands = [["venv", str(VENV)]]
    if importlib.util.find_spec("ensurepip") is None:  # Debian keeps it in python3-venv; the pip outside will do
        commands = [["venv", "--without-pip", str(VENV)], ["pip", "--python", str(VENV_PYTHON), "install", "pip"]]
    if any(subprocess.run([sys.executable, "-m", *command], stdout=sys.stderr).returncode for command in commands):
        sys.exit(
            f"error: {sys.executable} cannot make a virtual environment (its message is above). On Debian and "
            "Ubuntu: apt install python3-venv. Or name another Python: PYTHON=/path/to/python3 bash run_all.sh"
        )


def _install(extras):
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    _say("installing the versions of constraints.txt; the first time this takes some minutes")
    UNFINISHED.touch()
    project = str(ROOT) + (f"[{','.join(extras)}]" if extras else "")
    # setuptools first: without build isolation it is the pinned one that builds the package.
    for arguments in (["setuptools"], ["--no-build-isolation", "--editable", project]):
        code = subprocess.run([*pip, *arguments], stdout=sys.stderr, env={**os.environ, "PIP_USER": "0"}).returncode
        if code > 0:
            UNFINISHED.unlink()  # pip has cleaned up after itself; the next set-up goes on from here
        if code:
            sys.exit(
                "error: pip could not install the packages (its message is above). Check the network and "
                "`pip config list`, then run the same command again."
            )
    UNFINISHED.unlink()


def _shortened(problems):
    return ", ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else "")


def _say(text):
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def main(arguments):
    """Check or set up, as the module's docstring says."""
    if arguments[:1] != ["--check"]:
        _declared_requirements(arguments)  # an unknown extra ends here
        print(set_up(arguments))
        return
    problems = lacking(arguments[1:])
    if not problems and _is_venv(sys.prefix) and not _importable():
        problems = ["clipfh of this checkout"]
    print(*problems, sep="\n", end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        sys.exit(f"error: {error}")
else:
    use_project_environment()

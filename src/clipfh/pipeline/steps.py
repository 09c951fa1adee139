"""Run one step of a pipeline; skip it when it is finished and what it made is untouched.

    python -m clipfh.pipeline.steps --name 03_filter --log results/logs/synthetic/03_filter.log \
        --after 01_prompts --outputs metadata/synthetic/image_paths_clean.json \
        -- python preprocessing/03_filter_valid_identities.py --dataset synthetic

Beside the log lies a stamp (`03_filter.json`): the command, digests of its inputs, its outputs and the stamps of the
steps before it. All of them are compared on the next start. An output is a file, a folder or a glob pattern. Of a
pattern's files only those that the step made or changed are its outputs (checkpoints carry the date in their names).

    python -m clipfh.pipeline.steps --log results/logs/synthetic/12_stage2_train.log --recorded '*_BEST.pth'

prints the outputs of a finished step, the newest last. The word `python` at the start of a command is the interpreter
that runs this file. Standard library only: it starts fast.
"""

import argparse
import fnmatch
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from clipfh.pipeline.stamps import (
    expand,
    fingerprints,
    lines_of,
    made_or_changed,
    plan,
    read_stamp,
    result_digest,
    stamp_path,
    state_of,
    why_run,
    write_stamp,
)

SECONDS_TO_STOP = 10  # what a command gets to end by itself after Ctrl-C


def run_command(command: list[str], log: Path) -> int:
    """Run `command`, copy its output to the terminal and to `log`; return its exit code (128 + N for signal N).

    Raises:
        KeyboardInterrupt, SystemExit: stopped by the user or by SIGTERM; the command has ended, too.
        OSError: it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # a pipe would hold the command's lines back
    with open(log, "wb") as log_file:
        log_file.write(f"$ {shlex.join(command)}\n".encode())
        executable = [sys.executable, *command[1:]] if command[0] == "python" else command
        process = subprocess.Popen(executable, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
        assert process.stdout is not None
        copier = threading.Thread(target=_copy, args=(process.stdout, log_file), daemon=True)
        try:  # at once: a signal that comes before this line would leave the command running
            copier.start()
            code = process.wait()
        except BaseException as error:
            _end(process, told=isinstance(error, KeyboardInterrupt))
            raise
        finally:
            if copier.ident is not None:
                copier.join(timeout=SECONDS_TO_STOP)  # ends with the pipe, which a grandchild may still hold
            if not copier.is_alive():
                process.stdout.close()
    return code if code >= 0 else 128 - code


def _copy(source: BinaryIO, log_file: BinaryIO) -> None:
    terminal: BinaryIO | None = sys.stdout.buffer
    while block := os.read(source.fileno(), 1 << 16):
        log_file.write(block)
        log_file.flush()
        try:
            if terminal is not None:
                terminal.write(block)
                terminal.flush()
        except OSError:  # the reader of our output has gone; the log goes on
            terminal = None


def _end(process: subprocess.Popen, *, told: bool) -> None:
    """End the command: `told` after Ctrl-C, which reaches it as well as us."""
    if not told:
        process.terminate()
    try:
        process.wait(timeout=SECONDS_TO_STOP)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def run_step(options: argparse.Namespace, command: list[str]) -> int:
    """Skip or run one step; return the exit code for the shell."""
    log = Path(options.log)
    stamp, planned = read_stamp(log), plan(command, options.inputs, options.after, log)
    reason = why_run(stamp, planned, options.outputs, options.appends)
    if reason is None and not options.force:
        print(f"==> {options.name}: finished before in {duration(stamp['seconds'])}, outputs verified: skipped")
        return 0
    stamp_path(log).unlink(missing_ok=True)  # from here on the step is unfinished, however it ends
    because = f" (again: {reason})" if reason else ""
    print(f"==> {options.name}{because}: {shlex.join(command)}", flush=True)

    before = {path: state_of(path) for pattern in options.outputs for path in expand(pattern)}
    lines_before = {path: set(lines_of(path)) for path in options.appends}
    start = time.monotonic()
    try:
        code = run_command(command, log)
    except OSError as error:
        return _failed(options, f"cannot start: {error}", 127)
    if code:
        killed = " (killed, perhaps for want of memory)" if code == 128 + signal.SIGKILL else ""
        return _failed(options, f"failed with exit code {code}{killed}", code)

    said = log.read_text(encoding="utf-8", errors="replace")
    outputs = {pattern: made_or_changed(pattern, before, said) for pattern in options.outputs}
    for pattern, paths in outputs.items():
        if not paths:
            return _failed(options, f"ended well but left no {pattern}", 1)
    appended = {path: [line for line in lines_of(path) if line not in lines_before[path]] for path in options.appends}
    for path, lines in appended.items():
        if not lines:
            return _failed(options, f"ended well but added no row to {path}", 1)
    stamp = {
        **planned,
        "outputs": {pattern: fingerprints(paths) for pattern, paths in outputs.items()},
        "appended": appended,
        "seconds": round(time.monotonic() - start, 2),
    }
    write_stamp(log, stamp)
    print(f"    {options.name}: {duration(stamp['seconds'])}", flush=True)
    return 0


def _failed(options: argparse.Namespace, what: str, code: int) -> int:
    print(f"\nerror: step {options.name} {what}. Its log: {options.log}", file=sys.stderr)
    return code


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 05 s`."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def print_recorded(log: Path, pattern: str) -> int:
    """Print the outputs of a finished step whose path matches `pattern`; exit code 1 if there is none.

    A step whose earlier steps have made something else since counts as unfinished: its outputs fit no longer.
    """
    stamp = read_stamp(log)
    if any(result_digest(log.with_name(f"{name}.log")) != digest for name, digest in stamp.get("after", {}).items()):
        return 1
    recorded = [path for paths in stamp.get("outputs", {}).values() for path in paths]
    matching = {path for path in recorded if fnmatch.fnmatch(path, pattern) and os.path.isfile(path)}
    matching = sorted(matching, key=lambda path: (os.stat(path).st_mtime_ns, path))
    print(*matching, sep="\n", end="\n" if matching else "")
    return 0 if matching else 1


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m clipfh.pipeline.steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", help="how messages call the step")
    parser.add_argument("--log", required=True, help="where the command's output goes; the stamp lies beside it")
    parser.add_argument("--outputs", nargs="*", default=[], help="files, folders or patterns that the step leaves")
    parser.add_argument("--appends", nargs="*", default=[], help="text files that the step adds lines to")
    parser.add_argument("--inputs", nargs="*", default=[], help="files or patterns whose change runs the step again")
    parser.add_argument("--after", nargs="*", default=[], help="names of the steps whose outputs it uses")
    parser.add_argument("--force", action="store_true", help="run it even if it is finished")
    parser.add_argument("--recorded", metavar="PATTERN", help="print the outputs of the finished step, run nothing")
    options = parser.parse_args(arguments[:cut])
    command = arguments[cut + 1 :]
    if options.recorded is None and not command:
        parser.error("the command is missing: ... -- COMMAND")
    options.name = options.name or Path(options.log).stem
    return options, command


def _stopped(signal_number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signal_number)


def main(arguments: list[str]) -> int:
    """Return the exit code."""
    options, command = _parse(arguments)
    if options.recorded is not None:
        return print_recorded(Path(options.log), options.recorded)
    try:
        return run_step(options, command)
    except KeyboardInterrupt:
        return _failed(options, "was stopped", 130)
    except OSError as error:
        return _failed(options, f"cannot be run: {error}", 2)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stopped)
    signal.signal(signal.SIGHUP, _stopped)
    sys.exit(main(sys.argv[1:]))

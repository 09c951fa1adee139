"""Run one step of a pipeline; skip it when it is finished and what it made is untouched.

Beside a step's log lies a stamp (`03_filter.json`): the command, digests of its inputs, its outputs and the stamps of
the steps before it. All of them are compared on the next start. An output is a file, a folder or a glob pattern. Of a
pattern's files only those that the step made or changed are its outputs (checkpoints carry the date in their names).
"""

import contextlib
import fnmatch
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
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

SECONDS_TO_STOP = 40  # what a command gets to end by itself after Ctrl-C; torchrun gives its processes 30


def run_command(command: list[str], log: Path, variables: Mapping[str, str] | None = None) -> int:
    """Run `command`, copy its output to the terminal and to `log`; return its exit code (128 + N for signal N).

    `variables` of its environment count where they are not set already.

    Raises:
        KeyboardInterrupt, SystemExit: stopped by the user or by SIGTERM; the command has ended, too.
        OSError: it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **(variables or {}),
        **os.environ,
        "PYTHONUNBUFFERED": "1",
    }  # a pipe would hold the command's lines back
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


@dataclass(frozen=True)
class Step:
    """One command of a pipeline.

    Attributes:
        name: how messages call the step.
        log: where the command's output goes; the stamp lies beside it.
        command: its words; the word `python` at the start is the interpreter that runs this file.
        outputs: files, folders or patterns that the step leaves.
        appends: text files that the step adds lines to.
        inputs: files or patterns whose change runs the step again.
        after: names of the steps whose outputs it uses.
        variables: of its environment, where they are not set already.
    """

    name: str
    log: Path
    command: list[str]
    outputs: list[str] = field(default_factory=list)
    appends: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def run_step(step: Step, *, force: bool = False) -> int:
    """Skip or run a step, which `force` runs even if it is finished; return the exit code for the shell."""
    try:
        return _run_step(step, force)
    except KeyboardInterrupt:
        return _failed(step, "was stopped", 130)
    except SystemExit as stopped:  # of `end_on_signals`
        return _failed(step, "was stopped", int(stopped.code or 0))
    except OSError as error:
        return _failed(step, f"cannot be run: {error}", 2)


def _run_step(step: Step, force: bool) -> int:
    log, command = step.log, step.command
    stamp, planned = read_stamp(log), plan(command, step.inputs, step.after, log)
    reason = why_run(stamp, planned, step.outputs, step.appends)
    if reason is None and not force:
        print(f"==> {step.name}: finished before in {duration(stamp['seconds'])}, outputs verified: skipped")
        return 0
    stamp_path(log).unlink(missing_ok=True)  # from here on the step is unfinished, however it ends
    because = f" (again: {reason})" if reason else ""
    print(f"==> {step.name}{because}: {shlex.join(command)}", flush=True)

    before = {path: state_of(path) for pattern in step.outputs for path in expand(pattern)}
    lines_before = {path: set(lines_of(path)) for path in step.appends}
    start = time.monotonic()
    try:
        code = run_command(command, log, step.variables)
    except OSError as error:
        return _failed(step, f"cannot start: {error}", 127)
    if code:
        killed = " (killed, perhaps for want of memory)" if code == 128 + signal.SIGKILL else ""
        return _failed(step, f"failed with exit code {code}{killed}", code)

    said = log.read_text(encoding="utf-8", errors="replace")
    outputs = {pattern: made_or_changed(pattern, before, said) for pattern in step.outputs}
    for pattern, paths in outputs.items():
        if not paths:
            return _failed(step, f"ended well but left no {pattern}", 1)
    appended = {path: [line for line in lines_of(path) if line not in lines_before[path]] for path in step.appends}
    for path, lines in appended.items():
        if not lines:
            return _failed(step, f"ended well but added no row to {path}", 1)
    stamp = {
        **planned,
        "outputs": {pattern: fingerprints(paths) for pattern, paths in outputs.items()},
        "appended": appended,
        "seconds": round(time.monotonic() - start, 2),
    }
    write_stamp(log, stamp)
    print(f"    {step.name}: {duration(stamp['seconds'])}", flush=True)
    return 0


def _failed(step: Step, what: str, code: int) -> int:
    with contextlib.suppress(OSError):  # a terminal that has gone, which is what SIGHUP says
        print(f"\nerror: step {step.name} {what}. Its log: {step.log}", file=sys.stderr)
    return code


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 05 s`."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def recorded(log: Path, pattern: str) -> list[str]:
    """The outputs of a finished step whose path matches `pattern`, the newest last.

    A step whose earlier steps have made something else since counts as unfinished: its outputs fit no longer.
    """
    stamp = read_stamp(log)
    if any(result_digest(log.with_name(f"{name}.log")) != digest for name, digest in stamp.get("after", {}).items()):
        return []
    outputs = [path for paths in stamp.get("outputs", {}).values() for path in paths]
    matching = {path for path in outputs if fnmatch.fnmatch(path, pattern) and os.path.isfile(path)}
    return sorted(matching, key=lambda path: (os.stat(path).st_mtime_ns, path))


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as an error does, so that a step's command ends with it.

    One that is ignored stays so: `nohup` starts what is to outlive its terminal.
    """

    def stopped(signal_number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal_number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stopped)

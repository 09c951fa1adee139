"""Scripts and code as processes of their own, without paying for the import of torch in each.

The server is a process that has imported what the scripts stand on, and nothing else. It forks for every command line;
the child runs the script as `__main__`, with its own arguments, environment, output and exit code.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SECONDS = 180  # after which a script that hangs is killed
COMMANDS = ("app", "export", "index")  # rooms that no script imports; their extras may be absent


class ScriptServer:
    """Runs scripts of the checkout `root`, whose `src` comes before an installed package."""

    def __init__(self, root: Path, outputs: Path, **environment: str) -> None:
        self.root, self._outputs = root, outputs
        self.environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", **environment}
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        script: str,
        *arguments: object,
        environment: dict[str, str] | None = None,
        cwd: Path | None = None,
        strict: bool = False,
    ) -> subprocess.CompletedProcess:
        """Run `script` (below the root), with further variables, in the folder `cwd`; its exit code and output.

        `strict`: warnings are errors, all but those of what is deprecated.
        """
        (result,) = self._run(script, arguments, [environment or {}], cwd=cwd, strict=strict)
        return result

    def run_code(
        self, code: str, *environments: dict[str, str], cwd: Path | None = None
    ) -> list[subprocess.CompletedProcess]:
        """Run Python code in as many processes at once as there are `environments`: variables of each."""
        return self._run(self._written(code), (), environments, cwd=cwd)

    def kill_code(self, code: str, is_time: Callable[[], object]) -> subprocess.CompletedProcess:
        """Run Python code, and kill it as soon as `is_time`."""
        (result,) = self._run(self._written(code), (), [{}], stop=(signal.SIGKILL, is_time))
        return result

    def said(self, text: str) -> bool:
        """Whether the process that runs now has printed `text`, and no more."""
        printed = self._outputs / "0.stdout"
        return printed.is_file() and printed.read_text(encoding="utf-8") == text

    def _written(self, code: str) -> Path:
        path = self._outputs / "code.py"
        path.write_text(code, encoding="utf-8")
        return path

    def run_until(self, is_time: Callable[[], object], script: str, *arguments: object) -> subprocess.CompletedProcess:
        """Run `script`, and press Ctrl-C as soon as `is_time`."""
        (result,) = self._run(script, arguments, [{}], stop=(signal.SIGINT, is_time))
        return result

    def run_together(
        self, count: int, script: str, *arguments: object, kill_last_when: Callable[[], object] | None = None
    ) -> list[subprocess.CompletedProcess]:
        """Run `script` in `count` processes at once, that find each other as those of torchrun do; the last may die."""
        from torch.distributed import TCPStore

        agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's part
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "WORLD_SIZE": str(count)}
        where |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        environments = [{**where, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(count)]
        return self._run(script, arguments, environments, stop=kill_last_when and (signal.SIGKILL, kill_last_when))

    def _run(
        self,
        script: str | Path,
        arguments: Sequence[object],
        environments: Sequence[dict[str, str]],
        *,
        stop: tuple[int, Callable[[], object]] | None = None,
        cwd: Path | None = None,
        strict: bool = False,
    ) -> list[subprocess.CompletedProcess]:
        argv = [str(self.root / script), *map(str, arguments)]
        files = [
            [str(self._outputs / f"{n}.{name}") for name in ("stdout", "stderr")] for n in range(len(environments))
        ]
        for path in (Path(file) for outputs in files for file in outputs):
            path.unlink(missing_ok=True)  # of the run before
        runs = [
            {"argv": argv, "outputs": outputs, "environment": environment, "cwd": cwd and str(cwd), "strict": strict}
            for outputs, environment in zip(files, environments, strict=True)
        ]
        self._process.stdin.write(json.dumps(runs) + "\n")
        self._process.stdin.flush()
        pids = json.loads(self._process.stdout.readline())
        if stop:
            signal_number, is_time = stop
            deadline = time.monotonic() + SECONDS
            while not is_time() and time.monotonic() < deadline:
                time.sleep(0.002)
            os.kill(pids[-1], signal_number)
        codes = json.loads(self._process.stdout.readline())
        return [
            subprocess.CompletedProcess(argv, code, *(Path(file).read_text(encoding="utf-8") for file in outputs))
            for code, outputs in zip(codes, files, strict=True)
        ]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


def _serve() -> None:
    import gc
    import pkgutil
    import weakref
    from importlib import import_module

    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import clipfh

    for module in pkgutil.walk_packages(clipfh.__path__, "clipfh."):
        if module.name.split(".")[1] not in COMMANDS:
            import_module(module.name)
    weakref.finalize._registry.clear()  # of torch's libraries: to undo them takes each child longer than to run
    gc.collect()
    gc.freeze()  # or the first full collection in each child would write to, and so copy, all that was imported
    for line in sys.stdin:
        pids = []
        for run in json.loads(line):
            pids.append(os.fork())
            if pids[-1] == 0:
                _run_and_exit(**run)
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


def _run_and_exit(
    argv: list[str], outputs: list[str], environment: dict[str, str], cwd: str | None, strict: bool
) -> None:
    import atexit
    import runpy
    import traceback
    import warnings

    signal.alarm(SECONDS)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    os.environ.update(environment)
    if cwd:
        os.chdir(cwd)
    if strict:
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)
    for target, name in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), target)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv, sys.path[0] = argv, str(Path(argv[0]).parent)
    try:
        runpy.run_path(argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()

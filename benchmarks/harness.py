"""Runs the cases of a benchmark in turn, each in a fresh process with a fixed number of threads, and keeps the figures.

A benchmark script defines *prepare* functions at module level. One takes the case's arguments, makes the inputs
(not timed) and returns a callable without arguments (timed), which returns plain values to compare between cases.
Only the standard library is imported here, and prepare functions import what they need themselves: a peer may live in
an environment where nothing else is installed.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from report import FOLDER, update_readme

ROOT = FOLDER.parent
ENVIRONMENTS = {"main": sys.executable, "oml": str(ROOT / ".venv-oml" / "bin" / "python")}
# torch.set_num_threads holds torch alone; what is set before a process starts holds every library in it
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
PACKAGES = (
    "numpy",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "Pillow",
    "pytorch-metric-learning",
    "torchmetrics",
    "open-metric-learning",
    "faiss-cpu",
    "milvus-lite",
)


@dataclass(frozen=True)
class Case:
    """One contestant.

    Attributes:
        name: of its row in the results.
        prepare: name of the script's prepare function.
        arguments: its keyword arguments; plain values.
        environment: a key of `ENVIRONMENTS`.
        warmup: runs before the timed ones.
        repeats: timed runs in one process; their median is the process's figure. More than 1 for runs of milliseconds.
    """

    name: str
    prepare: str
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: str = "main"
    warmup: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class Sample:
    """What one process measured.

    Attributes:
        seconds, cpu_seconds: of one run: wall clock, and user + system time of all threads.
        peak_mib: most memory in use during the timed runs, beyond what was in use before them.
        value: what the run returned.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    value: Any


def run_in_turn(cases: Sequence[Case], *, rounds: int, threads: int = 1) -> dict[str, list[Sample]]:
    """`rounds` times every case, one after the other, so that a drift of the machine's speed meets all alike.

    Raises:
        RuntimeError: a case failed; with what it printed.
    """
    script = Path(sys.modules["__main__"].__file__).resolve()
    environ = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": str(ROOT / "src")}
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            print(f"  {case.name} ({threads} thread{'s'[: threads > 1]}, {number + 1}/{rounds})", file=sys.stderr)
            command = [ENVIRONMENTS[case.environment], str(script), "--case", json.dumps(asdict(case))]
            done = subprocess.run(command, env=environ, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{case.name} failed:\n{done.stdout}{done.stderr}")
            samples[case.name].append(Sample(**json.loads(done.stdout.splitlines()[-1])))
    return samples


def available(environment: str) -> bool:
    """Whether an environment was installed (`make install-bench`)."""
    return Path(ENVIRONMENTS[environment]).exists()


def packages_of(environment: str) -> list[str]:
    """The folders of an environment's packages: behind one's own on `sys.path`, what is pure Python can be imported."""
    python = Path(ENVIRONMENTS[environment])
    return [str(folder) for folder in sorted(python.parents[1].glob("lib/python3*/site-packages"))]


def median(samples: Sequence[Sample], figure: str = "seconds") -> float:
    """The median of one figure over the samples of a case."""
    return statistics.median(getattr(sample, figure) for sample in samples)


def row(name: str, samples: Sequence[Sample], **more: Any) -> dict[str, Any]:
    """A row of the results: medians over the samples of a case, and what else the benchmark knows of it."""
    figures = {key: round(median(samples, key), 6) for key in ("seconds", "cpu_seconds", "peak_mib")}
    return {"name": name, **figures, "runs": len(samples), **more}


def bar(
    what: str, measured: float, *, at_most: float | None = None, at_least: float | None = None, unit: str = ""
) -> dict[str, Any]:
    """One limit and whether it holds; `measured` in `unit` (such as "x" or "MiB"). Give exactly one limit."""
    if (at_most is None) == (at_least is None):
        raise ValueError("a bar has one limit: at_most or at_least")
    limit = at_most if at_least is None else at_least
    holds = measured <= limit if at_least is None else measured >= limit
    text = f"{'at most' if at_least is None else 'at least'} {limit:g} {unit}".strip()
    return {"what": what, "bar": text, "measured": float(f"{measured:.4g}"), "holds": bool(holds)}


def save_results(name: str, rows: list[dict[str, Any]], bars: list[dict[str, Any]], *, quick: bool) -> None:
    """Write `results/<name>.json` and the tables in README.md; a quick run writes to results/quick/ alone.

    A row is one of `row`, or holds a name and `cells`, {column: text}, which are shown in place of time and memory.
    """
    folder = FOLDER / "results" / ("quick" if quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": _machine(),
        "versions": _versions(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "rows": rows,
        "bars": bars,
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(_table(name, content, judged=not quick))  # on small inputs and few runs the limits mean nothing
    if not quick:
        update_readme()


def _table(name: str, content: dict[str, Any], *, judged: bool) -> str:
    width = max(len(entry["what"]) for entry in [*content["bars"], {"what": ""}])
    lines = [f"\n{name}: {content['machine']}"]
    for r in content["rows"]:
        shown = r.get("cells") or {"": f"{r['seconds']:>11.4f} s {r['peak_mib']:>9.0f} MiB"}
        lines.append("  ".join([f"  {r['name']:<44}", *(f"{column} {text}".strip() for column, text in shown.items())]))
    lines += [
        f"  {b['what']:<{width}}  {b['measured']:>9g}"
        + (f"  ({b['bar']})  {'holds' if b['holds'] else 'MISSED'}" if judged else "")
        for b in content["bars"]
    ]
    return "\n".join(lines)


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        found = re.search(r"model name\s*: (.+)", cpu.read_text(encoding="utf-8"))
        model = found.group(1) if found else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    script = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    for package in PACKAGES:
        for environment in ENVIRONMENTS:
            if package not in versions and available(environment):
                done = subprocess.run(
                    [ENVIRONMENTS[environment], "-c", script, package], capture_output=True, text=True
                )
                if done.returncode == 0:
                    versions[package] = done.stdout.strip()
    return versions


def run_benchmark(
    main: Callable[[Any], None], description: str, add_flags: Callable[[argparse.ArgumentParser], None] | None = None
) -> None:
    """The command line of a benchmark: run `main(quick)`, or, in a child process, one case.

    With flags of its own, which `add_flags` adds, a benchmark is run as `main(arguments)`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small inputs and few runs, to see that it works")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    if add_flags:
        add_flags(parser)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(asdict(_measure(Case(**json.loads(arguments.case))))))
    else:
        main(arguments if add_flags else arguments.quick)


def _measure(case: Case) -> Sample:
    run = getattr(sys.modules["__main__"], case.prepare)(**case.arguments)
    for _ in range(case.warmup):
        run()
    before = _reset_peak_memory()
    wall, cpu, value = [], [], None
    for _ in range(case.repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        value = run()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    peak = _memory("VmHWM") - before
    return Sample(statistics.median(wall), statistics.median(cpu), round(peak / 2**20, 2), value)


def _reset_peak_memory() -> int:
    """Forget the peak so far, so that making the inputs does not count; the bytes in use now."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone keeps freed memory, to give it out uncounted
        ctypes.CDLL(None).malloc_trim(0)
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")
    return _memory("VmRSS")


def _memory(key: str) -> int:
    """`VmRSS` (bytes in use) or `VmHWM` (most that were) of this process; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return int(re.search(rf"{key}:\s+(\d+) kB", status.read_text(encoding="utf-8")).group(1)) * 1024

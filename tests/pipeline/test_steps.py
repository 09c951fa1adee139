import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipfh.pipeline import steps
from clipfh.pipeline.stamps import expand, made_or_changed, read_stamp, state_of

COUNTING = "echo run >> runs.txt; cp source.txt made.txt"  # runs.txt tells how often the command really ran


@pytest.fixture(autouse=True)
def _in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("source.txt").write_text("one\n")
    Path("runs.txt").write_text("")


def run_step(name: str, *, command: str | list[str] = COUNTING, force: bool = False, **files: list[str]) -> int:
    words = ["bash", "-c", command] if isinstance(command, str) else command
    return steps.run_step(steps.Step(name, Path(f"logs/{name}.log"), words, **files), force=force)


def num_runs() -> int:
    return len(Path("runs.txt").read_text().splitlines())


def test_finished_step_is_skipped_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_step("a", outputs=["made.txt"]) == 0
    assert run_step("a", outputs=["made.txt"]) == 0
    assert num_runs() == 1
    assert "a: finished before" in capfd.readouterr().out


def test_output_goes_to_the_terminal_and_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    run_step("a", command="echo to stdout; echo to stderr >&2; printf 'no newline'")
    assert "to stdout\nto stderr\nno newline" in capfd.readouterr().out
    assert Path("logs/a.log").read_text().endswith("to stdout\nto stderr\nno newline")
    assert Path("logs/a.log").read_text().startswith("$ bash -c ")


@pytest.mark.parametrize("damage", ["same size", "truncated", "removed"])
def test_damaged_output_runs_the_step_again(damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    run_step("a", outputs=["made.txt"])
    made = Path("made.txt")
    if damage == "removed":
        made.unlink()
    else:
        times = (made.stat().st_atime_ns, made.stat().st_mtime_ns)
        made.write_text("two\n" if damage == "same size" else "")
        os.utime(made, ns=times)  # the content counts, not the time
    run_step("a", outputs=["made.txt"])
    assert num_runs() == 2
    assert made.read_text() == "one\n"
    assert "(again: made.txt" in capfd.readouterr().out


def test_changed_command_runs_again() -> None:
    run_step("a", outputs=["made.txt"])
    run_step("a", outputs=["made.txt"], command=COUNTING + "; true")
    assert num_runs() == 2


def test_changed_script_and_changed_input_run_again() -> None:
    Path("script.py").write_text("open('runs.txt', 'a').write('run\\n')")
    for expected in (1, 1):
        assert run_step("a", inputs=["sour*.txt"], command=["python", "script.py"]) == 0
        assert num_runs() == expected
    Path("source.txt").write_text("two\n")
    run_step("a", inputs=["sour*.txt"], command=["python", "script.py"])
    assert num_runs() == 2
    Path("script.py").write_text("open('runs.txt', 'a').write('again\\n')")
    run_step("a", inputs=["sour*.txt"], command=["python", "script.py"])
    assert num_runs() == 3


def test_force_runs_a_finished_step() -> None:
    run_step("a", outputs=["made.txt"])
    run_step("a", force=True, outputs=["made.txt"])
    assert num_runs() == 2


def test_step_runs_again_when_a_step_before_it_left_something_else() -> None:
    def both(text: str) -> None:
        run_step("a", outputs=["a.txt"], command=f"echo {text} > a.txt")
        run_step("b", after=["a"], outputs=["made.txt"])

    both("one")
    both("one")
    assert num_runs() == 1
    both("two")
    assert num_runs() == 2


def test_step_before_it_that_leaves_the_same_again_changes_nothing() -> None:
    for force in (False, True):
        run_step("a", force=force, outputs=["a.txt"], command="echo one > a.txt")
        run_step("b", after=["a"], outputs=["made.txt"])
    assert num_runs() == 1


def test_step_runs_again_when_a_missing_step_before_it_was_run() -> None:
    run_step("b", after=["a"], outputs=["made.txt"])
    run_step("a", command="true")
    run_step("b", after=["a"], outputs=["made.txt"])
    assert num_runs() == 2


def test_failing_step_names_itself_its_code_and_its_log(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_step("a", command="echo why it failed; exit 7") == 7
    error = capfd.readouterr().err
    assert "step a failed with exit code 7" in error
    assert "logs/a.log" in error
    assert "why it failed" in Path("logs/a.log").read_text()


def test_step_that_failed_is_not_finished_although_it_was_before() -> None:
    run_step("a", outputs=["made.txt"])
    assert run_step("a", force=True, outputs=["made.txt"], command="exit 1") == 1
    run_step("a", outputs=["made.txt"])
    assert num_runs() == 2


def test_missing_output_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_step("a", outputs=["made.txt", "nothing_*.pth"]) == 1
    assert "left no nothing_*.pth" in capfd.readouterr().err


def test_command_that_does_not_exist(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_step("a", command=["no-such-command"]) == 127
    assert "cannot start" in capfd.readouterr().err


def test_log_folder_that_cannot_be_made(capfd: pytest.CaptureFixture[str]) -> None:
    Path("logs").write_text("a file in the way")
    assert run_step("a", command=["true"]) == 2
    assert "error: step a" in capfd.readouterr().err


def test_of_a_pattern_only_the_files_of_this_run_are_recorded(capfd: pytest.CaptureFixture[str]) -> None:
    Path("older_BEST.pth").write_text("of another dataset")
    run_step("a", outputs=["*_BEST.pth"], command="echo 1 > new_BEST.pth")
    assert list(read_stamp(Path("logs/a.log"))["outputs"]["*_BEST.pth"]) == ["new_BEST.pth"]
    assert steps.recorded(Path("logs/a.log"), "*_BEST.pth") == ["new_BEST.pth"]
    Path("older_BEST.pth").unlink()  # nothing to do with this step
    run_step("a", outputs=["*_BEST.pth"], command="echo 1 > new_BEST.pth")
    assert "skipped" in capfd.readouterr().out


def test_recorded_of_a_step_never_run_is_empty() -> None:
    assert steps.recorded(Path("logs/a.log"), "*") == []


def test_outputs_of_a_step_that_its_inputs_have_left_behind_are_not_recorded() -> None:
    run_step("data", outputs=["data.txt"], command="echo 1 > data.txt")
    run_step("train", after=["data"], outputs=["*_BEST.pth"], command="echo 1 > new_BEST.pth")
    assert steps.recorded(Path("logs/train.log"), "*_BEST.pth") == ["new_BEST.pth"]
    run_step("data", outputs=["data.txt"], command="echo 2 > data.txt")
    assert steps.recorded(Path("logs/train.log"), "*_BEST.pth") == []


def test_step_that_reuses_a_file_records_the_one_that_it_names() -> None:
    for name in ("x1.pth", "x2.pth"):
        Path(name).write_text(name)
    before = {name: state_of(name) for name in ("x1.pth", "x2.pth")}
    assert made_or_changed("x*.pth", before, "x1.pth is there already") == ["x1.pth"]
    assert made_or_changed("x*.pth", before, "nothing to do") == ["x1.pth", "x2.pth"]
    Path("x2.pth").write_text("changed")
    assert made_or_changed("x*.pth", before, "x1.pth") == ["x2.pth"]
    Path("run").mkdir()
    for name in ("x3.pth", "run/y1.pth", "y2.pth"):
        Path(name).write_bytes(b"made beside")
    assert made_or_changed("x*.pth", before, "BEST: epoch 3: x2.pth") == ["x2.pth"]  # x3 is another run's
    assert made_or_changed("**/y*.pth", before, "wrote run\n") == ["run/y1.pth"]


def test_force_of_the_command_is_no_other_command() -> None:
    Path("script.py").write_text("open('runs.txt', 'a').write('run\\n')")
    for command in (["python", "script.py", "--force"], ["python", "script.py"]):
        assert run_step("a", command=command) == 0
    assert num_runs() == 1


def test_folder_stands_for_the_files_below_it() -> None:
    Path("raw/deep").mkdir(parents=True)
    Path("raw/deep/1.jpg").write_text("1")
    Path("raw/[a].jpg").write_text("2")
    assert expand("raw") == ["raw/[a].jpg", "raw/deep/1.jpg"]
    assert expand("raw/[a].jpg") == ["raw/[a].jpg"]
    assert expand("missing") == []


def test_rows_added_to_a_shared_file_are_verified(capfd: pytest.CaptureFixture[str]) -> None:
    Path("summary.csv").write_text("header\nrow of another run\n")
    append = "echo run >> runs.txt; echo my row >> summary.csv"
    run_step("a", appends=["summary.csv"], command=append)
    with Path("summary.csv").open("a") as handle:
        handle.write("row of a later run\n")
    run_step("a", appends=["summary.csv"], command=append)
    assert num_runs() == 1
    Path("summary.csv").write_text("header\nrow of another run\n")
    run_step("a", appends=["summary.csv"], command=append)
    assert num_runs() == 2
    assert "lost its rows" in capfd.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", "not json", '{"command": []}', "[" * 100_000])
def test_damaged_stamp_counts_as_unfinished(content: str) -> None:
    run_step("a", outputs=["made.txt"])
    Path("logs/a.json").write_text(content)
    run_step("a", outputs=["made.txt"])
    assert num_runs() == 2
    assert json.loads(Path("logs/a.json").read_text())["outputs"]


@pytest.mark.parametrize("key", ["command", "inputs", "after", "outputs", "appended", "seconds"])
@pytest.mark.parametrize("value", [None, 3, "x", [3], {"made.txt": 3}])
def test_a_stamp_with_a_value_of_another_type_counts_as_unfinished(key: str, value: object) -> None:
    run_step("a", outputs=["made.txt"])
    stamp = json.loads(Path("logs/a.json").read_text())
    Path("logs/a.json").write_text(json.dumps({**stamp, key: value}))
    run_step("a", outputs=["made.txt"])
    assert num_runs() == (1 if (key, value) == ("seconds", 3) else 2)
    assert steps.recorded(Path("logs/a.log"), "made.txt") == ["made.txt"]


def test_python_means_the_interpreter_that_runs_the_steps() -> None:
    run_step("a", command=["python", "-c", "import sys; print(sys.executable)"])
    assert Path("logs/a.log").read_text().splitlines()[-1] == sys.executable


STEP_OF_SLEEP = (
    "import sys; from pathlib import Path; from clipfh.pipeline.steps import Step, end_on_signals, run_step\n"
    "step = Step('a', Path('logs/a.log'), ['bash', '-c', 'echo $$ > pid.txt; exec sleep 60'])\n"
    "end_on_signals(); sys.exit(run_step(step))"
)


def wait_for_command() -> None:
    deadline = time.monotonic() + 20
    while not (Path("pid.txt").exists() and Path("pid.txt").read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_its_end() -> None:
    """Of the command, which on a busy machine may outlive its step by a moment."""
    deadline = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(int(Path("pid.txt").read_text()), 0)
            time.sleep(0.02)


def heed() -> None:
    """What a background shell or nohup ignores, and hands on, is not ignored where a user starts it at a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_stopping_the_step_ends_its_command_and_says_so(signal_number: signal.Signals, code: int) -> None:
    """Ctrl-C goes to the whole foreground group, as here; the others to the step alone."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    arguments = [sys.executable, "-c", STEP_OF_SLEEP]
    with subprocess.Popen(arguments, start_new_session=True, preexec_fn=heed, **quiet) as process:
        wait_for_command()
        if signal_number == signal.SIGINT:
            os.killpg(process.pid, signal_number)
        else:
            process.send_signal(signal_number)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert "error: step a was stopped. Its log: logs/a.log" in said
    wait_for_its_end()
    assert not Path("logs/a.json").exists()


def test_a_step_that_nohup_started_outlives_its_terminal() -> None:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = ["nohup", sys.executable, "-c", STEP_OF_SLEEP]
    with subprocess.Popen(command, start_new_session=True, preexec_fn=heed, **quiet) as process:
        wait_for_command()
        os.killpg(process.pid, signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        os.kill(int(Path("pid.txt").read_text()), 0)  # the command as well
        process.terminate()
        assert process.wait(timeout=20) == 143


def test_duration_for_people() -> None:
    assert steps.duration(4.24) == "4.2 s"
    assert steps.duration(185) == "3 min 05 s"

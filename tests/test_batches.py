"""Batches: what is refused before anything runs, what is done once, what a killed process costs."""

import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import torch

from catlib import files
from catlib.lab.__main__ import main
from catlib.lab.batch import engine, execute, units
from catlib.lab.batch.engine import Failure, Pause, Processes, ThisProcess, run_jobs
from catlib.lab.batch.parameters import Parameter, values_in
from catlib.lab.batch.table import table_of, telling
from catlib.lab.paths import DOCS, NOTEBOOKS, README, ROOT
from catlib.lab.runs import Trial, read_records, run
from catlib.lab.study import work
from catlib.lab.study.plan import Piece

pytestmark = pytest.mark.no_device("it works in processes that see no mock")

# bit for bit the same is what a CPU promises, whatever else a machine has
QUICK = {"iterations": 6, "evaluate_every": 2, "evaluation_size": 20, "device": "cpu"}
QUICK_ARGUMENTS = [part for name, value in QUICK.items() for part in ("-p", f"{name}={value}")]


def notebook(path: Path, code: str, parameters: str | None = "alpha = 0.5") -> Path:
    node = nbformat.v4.new_notebook()
    node.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    if parameters is not None:
        node.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    node.cells.append(nbformat.v4.new_code_cell(code))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(node, path)
    return path


@dataclass(frozen=True)
class Act:
    """A job for tests: what it does is a word."""

    name: str
    what: str
    folder: Path
    cost: float | None = None

    @property
    def error_file(self) -> Path:
        return self.folder / f"{self.name}.error.txt"

    def run(self) -> None:
        begun = self.folder / f"{self.name}.begun"
        first = not begun.exists()
        begun.touch()
        if self.what == "raise":
            raise KeyError("nothing there")
        if self.what == "fail":
            raise Failure("in plain words")
        if self.what == "pause":
            raise Pause
        if self.what == "sleep":
            time.sleep(600)
        if self.what == "be killed" or (self.what == "be killed once" and first):
            os.kill(os.getpid(), signal.SIGKILL)


def outcomes(results) -> dict[str, str]:
    return {result.job.name: result.outcome for result in results}


# ------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize(
    ("text", "kinds", "values"),
    [
        ("0,0.5,0.9", (float,), [0, 0.5, 0.9]),
        ("0:5", (int,), [0, 1, 2, 3, 4]),
        ("10:0:-5,7", (int,), [10, 5, 7]),
        ("8/255", (float,), [8 / 255]),
        ("[0, 1],[2]", (list,), [[0, 1], [2]]),
        ("true,False", (bool,), [True, False]),
        ("none,100", (int, type(None)), [None, 100]),
        ("auto,1.5", (float, str), ["auto", 1.5]),
        ("mnist,'digits'", (str,), ["mnist", "digits"]),
        ("1,x", (), [1, "x"]),
    ],
)
def test_the_values_that_a_text_lists(text, kinds, values):
    assert values_in(text, Parameter("name", None, kinds)) == values


def test_every_combination_is_one_run_with_a_name_of_its_own(tmp_path):
    values = units.values_for("trial", {"alpha": "0,0.5,0.50", "seed": "0:3", "method": ["CAT"]})
    chosen = units.units_for("trial", values, tmp_path)
    assert len(chosen) == len({unit.name for unit in chosen}) == 6
    assert {unit.trial.alpha for unit in chosen} == {0.0, 0.5}
    assert [unit.trial.seed for unit in chosen] == [0, 1, 2, 0, 1, 2]
    assert all(type(unit.trial.alpha) is float for unit in chosen), "or its id would be another"
    parts = [units.shard(chosen, f"{i}/4") for i in (1, 2, 3, 4)]
    assert sorted(unit.name for part in parts for unit in part) == sorted(u.name for u in chosen)


def test_a_notebook_is_named_by_its_parameters(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "1", "alpha = 0.5\nseeds = [0]\nkind = ''")
    given = {"alpha": "0.9", "seeds": "[0,1]", "kind": "x/../y"}
    [unit] = units.units_for(str(path), units.values_for(str(path), given), tmp_path / "out")
    assert unit.name.startswith("a-alpha=0.9-kind=x_.._y-seeds=_0_1_-")
    assert unit.folder.parent == tmp_path / "out"


@pytest.mark.parametrize("ending", ["toml", "yaml"])
def test_a_batch_is_described_by_a_file(tmp_path, capsys, ending):
    notebook(tmp_path / "a.ipynb", "1")
    path = tmp_path / f"sweep.{ending}"
    if ending == "toml":
        path.write_text('run = "a.ipynb"\n[parameters]\nalpha = [0, 0.5]\n')
    else:
        path.write_text("run: a.ipynb\nparameters:\n  alpha: [0, 0.5]\n")
    assert main(["batch", str(path), "--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert main(["batch", str(path), "-p", "alpha=0:7", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 to do, 0 done" in printed and "7 to do, 0 done" in printed
    assert not (tmp_path / "out").exists()


def test_a_range_in_a_yaml_file_is_no_number_of_base_60(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "run: trial\nparameters:\n  seed: 1:5\n  alpha: [0, 0.5]\n  sampling_number: 40\n"
    )
    what, given = units.read_sweep(path)
    values = units.values_for(what, given)
    assert values["seed"] == [1, 2, 3, 4]
    assert (values["alpha"], values["sampling_number"]) == ([0, 0.5], [40])
    path.write_text("run: trial\nparameters:\n")
    with pytest.raises(ValueError, match="parameters is None; it must be a table"):
        units.read_sweep(path)


def test_each_worker_gets_a_gpu_of_those_that_it_may_use(monkeypatch):
    monkeypatch.setattr(engine, "gpu_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = [engine.surroundings(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert given == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7a")
    given = [engine.surroundings(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(3)]
    assert given == ["5", "GPU-7a", "5"]


def test_a_result_and_a_setting_of_one_name_are_two_columns(tmp_path):
    """The measured loss of a trial; a notebook's own alpha, run and status."""
    trial = Trial(**QUICK)
    folder = run(trial, tmp_path)
    table = table_of(tmp_path)
    measured = pd.read_csv(folder / "records.csv").loss.iloc[-1]
    assert table.loss[0] == pytest.approx(measured)
    assert table.setting_loss[0] == "cross-entropy"
    assert "setting_loss" in table.attrs["parameters"]
    records = read_records(tmp_path)
    assert records.loss.iloc[-1] == pytest.approx(measured)
    assert set(records.setting_loss) == {"cross-entropy"}

    rows = "arm,alpha,status\nAT,0.1,fine\nCAT,0.9,late\n"
    code = f"from pathlib import Path\nPath(output_dir, 'table.csv').write_text({rows!r})"
    source = notebook(tmp_path / "a.ipynb", code, "alpha = 0.5\noutput_dir = ''")
    unit = units.NotebookUnit(source, {"alpha": 0.9}, tmp_path / "notebooks")
    unit.run()
    table = table_of(tmp_path / "notebooks")
    assert table.alpha.tolist() == [0.1, 0.9] and table.setting_alpha.tolist() == [0.9, 0.9]
    assert table.result_status.tolist() == ["fine", "late"] and set(table.status) == {"done"}


def test_a_notebook_that_is_run_again_leaves_nothing_of_the_first_time(tmp_path):
    code = "from pathlib import Path\nPath(output_dir, 'table.csv').write_text('ratio\\n1.5\\n')"
    source = notebook(tmp_path / "a.ipynb", code, "output_dir = ''")
    unit = units.NotebookUnit(source, {}, tmp_path / "out")
    unit.run()
    assert table_of(tmp_path / "out").ratio.tolist() == [1.5]
    notebook(tmp_path / "a.ipynb", "2", "output_dir = ''")
    assert unit.changed_code() == ["a.ipynb"]
    unit.run()
    assert "ratio" not in table_of(tmp_path / "out") and not unit.changed_code()
    notebook(tmp_path / "a.ipynb", "1 / 0", "output_dir = ''")
    for one in (unit, units.SeriesUnit(source, {}, tmp_path / "series")):
        one.folder.mkdir(exist_ok=True)
        one.output.write_text("of an earlier run")
        with pytest.raises(Failure, match="ZeroDivisionError"):
            one.run()
        assert not one.output.exists()


REFUSED = [
    (["trial", "-p", "seed=1,5:3"], "seed: the range 5:3 is empty"),
    (["trial", "-p", "epsilon=1/0"], "epsilon is 1/0; nothing can be divided by 0"),
    (["trial", "-p", "alpha=0", "-p", "alpha=0.5"], "alpha is given twice; list its values"),
    (["trial", "-p", "alhpa=0.5"], "no parameter 'alhpa' (did you mean 'alpha'?)"),
    (["trial", "-p", "eps=0.1"], "no parameter 'eps' (did you mean 'epsilon'?)"),
    (["trial", "-p", "epsilon=8"], "epsilon is 8; in the linf ball"),
    (["trial", "-p", "dataset=empty", "--dry-run"], "the dataset 'empty' cannot be used"),
    (["trial", "-p", "alpha=high"], "alpha is 'high', of type str; it must be float"),
    (["trial", "-p", "seed=0.5"], "seed is 0.5, of type float; it must be int"),
    (["trial", "-p", "augment=1"], "augment is 1, of type int; it must be bool"),
    (["trial", "-p", "method=TRADES"], "method is 'TRADES'; it must be one of AT, CAT"),
    (["trial", "-p", "dataset=mnits"], "'mnits' cannot be used"),
    (["trial", "-p", "dataset=../x"], "cannot"),
    (["trial", "-p", "alpha"], "write NAME=VALUES"),
    (["trial", "-p", "seed=5:5"], "seed: the range 5:5 is empty"),
    (["trial", "--shard", "5/4"], "shard is '5/4'"),
    (["nowhere.ipynb"], "there is no notebook nowhere.ipynb"),
    (["training"], "neither 'trial', nor a notebook"),
    (["nowhere.toml"], "nowhere.toml cannot be read"),
    (["untagged.ipynb"], "no cell with the tag 'parameters'"),
    (["computed.ipynb"], "not a literal: beta = 2 * alpha"),
    (["broken.ipynb"], "broken.ipynb is not a notebook that can be read"),
    (["trial", "--out", "broken.ipynb/out"], "broken.ipynb/out (Not a directory); choose another"),
    (["typed.ipynb", "-p", "alpha='x'"], "alpha is 'x', of type str; it must be float"),
    ([], "say what to run"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_run_is_said_before_anything_is_made(
    tmp_path, monkeypatch, capsys, arguments, says
):
    notebook(tmp_path / "untagged.ipynb", "1", None)
    notebook(tmp_path / "computed.ipynb", "1", "alpha = 0.5\nbeta = 2 * alpha")
    notebook(tmp_path / "typed.ipynb", "1", "alpha: float = None")
    (tmp_path / "broken.ipynb").write_text("{")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.Processes, "run", lambda *_: pytest.fail("it was started"))
    assert main(["batch", "--out", "out", *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert said.count("\n") == 1, "one sentence"
    assert not (tmp_path / "out").exists() and not (tmp_path / "x").exists()


COMMANDS = {
    "run": ["run"],
    "batch": ["batch", "trial", *QUICK_ARGUMENTS],
    "study": ["study", "--piece", "audit", "--workers", "2"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("least", "says"),
    [("LEAST_FREE", "MB free; make room"), ("LEAST_MEMORY", "runs at a time need at least")],
)
def test_a_machine_with_too_little_room_is_told_so_before_anything_starts(
    tmp_path, monkeypatch, capsys, command, least, says
):
    monkeypatch.setattr(units, least, 2**60)
    monkeypatch.setattr(engine.Processes, "run", lambda *_: pytest.fail("it was started"))
    option = "--runs" if command == "study" else "--out"
    assert main([*COMMANDS[command], option, str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def no_network(*_, **__):
    raise RuntimeError("Error downloading:\nTried one address\nTried another\n")


@pytest.mark.parametrize("dataset", ["mnits", "../victim", "mnist"])
def test_the_course_is_not_begun_on_a_dataset_that_there_is_not(
    tmp_path, monkeypatch, capsys, dataset
):
    victim = tmp_path / "victim" / "table.csv"
    victim.parent.mkdir()
    victim.write_text("of somebody else")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CATLIB_DATA", str(tmp_path / "here"))
    monkeypatch.setattr("torchvision.datasets.MNIST", no_network)
    assert main(["run", "--dataset", dataset, "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and Path(dataset).name in said and "Traceback" not in said
    assert victim.read_text() == "of somebody else"
    assert not (tmp_path / "runs").exists()


def test_braces_in_a_path_are_no_parameters(tmp_path):
    path = notebook(tmp_path / "a{y}{0}" / "a.ipynb", "print(alpha)")
    execute(path, tmp_path / "out{z}" / "a.ipynb", {"alpha": 0.75})
    node = nbformat.read(tmp_path / "out{z}" / "a.ipynb", 4)
    assert node.cells[-1].outputs[0].text == "0.75\n"


# ------------------------------------------------------------------ the engine


def test_a_job_that_fails_leaves_its_error_and_the_others_go_on(tmp_path, capsys):
    jobs = [Act("a", "raise", tmp_path), Act("b", "fail", tmp_path), Act("c", "", tmp_path)]
    results = run_jobs(jobs, ThisProcess())
    assert outcomes(results) == {"a": "failed", "b": "failed", "c": "done"}
    assert "KeyError: 'nothing there'" in (tmp_path / "a.error.txt").read_text()
    assert (tmp_path / "b.error.txt").read_text() == "in plain words\n\n"
    assert not (tmp_path / "c.error.txt").exists()
    assert "3/3" in capsys.readouterr().out
    run_jobs([Act("a", "", tmp_path)], ThisProcess())
    assert not (tmp_path / "a.error.txt").exists(), "it has succeeded since"


def test_after_a_pause_no_other_job_is_begun(tmp_path):
    jobs = [Act("a", "", tmp_path), Act("b", "pause", tmp_path), Act("c", "", tmp_path)]
    assert outcomes(run_jobs(jobs, ThisProcess())) == {"a": "done", "b": "paused"}
    assert not (tmp_path / "c.begun").exists()


def test_the_time_left_is_reckoned_from_what_the_runs_cost(tmp_path):
    jobs = [Act("a", "", tmp_path, 1.0), Act("b", "", tmp_path, 3.0), Act("c", "", tmp_path)]
    progress = engine.Progress(jobs, Processes(2))
    progress.started(jobs[0])
    assert "left" not in progress.state(), "nobody can know yet"
    progress.finished(engine.Result(jobs[0], "done", seconds=40))
    # an unknown cost is the mean of the others, so 3 + 2 of them are left, by two at a time
    assert progress.seconds_left() == pytest.approx((3 + 2) * 40 / 2)
    progress.started(jobs[1])
    assert progress.state() == "0 failed, about 2 min left, 1 running: b"
    progress.running["b"] -= 1000  # it has run for longer than was thought
    assert progress.seconds_left() == pytest.approx(2 * 40 / 2)
    progress.finished(engine.Result(jobs[1], "done", seconds=120))
    progress.started(jobs[2])
    progress.running["c"] -= 1000
    assert progress.state() == "0 failed, nearly done, 1 running: c"


def test_the_longest_runs_of_a_batch_come_first(tmp_path):
    values = units.values_for("trial", {"iterations": "5,20,10", "seed": "0,1"})
    chosen = units.units_for("trial", values, tmp_path)
    found = [(u.trial.iterations, u.trial.seed) for u in units.to_do(chosen, "refuse")]
    assert found == [(20, 0), (20, 1), (10, 0), (10, 1), (5, 0), (5, 1)]


@pytest.mark.slow
def test_a_killed_process_costs_one_more_attempt_and_a_late_one_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ATTEMPTS", 2)
    acts = ["be killed", "be killed once", "sleep", "raise", ""]
    jobs = [Act(str(number), what, tmp_path) for number, what in enumerate(acts)]
    with Processes(2, limit=5) as processes:
        results = run_jobs(jobs, processes)
        alive = [worker.process for worker in processes.workers]
    assert outcomes(results) == {
        "0": "failed",
        "1": "done",
        "2": "failed",
        "3": "failed",
        "4": "done",
    }
    errors = {result.job.name: result.error for result in results}
    assert "was killed 2 times" in errors["0"]
    assert "limit of 5 s" in errors["2"]
    assert not any(process.is_alive() for process in alive)


# ------------------------------------------------------------------ batches from end to end


STARTED: list[subprocess.Popen] = []
PATIENCE = 600  # seconds that anything may take on a machine that is busy


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """End what a test that failed has left running; its workers end with it."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


def start(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "catlib.lab", "batch", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that run jobs; multiprocessing has one more, which keeps count of resources."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def is_at_work(process: subprocess.Popen) -> bool:
    """Whether a worker of it has come so far that it has loaded PyTorch."""
    return any(worker.memory_info().rss > 2**28 for worker in workers_of(process))


def finished(out: Path) -> int:
    return sum('"done"' in path.read_text() for path in out.glob("*/run.json"))


def wait_until_at_work(process: subprocess.Popen, out: Path, done: int) -> None:
    wait_for(lambda: finished(out) >= done and is_at_work(process), process)


def no_half_files(out: Path) -> bool:
    """Whether no run has left a temporary file, and each file can be read to its end."""
    for path in out.glob("*/checkpoint.pt"):
        torch.load(path, weights_only=True)
    return not [path for path in out.glob("*/*") if path.name.startswith(".")]


def assert_same_runs(out: Path, undisturbed: Path) -> None:
    """The runs of both folders have the same records and the same weights, bit for bit."""
    folders = sorted(path.parent for path in undisturbed.glob("*/run.json"))
    assert folders and {path.name for path in folders} == {p.parent.name for p in runs_in(out)}
    for whole in folders:
        disturbed = out / whole.name
        pd.testing.assert_frame_equal(
            pd.read_csv(disturbed / "records.csv").drop(columns="seconds"),
            pd.read_csv(whole / "records.csv").drop(columns="seconds"),
            check_exact=True,
        )
        weights, expected = (
            torch.load(folder / "checkpoint.pt", weights_only=True)["training"]["model"]
            for folder in (disturbed, whole)
        )
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def runs_in(out: Path) -> list[Path]:
    return list(out.glob("*/run.json"))


@pytest.mark.slow
def test_a_sweep_is_done_and_counted_once_whoever_is_killed(tmp_path):
    """Workers are killed at random moments, then the first process; the same command goes on.

    CATLIB_SWEEP is the number of trials: 60 is the sweep of ten killed workers and two killed
    first processes.
    """
    trials = int(os.environ.get("CATLIB_SWEEP", "12"))
    kills = ["worker"] * (trials // 6) + ["driver"] * max(1, trials // 30)
    rng = random.Random(trials)
    rng.shuffle(kills)
    grid = ["-p", "alpha=0,0.5", "-p", f"seed=0:{trials // 2}", *QUICK_ARGUMENTS]
    out = tmp_path / "out"
    arguments = ["trial", *grid, "--out", str(out), "--workers", "2"]
    process = start(*arguments)
    for number, victim in enumerate(kills):
        wait_until_at_work(process, out, done=1 + number * (trials - 3) // len(kills))
        time.sleep(rng.random() / 2)
        assert finished(out) < trials, "it was done before: the test says nothing"
        left = workers_of(process)
        if victim == "worker":
            rng.choice(left).kill()
            continue
        process.kill()
        process.communicate()
        assert psutil.wait_procs(left, timeout=60)[1] == [], "workers end with the first process"
        process = start(*arguments)
    printed = process.communicate(timeout=PATIENCE * 6)[0]
    assert process.returncode == 0, printed
    table = pd.read_csv(out / "table.csv")
    assert len(table) == table.run.nunique() == trials and set(table.status) == {"done"}
    assert no_half_files(out)
    again = start(*arguments)
    assert f"0 to do, {trials} done" in again.communicate(timeout=PATIENCE)[0]
    whole = tmp_path / "whole"
    undisturbed = start("trial", *grid, "--out", str(whole), "--workers", "2")
    printed = undisturbed.communicate(timeout=PATIENCE * 6)[0]
    assert undisturbed.returncode == 0, printed
    assert_same_runs(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_a_batch_that_is_told_to_stop_ends_cleanly(tmp_path, sign):
    out = tmp_path / "out"
    grid = ["-p", "seed=0:4", "-p", "iterations=5000", "-p", "evaluate_every=1"]
    process = start("trial", *grid, "-p", "evaluation_size=10", "--out", str(out), "--workers", "2")
    wait_for(lambda: len(list(out.glob("*/checkpoint.pt"))) == 2, process)
    workers = workers_of(process)
    process.send_signal(sign)
    printed = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 130
    assert "The same command goes on" in printed and "Traceback" not in printed
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_what_is_printed_leaves_out_what_all_runs_share(tmp_path):
    """A setting that is None everywhere is shared as well."""
    grid = ["-p", "method=AT,CAT", *QUICK_ARGUMENTS, "--out", str(tmp_path)]
    assert main(["batch", "trial", *grid, "--workers", "1"]) == 0
    shown = telling(table_of(tmp_path)).columns
    assert "method" in shown and not {"width", "train_size", "step_size", "seed"} & set(shown)


def test_the_batch_of_the_readme_can_be_given():
    text = README.read_text(encoding="utf-8")
    commands = re.findall(r"`catlib (batch notebooks/[^`]+)`", text)
    assert commands
    for command in commands:
        assert (
            main([*shlex.split(command.replace("notebooks/", f"{NOTEBOOKS}/")), "--dry-run"]) == 0
        )


# what a notebook does that fails, and what is said of it
FAILING = {
    "raise": ("undefined", "NameError: name 'undefined' is not defined"),
    "die": (
        "import os; os._exit(1)",
        "the kernel died, as it does when memory runs out; try fewer",
    ),
    "sleep": ("import time; time.sleep(600)", "its limit; give it more time with --cell-timeout"),
    "fill": (
        "import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
        "is full: make room there, and the same command goes on",
    ),
}


@pytest.mark.slow
def test_notebooks_that_fail_in_every_way_are_listed_and_the_good_one_is_done(tmp_path, capsys):
    code = "".join(f"if what == {what!r}: {code}\n" for what, (code, _) in FAILING.items())
    code += "open(output_dir + '/table.csv', 'w').write('answer\\n42\\n')"
    path = notebook(tmp_path / "a.ipynb", code, "what = ''\noutput_dir = ''")
    out = tmp_path / "out"
    command = ["batch", str(path), "-p", f"what=good,{','.join(FAILING)}", "--out", str(out)]
    assert main([*command, "--cell-timeout", "5", "--workers", "2"]) == 1
    said = capsys.readouterr()
    assert said.err.count("failed: a-what=") == len(FAILING)
    assert "line 1 if what == 'raise': undefined" in said.out
    for what, (_, words) in FAILING.items():
        assert words in said.out, words
        [error] = out.glob(f"a-what={what}-*/error.txt")
        assert words in error.read_text()
        assert (error.parent / "a.failed.ipynb").exists()
    assert len(list(out.glob("*/error.txt"))) == len(FAILING)
    table = pd.read_csv(out / "table.csv").set_index("run")
    assert sorted(table.status) == ["done"] + ["failed"] * len(FAILING)
    assert table.answer[table.status == "done"].item() == 42
    assert main([*command, "--dry-run"]) == 0
    assert f"{len(FAILING)} to do, 1 done" in capsys.readouterr().out


@pytest.mark.slow
def test_a_trial_beyond_its_limit_is_stopped_and_listed(tmp_path, capsys):
    long = ["-p", "iterations=1000000", "-p", "evaluate_every=5", "-p", "evaluation_size=10"]
    assert main(["batch", "trial", *long, "--limit", "2", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "stopped at its limit of 2 s; give it more with --limit" in said.out
    assert said.err.count("failed: digits-cnn-CAT") == 1


def in_a_namespace(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a shell script that may mount file systems, which nobody else sees.

    Skips the test where that is not allowed.
    """
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare, with which a small disk could be mounted")
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    tried = subprocess.run(probe, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no small disk can be mounted here: {tried.stderr.strip()}")
    return subprocess.run(
        ["unshare", "-rm", "bash", "-ec", script],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_on_a_full_disk_each_run_says_so_and_with_more_room_the_same_command_goes_on(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    # as catlib batch, but not refused at once for the little room that there is
    command = tmp_path / "command.py"
    command.write_text(
        "import sys\n"
        "from catlib.lab.__main__ import main\n"
        "from catlib.lab.batch import units\n"
        "if __name__ == '__main__':\n"
        "    units.LEAST_FREE = 0\n"
        "    sys.exit(main(['batch', *sys.argv[1:]]))\n"
    )
    words = [sys.executable, str(command), "trial", "-p", "seed=0:5", *QUICK_ARGUMENTS]
    batch = shlex.join([*words, "--workers", "2", "--out", str(disk / "out")])
    done = in_a_namespace(
        f"""
        mount -t tmpfs -o size=900k none {disk}
        {batch} && exit 9 || test $? = 1
        cp -r {disk}/out {tmp_path}/full
        echo == MORE ROOM ==
        mount -o remount,size=20m {disk}
        {batch}
        cp -r {disk}/out {tmp_path}/whole
        """,
        disk,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    full = tmp_path / "full"
    assert "Traceback" not in done.stderr
    said, later = done.stdout.split("== MORE ROOM ==")
    finished_then = finished(full)
    assert 1 <= finished_then < 5
    assert said.count("is full: make room there") >= 5 - finished_then
    assert no_half_files(full)
    assert f"{5 - finished_then} to do, {finished_then} done" in later
    for seed in range(5):
        run(Trial(seed=seed, **QUICK), tmp_path / "undisturbed")
    assert_same_runs(tmp_path / "whole", tmp_path / "undisturbed")


def test_a_disk_that_fills_up_under_a_table_is_one_sentence(tmp_path, monkeypatch, capsys):
    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    run(Trial(**QUICK), tmp_path)
    monkeypatch.setattr(files, "write_whole", full)
    assert main(["batch", "--table", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == (
        f"catlib batch: the disk of {tmp_path} is full: "
        "make room there, and the same command goes on\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_no_kernel_outlives_its_batch(tmp_path, sign):
    code = "import os, time; open(name, 'w').write(str(os.getpid())); time.sleep(600)"
    path = notebook(tmp_path / "a.ipynb", code, "name = ''")
    note = tmp_path / "kernel"
    process = start(str(path), "-p", f"name={note}", "--out", str(tmp_path / "out"))
    wait_for(lambda: note.exists() and note.read_text(), process)
    kernel = psutil.Process(int(note.read_text()))
    process.send_signal(sign)
    process.communicate(timeout=PATIENCE)
    assert psutil.wait_procs([kernel], timeout=60)[1] == []


@pytest.mark.slow
def test_a_study_with_two_workers_gives_the_same_table(tmp_path, monkeypatch):
    arms = [("AT", Trial(method="AT", **QUICK)), ("CAT", Trial(**QUICK))]
    piece = Piece("smoke", "tables", "about", "train", tuple(arms), {}, {"tiny": False})
    monkeypatch.setattr(work, "pieces_of", lambda *_: [piece])
    tables = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        assert work.study("smoke", runs=folder, results=folder, workers=workers)
        tables.append(pd.read_csv(folder / "smoke_tables.csv", comment="#"))
    one, two = (table.drop(columns="seconds") for table in tables)
    pd.testing.assert_frame_equal(one, two, check_exact=True)


def test_runs_of_other_code_are_refused_repeated_or_taken_as_they_are(tmp_path, capsys):
    grid = ["batch", "trial", *QUICK_ARGUMENTS, "--out", str(tmp_path)]
    path = run(Trial(**QUICK), tmp_path) / "run.json"
    assert main([*grid, "--dry-run"]) == 0
    assert "0 to do, 1 done" in capsys.readouterr().out
    info = json.loads(path.read_text())
    for stretch in info["stretches"]:
        stretch["code"]["catlib/gain.py"] = "another"
    path.write_text(json.dumps(info))
    assert main([*grid, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "finished by other code" in said and "catlib/gain.py" in said
    assert main([*grid, "--dry-run", "--if-code-changed", "repeat"]) == 0
    assert main([*grid, "--dry-run", "--if-code-changed", "reuse"]) == 0
    said = capsys.readouterr().out
    assert "1 to do, 0 done" in said and "0 to do, 1 done" in said


def test_the_table_shows_every_result_and_the_parameters_that_differ(tmp_path, capsys):
    names = []
    for alpha in (0.0, 0.5):
        folder = run(Trial(**QUICK | {"alpha": alpha}), tmp_path)
        records = pd.read_csv(folder / "records.csv").assign(accuracy=0.25)
        records.to_csv(folder / "records.csv", index=False)
        names.append(folder.name)
    assert main(["batch", "--table", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    heading = shown.splitlines()[0].split()
    assert {"run", "status", "alpha", "accuracy", "robust_accuracy"} <= set(heading)
    assert not {"dataset", "method", "seed"} & set(heading)
    assert all(name in shown for name in names)


def test_every_setting_is_listed_with_its_type_default_and_meaning(tmp_path, capsys):
    assert main(["batch", "trial", "--settings"]) == 0
    listed = capsys.readouterr().out
    entries = re.findall(r"^(\w+)=(\S+)  \((.+)\)\n((?:    .+\n?)+)", listed, re.M)
    assert [name for name, *_ in entries] == [field.name for field in fields(Trial)]
    assert ("steps", "10", "int", "    of the attack\n") in entries
    assert "or None" in dict((name, kinds) for name, _, kinds, _ in entries)["iterations"]
    source = "# Parameters: two.\nalpha: float = 0.5  # the memory\n# Of all.\nseed: int = 0"
    notebook(tmp_path / "a.ipynb", "1", source)
    assert main(["batch", str(tmp_path / "a.ipynb"), "--settings"]) == 0
    assert capsys.readouterr().out == (
        "alpha=0.5  (float)\n    the memory\nseed=0  (int)\n    Of all.\n"
    )


def test_a_bad_run_is_named_in_the_table_and_hides_no_other(tmp_path, capsys):
    run(Trial(**QUICK), tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text("{")
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "error.txt").write_text("ValueError: no\nsuch thing\n\nTraceback ...")
    assert main(["batch", "--table", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "table.csv").set_index("run")
    assert dict(table.status) == {
        Trial(**QUICK).id: "done",
        "foreign": "unreadable",
        "failed": "failed",
    }
    assert table.error["failed"] == "ValueError: no such thing"
    assert table.alpha[Trial(**QUICK).id] == 0.5
    assert json.loads((tmp_path / Trial(**QUICK).id / "run.json").read_text())["status"] == "done"


# ------------------------------------------------------------------ the documentation


def commands_in(path: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("catlib")]


@pytest.mark.slow
def test_the_examples_of_the_documentation_run_as_they_stand(tmp_path):
    page = (DOCS / "batches.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"`(\w+\.(?:toml|yaml))`:\n\n```\w+\n(.*?)```", page, re.S):
        (tmp_path / name).write_text(text)
    (tmp_path / "notebooks").symlink_to(NOTEBOOKS)
    commands = commands_in(DOCS / "batches.md")
    assert len(commands) >= 6
    for command in commands:
        words = shlex.split(command, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", "catlib.lab", *words[1:]],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"

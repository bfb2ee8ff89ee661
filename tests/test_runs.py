"""What a run leaves behind: whole files, and the same result however often it was killed."""

import ast
import csv
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pandas as pd
import pytest
import torch

from catlib.files import write_whole
from catlib.lab import runs
from catlib.lab.paths import ROOT
from catlib.lab.runs import Trial, is_done, read_records, run

TINY = Trial(
    method="CAT",
    seed=3,
    iterations=12,
    sampling_number=32,
    steps=1,
    evaluate_every=3,
    evaluation_size=40,
    evaluation_steps=2,
    device="cpu",
)


def without_seconds(folder):
    return pd.read_csv(folder / "records.csv").drop(columns="seconds")


def state(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["training"]


@pytest.mark.parametrize("method", ["AT", "CAT"])
def test_what_a_run_leaves_behind(tmp_path, method):
    trial = replace(TINY, method=method, final_restarts=2)
    folder = run(trial, tmp_path)
    assert folder == tmp_path / trial.id
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.pt", "records.csv", "run.json"]
    info = json.loads((folder / "run.json").read_text())
    assert info["status"] == "done" and is_done(folder) and Trial(**info["trial"]) == trial
    assert {
        "device",
        "threads",
        "versions",
        "revision",
        "command",
        "wall_seconds",
        "written",
    } <= set(info)
    assert (
        info["versions"]["torch"] == torch.__version__.split("+")[0]
        or info["versions"]["torch"] == torch.__version__
    )
    assert 0 <= info["final"]["robust_accuracy"] <= info["final"]["accuracy"] <= 1
    records = pd.read_csv(folder / "records.csv")
    assert list(records.iteration) == [3, 6, 9, 12] and list(records.examples) == [
        96,
        192,
        288,
        384,
    ]
    assert list(records.passes) == [192, 384, 576, 768]  # a step and an update each
    assert (
        records.seconds.is_monotonic_increasing and records.seconds.iloc[-1] < info["wall_seconds"]
    )
    table = read_records(tmp_path)
    assert len(table) == 4 and set(table.method) == {method} and set(table.id) == {trial.id}


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    folder = run(TINY, tmp_path)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    monkeypatch.setattr(runs, "build_training", None)
    assert run(TINY, tmp_path) == folder
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()} == before


def test_an_id_is_stable_and_tells_settings_apart():
    """The digest counts what is not a default: a new setting leaves old folders valid."""
    assert Trial().id == "digits-cnn-CAT-k128-s0-44136fa3"
    assert (
        Trial(dataset="mnist", method="CAT", epsilon=0.1, seed=3).id
        == Trial(dataset="mnist", seed=3).id
    )
    different = [
        {},
        {"epsilon": 0.2},
        {"seed": 1},
        {"alpha": 0.6},
        {"steps": 11},
        {"temperature": 1.0},
        {"method": "AT"},
    ]
    assert len({Trial(**settings).id for settings in different}) == len(different)
    code = (
        "from catlib.lab.runs import Trial\n"
        "print(Trial(dataset='mnist', epsilon=0.3, temperature=2.0).id)"
    )
    again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert again.stdout.strip() == Trial(dataset="mnist", epsilon=0.3, temperature=2.0).id


@pytest.mark.parametrize(
    "name, value",
    [("method", "TRADES"), ("weighting", "loud"), ("optimizer", "lion"), ("schedule", "no")],
)
def test_an_unknown_setting_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}'; it must be one of"):
        Trial(**{name: value})


def test_only_finished_runs_are_read(tmp_path):
    assert read_records(tmp_path).empty
    folder = run(TINY, tmp_path)
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"status": "running"}))
    assert read_records(tmp_path).empty and not is_done(folder)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    folder = tmp_path / TINY.id
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(ValueError) as caught:
        run(TINY, tmp_path)
    assert str(folder / "checkpoint.pt") in str(caught.value) and "Delete the folder" in str(
        caught.value
    )
    assert [p.name for p in folder.iterdir()] == ["checkpoint.pt"]


# killed


class Killed(BaseException):
    """As final as SIGKILL, but in this process."""


CHANGING = replace(
    TINY, warm_up=5, epsilon_warm_up=7, schedule="cyclic", optimizer="adam", augment=True
)


@pytest.mark.parametrize(
    "trial", [TINY, CHANGING], ids=["plain", "everything that changes on the way"]
)
def test_killed_before_or_after_any_write(tmp_path, monkeypatch, trial, same):
    """At each moment between two files, so that no pair of them can disagree for good."""
    whole, writes = run(trial, tmp_path / "whole"), []
    genuine = runs.write_whole
    monkeypatch.setattr(
        runs,
        "write_whole",
        lambda path, content: (writes.append(path.name), genuine(path, content)),
    )
    run(trial, tmp_path / "counted")
    assert writes.count("checkpoint.pt") == writes.count("records.csv") == 4
    for last in range(len(writes)):
        left = [last]

        def write(path, content, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            genuine(path, content)

        monkeypatch.setattr(runs, "write_whole", write)
        with pytest.raises(Killed):
            run(trial, tmp_path / str(last))
        monkeypatch.setattr(runs, "write_whole", genuine)
        assert not is_done(tmp_path / str(last) / trial.id)
        folder = run(trial, tmp_path / str(last))
        pd.testing.assert_frame_equal(
            without_seconds(folder), without_seconds(whole), check_exact=True
        )
        assert same(state(folder), state(whole))


def test_a_write_cut_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "records.csv"
    write_whole(path, b"old")

    def half(temporary):
        temporary.write_bytes(b"ne")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(path, half)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_whole(path, lambda temporary: temporary.write_bytes(b"new"))
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


# One process imports everything once; each attempt is a fork of it, to be killed at any moment.
DRIVER = textwrap.dedent("""
    import ast, os, signal, sys, time
    import torch
    torch.set_num_threads(1)
    import catlib.lab.runs as runs, torchvision, sklearn.datasets
    print("ready", flush=True)
    for line in sys.stdin:
        root, settings, iterations, seconds = ast.literal_eval(line)
        began, (heard, tell) = time.monotonic(), os.pipe()
        child = os.fork()
        if not child:
            runs.run(runs.Trial(**settings), root, observe=lambda *_: os.write(tell, b"."))
            os._exit(0)
        if seconds is not None:
            for _ in range(iterations):
                os.read(heard, 1)
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(heard), os.close(tell)
        print((status, time.monotonic() - began), flush=True)
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("method", ["CAT", pytest.param("AT", marks=pytest.mark.slow)])
def test_killed_at_random_moments_ends_bit_identical(tmp_path, method, same):
    """SIGKILL at ten moments: no file is half written, and the end is that of a run left alone."""
    trial = Trial(
        method=method,
        seed=5,
        iterations=40,
        sampling_number=32,
        steps=1,
        evaluate_every=1,
        evaluation_size=20,
        evaluation_steps=1,
        device="cpu",
        schedule="cyclic",
        augment=True,
    )
    settings = {name: getattr(trial, name) for name in trial.__dataclass_fields__}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as driver:

        def attempt(root, iterations=0, seconds=None):
            """A run that is killed so many seconds after so many iterations."""
            print((str(root), settings, iterations, seconds), file=driver.stdin, flush=True)
            return ast.literal_eval(driver.stdout.readline())

        assert driver.stdout.readline() == "ready\n"
        status, took = attempt(tmp_path / "whole")
        assert status == 0
        moments, folder, seen = random.Random(0), tmp_path / "killed" / trial.id, []
        for _ in range(10):
            # after none, one or two iterations, and then somewhere in the next
            status, _ = attempt(
                tmp_path / "killed",
                moments.randrange(3),
                moments.uniform(0, 1.5) * took / trial.iterations,
            )
            assert status == signal.SIGKILL
            seen.append(check_whole(folder, trial))
        status, _ = attempt(tmp_path / "killed")
        assert status == 0
        driver.stdin.close()
    assert seen == sorted(seen) and len(set(seen)) > 5, seen  # it did go on from where it was
    whole = tmp_path / "whole" / trial.id
    pd.testing.assert_frame_equal(without_seconds(folder), without_seconds(whole), check_exact=True)
    assert same(state(folder), state(whole)) and len(without_seconds(folder)) == 40
    assert is_done(folder)


def check_whole(folder, trial):
    """Every file that a reader would open is whole; the iteration that the checkpoint has."""
    iteration = 0
    for path in folder.glob("[!.]*") if folder.exists() else ():
        if path.name == "run.json":
            assert json.loads(path.read_text())["id"] == trial.id
        elif path.name == "records.csv":
            rows = list(csv.reader(path.read_text().splitlines()))
            assert path.read_text().endswith("\n") and len({len(row) for row in rows}) == 1
            assert [int(row[0]) for row in rows[1:]] == list(range(1, len(rows)))
        else:
            assert path.name == "checkpoint.pt"
            iteration = torch.load(path, weights_only=True)["training"]["iteration"]
    return iteration

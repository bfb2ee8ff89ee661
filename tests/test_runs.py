"""What a run leaves behind: whole files, and the same result however often it was killed."""

import ast
import csv
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from catlib.data import load_data
from catlib.files import write_whole
from catlib.lab import runs, sources
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


def test_a_slim_resnet_is_named_in_the_run_and_in_its_settings(tmp_path):
    slim = Trial(
        model="resnet18",
        width=8,
        iterations=1,
        sampling_number=10,
        steps=1,
        evaluate_every=0,
        device="cpu",
    )
    assert slim.id.startswith("digits-resnet18-w8-CAT-k10-s0-")
    assert replace(slim, width=None).id.startswith("digits-resnet18-CAT-k10-s0-")
    info = runs.read_run(run(slim, tmp_path))
    assert info["trial"]["width"] == 8
    assert Trial(**info["trial"]) == slim
    weights = torch.load(tmp_path / slim.id / "checkpoint.pt", weights_only=True)
    assert weights["training"]["model"]["1.conv1.weight"].shape == (8, 1, 3, 3)


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


# of what code a run is


def with_other_code(monkeypatch):
    """From now on the code is not what it was."""
    changed = sources.CATLIB | {"catlib/training.py": "0" * 12, "catlib/new.py": "1" * 12}
    monkeypatch.setattr(sources, "CATLIB", changed)


def rows_and_state(folder):
    return (folder / "records.csv").read_bytes(), (folder / "checkpoint.pt").read_bytes()


def half(trial, root):
    """Leave a run of which only the first evaluation is stored."""

    def stop(training, record):
        if record.accuracy is not None:
            raise Killed

    with pytest.raises(Killed):
        run(trial, root, observe=stop)
    assert not is_done(root / trial.id)


@pytest.mark.parametrize("begin", [run, half], ids=["finished", "begun"])
def test_a_run_of_other_code_is_refused(tmp_path, monkeypatch, begin):
    begin(TINY, tmp_path)
    folder = tmp_path / TINY.id
    before = rows_and_state(folder)
    with_other_code(monkeypatch)
    with pytest.raises(ValueError) as caught:
        run(TINY, tmp_path)
    said = str(caught.value)
    assert "what differs: catlib/new.py, catlib/training.py." in said
    assert str(folder) in said and "Delete the folder" in said and "'repeat'" in said
    assert rows_and_state(folder) == before


@pytest.mark.parametrize("begin", [run, half], ids=["finished", "begun"])
def test_a_run_of_other_code_may_be_repeated(tmp_path, monkeypatch, begin):
    """It is put aside with all that lies there, and is read no more."""
    begin(TINY, tmp_path)
    folder = tmp_path / TINY.id
    before = rows_and_state(folder)
    (folder / "notes.txt").write_text("mine")
    with_other_code(monkeypatch)
    assert run(TINY, tmp_path, if_code_changed="repeat") == folder
    [aside] = tmp_path.glob(f"{TINY.id}.replaced-*")
    assert rows_and_state(aside) == before and (aside / "notes.txt").read_text() == "mine"
    assert is_done(folder) and not (folder / "notes.txt").exists()
    assert [s["after_iteration"] for s in runs.read_run(folder)["stretches"]] == [0]
    assert len(read_records(tmp_path)) == 4
    assert run(TINY, tmp_path) == folder


def test_a_run_of_other_code_may_be_reused(tmp_path, monkeypatch):
    run(TINY, tmp_path)
    half(replace(TINY, seed=4), tmp_path)
    folders = [tmp_path / TINY.id, tmp_path / replace(TINY, seed=4).id]
    before = rows_and_state(folders[0])
    with_other_code(monkeypatch)
    run(TINY, tmp_path, if_code_changed="reuse")
    run(replace(TINY, seed=4), tmp_path, if_code_changed="reuse")
    assert rows_and_state(folders[0]) == before
    stretches = runs.read_run(folders[1])["stretches"]
    assert [stretch["after_iteration"] for stretch in stretches] == [0, 3]
    assert "catlib/new.py" in stretches[1]["code"] and "catlib/new.py" not in stretches[0]["code"]
    with pytest.warns(UserWarning, match="made by other code") as caught:
        assert len(read_records(tmp_path)) == 8
    assert all(folder.name in str(caught[0].message) for folder in folders)


def test_an_old_run_json_without_its_code_is_of_other_code(tmp_path):
    folder = run(TINY, tmp_path)
    info = json.loads((folder / "run.json").read_text())
    del info["stretches"], info["code"]
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="does not say what code it is of"):
        run(TINY, tmp_path)
    with pytest.warns(UserWarning, match="made by other code"):
        assert len(read_records(tmp_path)) == 4


def test_an_unknown_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="if_code_changed is 'maybe'; it must be one of refuse"):
        run(TINY, tmp_path, if_code_changed="maybe")
    assert list(tmp_path.iterdir()) == []


def test_the_code_of_a_run_is_what_decides_its_numbers():
    """Comments, docstrings and formatting are not; a statement is, wherever it stands."""
    assert {"catlib/attacks.py", "catlib/kernels/tree.py", "catlib/lab/runs.py"} <= set(
        sources.CATLIB
    )
    assert not {"catlib/lab/figures.py", "catlib/lab/panel.py"} & set(sources.CATLIB)
    source = (sources._PACKAGE / "training.py").read_text()
    assert sources.digest(source) == sources.CATLIB["catlib/training.py"]
    assert sources.digest(f"# a comment\n\n{source}") == sources.CATLIB["catlib/training.py"]
    plain = "def f(x):\n    return x + 1\n"
    assert sources.digest(plain) == sources.digest('def f( x ):\n    "Why."\n    return (x+1) # so')
    assert sources.digest(plain) != sources.digest(plain.replace("1", "2"))
    assert source.count("self.optimizer.step()") == 1
    without_step = source.replace("self.optimizer.step()", "pass")
    assert sources.digest(without_step) != sources.CATLIB["catlib/training.py"]


def test_the_code_of_one_s_own_model_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models.py").write_text("def net(data): return 1")
    before = sources.code_of("my_models:net")
    (tmp_path / "my_models.py").write_text("def net(data): return 2")
    assert sources.differing(before, sources.code_of("my_models:net")) == ["my_models"]
    assert sources.code_of("cnn") == sources.CATLIB == sources.code_of("no_such_module:net")


def test_data_of_ones_own_that_changed_are_noticed(tmp_path, monkeypatch, own_images):
    """A file and a folder; a run that was finished, and one that was begun."""
    monkeypatch.chdir(tmp_path)
    digits = load_data("digits")
    images = digits.x_train[:300, 0].numpy()
    labels = digits.y_train[:300].numpy()

    def write(y):
        np.savez("mine.npz", x_train=images, y_train=y, x_test=images[:50], y_test=y[:50])

    write(labels)
    trial = replace(TINY, dataset="mine.npz")
    done = run(trial, "done")
    half(trial, Path("half"))
    assert run(trial, "done") == done and not runs.changed_code(done)
    write((labels + 1) % 10)
    for root, state in (("done", "finished"), ("half", "begun")):
        with pytest.raises(ValueError, match=f"{state} by other code, or on other data.*mine.npz"):
            run(trial, root)
    Path("mine.npz").unlink()
    assert not runs.changed_code(done), "what cannot be looked at contradicts nothing"
    before = sources.code_of("cnn", own_images)
    image = next(Path(own_images).rglob("*.png"))
    image.write_bytes(image.read_bytes() + b" ")
    now = sources.code_of("cnn", own_images)
    assert sources.differing(before, now) == [f"data {own_images}"]


def test_every_stretch_of_a_run_is_recorded(tmp_path):
    half(TINY, tmp_path)
    half(TINY, tmp_path)
    folder = run(TINY, tmp_path)
    stretches = runs.read_run(folder)["stretches"]
    assert [stretch["after_iteration"] for stretch in stretches] == [0, 3, 6]
    for stretch in stretches:
        assert {"began", "revision", "code", "versions", "device", "threads", "command"} <= set(
            stretch
        )
        assert stretch["code"] == sources.CATLIB


# two at once


def test_a_second_process_waits_or_says_who_works_there(tmp_path, attempt):
    """The other process is real; it holds the lock until it ends, however it ends."""
    trial = Trial(**SMALL)
    with runs.only_one_process(tmp_path / trial.id, wait=0):
        with pytest.raises(TimeoutError) as caught:
            run(trial, tmp_path, wait=0)
        said = str(caught.value)
        assert f"process {os.getpid()} on {socket.gethostname()}, since 2" in said
        assert str(tmp_path / trial.id) in said and not (tmp_path / trial.id).exists()
        with (
            pytest.warns(UserWarning, match=rf"process {os.getpid()} .* waiting"),
            pytest.raises(TimeoutError),
        ):
            run(trial, tmp_path, wait=0.2)
    status, _ = attempt(tmp_path, SMALL, 2, 0.0, signal.SIGKILL)
    assert status == signal.SIGKILL
    assert is_done(run(trial, tmp_path, wait=0))


@pytest.mark.no_device("it works in processes that see no mock")
def test_many_processes_on_one_run_do_it_once(tmp_path):
    code = textwrap.dedent(f"""
        import sys, warnings
        import torch
        torch.set_num_threads(1)
        from catlib.lab.runs import Trial, run
        warnings.simplefilter("ignore")
        iterations = []
        run(Trial(**{SMALL!r}), {str(tmp_path)!r}, observe=lambda *_: iterations.append(1))
        print(len(iterations))
    """)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(3)
    ]
    done = sorted(int(process.communicate()[0]) for process in processes)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert done == [0, 0, 24]


# files of others


def test_files_of_others_are_left_alone(tmp_path):
    """JupyterLab makes .ipynb_checkpoints on opening a file; other files are the user's."""
    half(TINY, tmp_path)
    folder = tmp_path / TINY.id
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "records-checkpoint.csv").write_text("1")
    for name in (".notes", ".notes.2024", "best.pt", ".DS_Store"):
        (folder / name).write_text("mine")
    (folder / ".checkpoint.pt.123456.part").write_text("of a process that was killed")
    run(TINY, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".DS_Store",
        ".ipynb_checkpoints",
        ".notes",
        ".notes.2024",
        "best.pt",
        "checkpoint.pt",
        "records.csv",
        "run.json",
    ]


BAD = {
    "not JSON": "{",
    "another tool's": '{"status": "done", "name": "mine"}',
    "a list": "[1, 2]",
    "without records": '{"status": "done", "id": "x", "trial": {"model": "cnn"}}',
    "of strange settings": '{"status": "done", "id": "x", "trial": [1]}',
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_run_json_does_not_hide_the_others(tmp_path, name):
    run(TINY, tmp_path)
    bad = tmp_path / "a" / "run.json"
    bad.parent.mkdir()
    bad.write_text(BAD[name])
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        assert len(read_records(tmp_path)) == 4
    assert str(bad) in str(caught[0].message)


def test_a_bad_run_json_in_its_own_folder_is_named(tmp_path):
    folder = run(TINY, tmp_path)
    (folder / "run.json").write_text("{")
    with pytest.raises(ValueError, match="Delete the folder") as caught:
        run(TINY, tmp_path)
    assert str(folder / "run.json") in str(caught.value)


def test_a_run_without_evaluations_is_read(tmp_path):
    """It has one row, that of its last iteration."""
    trial = replace(TINY, evaluate_every=0)
    run(trial, tmp_path)
    table = read_records(tmp_path)
    assert list(table.iteration) == [12] and "robust_accuracy" not in table
    run(TINY, tmp_path)
    table = read_records(tmp_path)
    assert sorted(table.iteration) == [3, 6, 9, 12, 12] and table.accuracy.isna().sum() == 1


# a checkpoint


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path, same):
    """Wherever it lies: either the run refuses, or what it loads is right nevertheless."""
    half(TINY, tmp_path)
    path = tmp_path / TINY.id / "checkpoint.pt"
    whole = path.read_bytes()
    right = runs._read_checkpoint(path, TINY, torch.device("cpu"))
    moments, found = random.Random(0), 0
    for _ in range(60):
        position = moments.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[position] ^= 1 << moments.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(runs._read_checkpoint(path, TINY, torch.device("cpu")), right)
        except ValueError as error:
            assert str(path) in str(error) and "Delete the folder" in str(error)
            found += 1
    assert found > 40
    path.write_bytes(whole)
    assert is_done(run(TINY, tmp_path))


@pytest.mark.parametrize("other", [{"method": "AT"}, {"seed": 4}], ids=["method", "seed"])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, other):
    half(TINY, tmp_path)
    half(replace(TINY, **other), tmp_path)
    path = tmp_path / TINY.id / "checkpoint.pt"
    foreign = tmp_path / replace(TINY, **other).id / "checkpoint.pt"
    path.write_bytes(foreign.read_bytes())
    with pytest.raises(ValueError) as caught:
        run(TINY, tmp_path)
    said = str(caught.value)
    assert f"is of the run {foreign.parent.name}, not of {TINY.id}" in said and str(path) in said


# the settings


def test_numbers_of_numpy_are_numbers():
    trial = Trial(seed=np.int64(1), epsilon=np.float64(0.25), augment=np.bool_(True))
    plain = Trial(seed=1, epsilon=0.25, augment=True)
    assert trial == plain and trial.id == plain.id and type(trial.seed) is int


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"seed": "1"}, "seed is '1', of type str; it must be int"),
        ({"seed": True}, "seed is True, of type bool; it must be int"),
        ({"iterations": 1e3}, "iterations is 1000.0, of type float; it must be int or None"),
        ({"augment": 1}, "augment is 1, of type int; it must be bool"),
        ({"epsilon": "8/255"}, "epsilon is '8/255', of type str; it must be float"),
        ({"temperature": None}, "temperature is None, of type NoneType; it must be float or str"),
        ({"dataset": Path("digits")}, "of type .*Path; it must be str"),
        ({"seed": -1}, "seed is -1; it must be an integer of at least 0"),
        ({"iterations": 0}, "iterations is 0; it must be an integer of at least 1"),
        ({"evaluate_every": -5}, "evaluate_every is -5"),
        ({"final_size": 0}, "final_size is 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"epsilon": -0.1}, "epsilon is -0.1"),
        ({"evaluation_rule": "mean"}, "evaluation_rule is 'mean'; it must be one of sign"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"crafting": "free", "steps": 0}, "steps is 0; with crafting 'free'"),
        ({"memory_bits": 4}, "memory_bits is 4; it must be 0, 8 or 16"),
        ({"memory_bits": 8, "crafting": "n-fgsm"}, "crafting 'n-fgsm'; only 'pgd'"),
        ({"budget": "rank"}, "budget is 'rank'; it must be one of equal, boundary"),
        ({"budget": "boundary", "method": "AT"}, "method 'AT', which has no weights"),
        ({"budget": "boundary", "crafting": "n-fgsm"}, "only crafting 'pgd' can follow it"),
        ({"budget": "boundary", "steps": 0}, "steps is 0; with budget 'boundary'"),
        ({"schedule": "cyclic", "iterations": None}, "iterations is None; a cyclic schedule"),
    ],
)
def test_a_setting_that_no_run_can_use_is_refused(settings, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        Trial(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"dataset": "../x"},
        {"dataset": "/tmp/x"},
        {"model": "../../y"},
        {"dataset": ".."},
        {"dataset": "a b\n*"},
        {"model": "my_models:small_net"},
    ],
)
def test_a_name_cannot_leave_its_folder(tmp_path, settings):
    """And what cannot be built leaves nothing behind, not even an empty folder."""
    trial = Trial(**settings)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", trial.id)
    assert Trial(dataset="x").id != Trial(dataset="../x").id
    root = tmp_path / "runs"
    with pytest.raises(ValueError):
        run(trial, root)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crafting", ["pgd", "n-fgsm", "free", "batch mean"])
def test_epsilon_grows_for_every_attack(crafting):
    trial = replace(TINY, crafting=crafting, epsilon_warm_up=4, iterations=6)
    training = runs.build_training(trial)
    radii = []
    for _ in runs.records_of(trial, training):
        radii.append(training.attack.epsilon)
    assert radii == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_records_may_be_asked_for_again(same):
    """After an interrupt a new loop over the same training goes on as if nothing had been."""
    trial = replace(TINY, epsilon_warm_up=9, warm_up=4)
    whole = runs.build_training(trial)
    expected = [replace(record, seconds=0) for record in runs.records_of(trial, whole)]
    training = runs.build_training(trial)
    got = []
    for stop in (2, 4, 5, 100):
        for record in runs.records_of(trial, training):
            got.append(replace(record, seconds=0))
            if record.iteration == stop:
                break
    assert got == expected and same(training.state_dict(), whole.state_dict())


def test_data_are_read_once_as_long_as_their_file_stays(tmp_path, monkeypatch, digits):
    read = []
    genuine = runs.load_data
    monkeypatch.setattr(runs, "load_data", lambda name: read.append(name) or genuine(name))
    monkeypatch.setattr(runs, "_last_data", {})
    images = [runs.build_training(TINY).data.x_train for _ in range(2)]
    assert images[0].data_ptr() == images[1].data_ptr()
    assert read == ["digits"]
    file = tmp_path / "mine.npz"
    few = {"x_train": digits.x_train[:100, 0], "y_train": digits.y_train[:100]}
    np.savez(file, **few, x_test=few["x_train"], y_test=few["y_train"])
    own = replace(TINY, dataset=str(file))
    runs.build_training(own)
    first = runs.build_training(own).data.x_train
    assert read == ["digits", str(file)]
    np.savez(
        file,
        **few | {"x_train": 255 - few["x_train"]},
        x_test=few["x_train"],
        y_test=few["y_train"],
    )
    assert torch.equal(runs.build_training(own).data.x_train, 255 - first)
    assert len(runs._last_data) == 1, "the data before are let go"


# killed


class Killed(BaseException):
    """As final as SIGKILL, but in this process."""


CHANGING = replace(
    TINY,
    warm_up=5,
    epsilon_warm_up=7,
    schedule="cyclic",
    optimizer="adam",
    augment=True,
    memory_bits=8,
    budget="boundary",
    weighting="rank",
)


@pytest.mark.parametrize(
    "trial", [TINY, CHANGING], ids=["plain", "everything that changes on the way"]
)
def test_killed_before_or_after_any_write(tmp_path, monkeypatch, trial, same):
    """At each moment between two files, so that no pair of them can disagree for good."""
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
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


def test_a_checkpoint_is_written_once_a_minute_when_stopped_and_at_the_end(tmp_path, monkeypatch):
    """By a clock on which an iteration takes 25 s; each write is noted with its iteration."""
    trial = replace(TINY, evaluate_every=1)
    clock = [0.0]
    writes = []
    genuine = runs._History.save_checkpoint

    def save(history, folder, trial, training):
        writes.append(training.iteration)
        genuine(history, folder, trial, training)

    def observe(training, record):
        clock[0] += 25
        if record.iteration == stop:
            raise Killed

    monkeypatch.setattr(runs._History, "save_checkpoint", save)
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    stop = 5
    with pytest.raises(Killed):
        run(trial, tmp_path, observe=observe)
    assert writes == [3, 5], "at 75 s, and when the observer stopped the run"
    stop = None
    run(trial, tmp_path, observe=observe)
    assert writes[2:] == [8, 11, 12], "75 s after the one that was read, and at the end"


def test_records_after_the_last_checkpoint_are_dropped_and_made_again(tmp_path, monkeypatch, same):
    """Killed between two checkpoints: records.csv holds more than the run goes on with."""
    trial = replace(CHANGING, evaluate_every=1)
    whole = run(trial, tmp_path / "whole")
    folder = tmp_path / "killed" / trial.id
    genuine = runs.write_whole
    # the checkpoint of iteration 4 is written, that of iteration 8 is not
    monkeypatch.setattr(runs._History, "checkpoint_is_due", lambda self: len(self.records) % 4 == 0)

    def write(path, content):
        if path.name == "checkpoint.pt" and path.exists():
            raise Killed
        genuine(path, content)

    monkeypatch.setattr(runs, "write_whole", write)
    with pytest.raises(Killed):
        run(trial, tmp_path / "killed")
    assert list(pd.read_csv(folder / "records.csv").iteration) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert state(folder)["iteration"] == 4
    monkeypatch.setattr(runs, "write_whole", genuine)
    first = []

    def look(training, record):
        if not first:
            first.extend(pd.read_csv(folder / "records.csv").iteration)

    run(trial, tmp_path / "killed", observe=look)
    assert first == [1, 2, 3, 4, 5]
    pd.testing.assert_frame_equal(without_seconds(folder), without_seconds(whole), check_exact=True)
    assert same(state(folder), state(whole))


def test_records_without_a_checkpoint_are_dropped(tmp_path, monkeypatch):
    """Killed in the first minute: the run begins anew, and its old records do not stay."""
    stop_writing = [True]
    genuine = runs.write_whole

    def write(path, content):
        if stop_writing[0] and path.name == "records.csv" and path.exists():
            raise Killed
        genuine(path, content)

    monkeypatch.setattr(runs, "write_whole", write)
    with pytest.raises(Killed):
        run(TINY, tmp_path)
    folder = tmp_path / TINY.id
    assert (folder / "records.csv").exists() and not (folder / "checkpoint.pt").exists()
    stop_writing[0] = False
    there = []
    run(TINY, tmp_path, observe=lambda *_: there.append((folder / "records.csv").exists()))
    assert there[0] is False and there[-1] is True


@pytest.mark.parametrize("where", ["attack", "evaluation"])
def test_ctrl_c_saves_what_is_done(tmp_path, monkeypatch, where, same):
    """In the middle of the seventh iteration, or of the evaluation after the sixth."""
    whole = run(TINY, tmp_path / "whole")
    folder = tmp_path / "stopped" / TINY.id
    genuine = {"attack": runs.PGD._maximise, "evaluation": runs.PGD.attack_until_broken}[where]
    calls = [0]

    def interrupted(*arguments, **options):
        calls[0] += 1
        if calls[0] == {"attack": 7, "evaluation": 2}[where]:
            signal.raise_signal(signal.SIGINT)
        return genuine(*arguments, **options)

    monkeypatch.setattr(runs.PGD, genuine.__name__, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(TINY, tmp_path / "stopped")
    assert state(folder)["iteration"] == 6
    assert (state(folder)["pending"] is None) == (where == "attack")
    run(TINY, tmp_path / "stopped")
    pd.testing.assert_frame_equal(without_seconds(folder), without_seconds(whole), check_exact=True)
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


# One process imports everything once; each attempt is a fork of it, to be ended at any moment.
DRIVER = textwrap.dedent("""
    import ast, os, signal, sys, time
    import torch
    torch.set_num_threads(1)
    import catlib.lab.runs as runs, torchvision, sklearn.datasets
    print("ready", flush=True)
    for line in sys.stdin:
        root, settings, iterations, seconds, number, between = ast.literal_eval(line)
        runs.CHECKPOINT_SECONDS = between
        began, (heard, tell) = time.monotonic(), os.pipe()
        child = os.fork()
        if not child:
            os.close(heard)
            try:
                runs.run(runs.Trial(**settings), root, observe=lambda *_: os.write(tell, b"."))
            except KeyboardInterrupt:
                os._exit(130)
            os._exit(0)
        os.close(tell)
        if seconds is not None:
            for _ in range(iterations):
                os.read(heard, 1)
            time.sleep(seconds)
            os.kill(child, number)
        _, status = os.waitpid(child, 0)
        os.close(heard)
        print((status, time.monotonic() - began), flush=True)
""")
KILLS = int(os.environ.get("CATLIB_KILLS", 3))  # of each kind of run, by each signal
SMALL = {
    "seed": 5,
    "iterations": 24,
    "sampling_number": 32,
    "steps": 1,
    "evaluate_every": 1,
    "evaluation_size": 20,
    "evaluation_steps": 1,
    "device": "cpu",
}
KINDS = {
    "AT": {"method": "AT"},
    "CAT": {"method": "CAT"},
    "augmented": {"method": "CAT", "augment": True, "evaluate_every": 3},
    "scheduled": {"method": "CAT", "schedule": "cyclic", "optimizer": "adam", "warm_up": 9},
}


@pytest.fixture(scope="module")
def attempt():
    """A function: a run in a process of its own that gets a signal some time after an iteration."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what Ctrl-C prints
        text=True,
        env=environment,
    ) as driver:

        def one(root, settings, iterations=0, seconds=None, number=0, between=60.0):
            request = (str(root), settings, iterations, seconds, int(number), between)
            print(request, file=driver.stdin, flush=True)
            return ast.literal_eval(driver.stdout.readline())

        assert driver.stdout.readline() == "ready\n"
        yield one
        driver.stdin.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("kind", KINDS)
def test_ended_at_random_moments_ends_bit_identical(tmp_path, attempt, kind, number, same):
    """Killed and interrupted: no file is half written, and the end is that of a run left alone.

    Some runs write a checkpoint after every evaluation, others after some.
    """
    settings = SMALL | KINDS[kind]
    trial = Trial(**settings)
    status, took = attempt(tmp_path / "whole", settings)
    assert status == 0
    whole = tmp_path / "whole" / trial.id
    an_iteration = took / trial.iterations
    moments = random.Random(f"{kind} {number}")
    place = 0
    iterations_seen = [0]
    for _ in range(KILLS):
        # after none, one or two iterations, and then somewhere in the next
        root = tmp_path / str(place)
        wait = moments.uniform(0, 1.5) * an_iteration
        between = moments.choice([0, 2 * an_iteration])
        status, _ = attempt(root, settings, moments.randrange(3), wait, number, between)
        iterations_seen.append(check_whole(root / trial.id, trial))
        assert iterations_seen[-1] >= iterations_seen[-2]
        if status == 0 or iterations_seen[-1] > trial.iterations - 5:
            assert_ends_like(root, settings, whole, attempt, same)
            place += 1
            iterations_seen = [0]
    assert_ends_like(tmp_path / str(place), settings, whole, attempt, same)


def assert_ends_like(root, settings, whole, attempt, same):
    status, _ = attempt(root, settings)
    assert status == 0
    folder = root / whole.name
    pd.testing.assert_frame_equal(without_seconds(folder), without_seconds(whole), check_exact=True)
    assert same(state(folder), state(whole))
    assert is_done(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in whole.iterdir()
    )


def check_whole(folder, trial):
    """Every file that a reader would open is whole; the iteration that the checkpoint has."""
    iteration = 0
    for path in folder.glob("[!.]*") if folder.exists() else ():
        if path.name == "run.json":
            assert json.loads(path.read_text())["id"] == trial.id
        elif path.name == "records.csv":
            rows = list(csv.reader(path.read_text().splitlines()))
            assert path.read_text().endswith("\n") and len({len(row) for row in rows}) == 1
            every = trial.evaluate_every
            assert [int(row[0]) for row in rows[1:]] == [every * i for i in range(1, len(rows))]
        else:
            assert path.name == "checkpoint.pt"
            iteration = torch.load(path, weights_only=True)["training"]["iteration"]
    return iteration

"""Batches on a Dask cluster: workers that are lost, one that cannot be used, a missing package.

Scheduler and workers are processes of their own, as on a real cluster.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from catlib.lab.__main__ import main
from catlib.lab.batch.cluster import examine
from catlib.lab.paths import ROOT
from catlib.lab.runs import Trial, run
from catlib.lab.sources import CATLIB

pytestmark = pytest.mark.no_device("it works in processes that see no mock")

# bit for bit the same is what a CPU promises, whatever else a machine has
SETTINGS = {"iterations": 30, "evaluate_every": 2, "evaluation_size": 20, "device": "cpu"}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SECONDS = 600  # how long anything may take on a machine that is busy


def arguments(settings: dict) -> list[str]:
    return [part for name, value in settings.items() for part in ("-p", f"{name}={value}")]


def test_without_the_package_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    out = tmp_path / "out"
    command = ["batch", "trial", "--scheduler", "tcp://127.0.0.1:1", "--out", str(out)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "dask.distributed, which is not installed" in said and '".[cluster]"' in said
    assert said.count("\n") == 1 and not out.exists()


def test_a_worker_that_would_do_other_work_is_told_so(tmp_path):
    import torch

    witness = tmp_path / "witness"
    assert "does not see the folder" in examine(witness, CATLIB, torch.__version__)
    witness.touch()
    assert examine(witness, CATLIB, torch.__version__) == ""
    assert "catlib/gain.py" in examine(witness, CATLIB | {"catlib/gain.py": "x"}, torch.__version__)
    assert "in place of 1.0" in examine(witness, CATLIB, "1.0+cpu")


@contextmanager
def process(*arguments: str, log: Path):
    """A process that is ended, with its children, at the end."""
    with log.open("w") as file:
        started = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=ENVIRONMENT,
            cwd=log.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            family = [*psutil.Process(started.pid).children(recursive=True), started]
            for member in family:
                member.kill()
            started.wait()


def wait_for(condition, *logs: Path):
    deadline = time.monotonic() + SECONDS
    while not (value := condition()):
        said = "\n".join(log.read_text() for log in logs)
        assert time.monotonic() < deadline, said
        time.sleep(0.05)
    return value


@pytest.fixture
def cluster(tmp_path):
    """The address of a scheduler with two workers, and the processes of the workers' nannies."""
    with ExitStack() as stack:
        log = tmp_path / "scheduler.log"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        scheduler = ["distributed.cli.dask_scheduler", *options]
        stack.enter_context(process(*scheduler, log=log))
        found = wait_for(
            lambda: re.search(r"Scheduler at:\s+(tcp://[\d.:]+)", log.read_text()), log
        )
        nannies = []
        for number in range(2):
            folder = tmp_path / f"worker{number}"
            options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
            worker = ["distributed.cli.dask_worker", found[1], *options]
            nannies.append(stack.enter_context(process(*worker, log=folder.with_suffix(".log"))))
        yield found[1], nannies


def finished(out: Path) -> int:
    return sum('"done"' in path.read_text() for path in out.glob("*/run.json"))


@pytest.mark.slow
def test_a_sweep_on_a_cluster_that_loses_workers_is_that_of_one_machine(tmp_path, cluster):
    """First workers die that their nannies replace, then one with its nanny, for good.

    CATLIB_SWEEP is the number of trials; for each ten of them one worker is killed.
    """
    address, nannies = cluster
    trials = int(os.environ.get("CATLIB_SWEEP", "8"))
    kills = max(1, trials // 10)
    rng = random.Random(trials)
    out = tmp_path / "out"
    log = tmp_path / "batch.log"
    grid = ["trial", "-p", "alpha=0,0.5", "-p", f"seed=0:{trials // 2}", *arguments(SETTINGS)]
    command = ["catlib.lab", "batch", *grid, "--out", str(out), "--scheduler", address]
    with process(*command, log=log) as batch:
        wait_for(lambda: len(list(out.glob("*/checkpoint.pt"))) >= 2, log)
        for number in range(kills):
            enough = number * (trials - 4) // kills
            wait_for(lambda enough=enough: finished(out) >= enough, log)
            time.sleep(rng.random())
            assert finished(out) < trials, "it was done before: the test says nothing"
            last = number == kills - 1
            nanny = psutil.Process(nannies[0 if last else rng.randrange(2)].pid)
            workers = nanny.children(recursive=True)
            for member in [nanny, *workers] if last else workers:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        assert batch.wait(timeout=trials * SECONDS) == 0, log.read_text()
    assert f"{trials}/{trials}" in log.read_text()
    table = pd.read_csv(out / "table.csv")
    assert len(table) == table.run.nunique() == trials and set(table.status) == {"done"}
    assert not list(out.glob("*/.*")) and not list(out.glob(".seen*")), "half-written files"
    for alpha in (0.0, 0.5):
        for seed in range(trials // 2):
            trial = Trial(alpha=alpha, seed=seed, **SETTINGS)
            whole = pd.read_csv(run(trial, tmp_path / "whole") / "records.csv")
            disturbed = pd.read_csv(out / trial.id / "records.csv")
            pd.testing.assert_frame_equal(
                disturbed.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True
            )


@pytest.mark.slow
def test_a_batch_on_a_cluster_ends_cleanly_and_frees_the_workers(tmp_path, cluster):
    """First at the limit of a run, then by Ctrl-C."""
    address, _ = cluster
    out = tmp_path / "out"
    long = SETTINGS | {"iterations": 100000, "evaluate_every": 5}
    batch_of = ["catlib.lab", "batch", "trial", *arguments(long)]
    command = [*batch_of, "--out", str(out), "--scheduler", address]
    log = tmp_path / "limit.log"
    with process(*command, "--limit", "3", log=log) as batch:
        assert batch.wait(timeout=SECONDS) == 1, log.read_text()
    assert "its limit of 3 s" in log.read_text() and "Traceback" not in log.read_text()
    log = tmp_path / "stopped.log"
    trial = Trial(**long)
    checkpoint = out / trial.id / "checkpoint.pt"
    shutil.rmtree(out)
    with process(*command, log=log) as batch:
        wait_for(checkpoint.exists, log)
        batch.send_signal(signal.SIGINT)
        assert batch.wait(timeout=SECONDS) == 130, log.read_text()
    assert "The same command goes on" in log.read_text() and "Traceback" not in log.read_text()
    saved = checkpoint.stat().st_mtime_ns
    time.sleep(3)
    assert checkpoint.stat().st_mtime_ns == saved, "a worker goes on with the run"


@pytest.mark.slow
def test_a_study_on_a_cluster_writes_the_tables_of_one_machine(tmp_path, cluster):
    address, _ = cluster
    study = ["catlib.lab", "study", "--profile", "smoke", "--piece", "audit"]
    tables = []
    for name, place in {"cluster": ["--scheduler", address], "here": ["--workers", "2"]}.items():
        runs = tmp_path / name
        log = tmp_path / f"{name}.log"
        with process(*study, "--runs", str(runs), *place, log=log) as started:
            assert started.wait(timeout=SECONDS) == 0, log.read_text()
        assert "4/4" in log.read_text()
        table = pd.read_csv(runs / "results" / "smoke_audit.csv", comment="#")
        tables.append(table.drop(columns="seconds"))
    pd.testing.assert_frame_equal(*tables, check_exact=True)

"""The paper profile from end to end at the scale "tiny": each piece alone, all together, killed."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from catlib.data import data_root
from catlib.lab.paths import ROOT
from catlib.lab.runs import is_done
from catlib.lab.study import plan, work

PIECES = [piece for piece in plan.pieces_of("paper", "tiny") if piece.kind != "notebook"]
WITH_RESNET = {piece.name for piece in PIECES for _, trial in piece.trials if trial.model != "cnn"}

pytestmark = pytest.mark.skipif(
    not all((data_root() / f"{name}.npz").exists() for name in ("mnist", "cifar10")),
    reason="no mnist.npz or cifar10.npz; set CATLIB_DATA to the folder that has them",
)


def pieces_to_try():
    for piece in PIECES:
        slow = pytest.mark.slow if piece.name in WITH_RESNET else ()
        yield pytest.param(piece, id=piece.name, marks=slow)


# the command line in a process that has a mock GPU, as this one
ON_THE_MOCK = """
import sys
import mock_gpu
mock_gpu.install()
from catlib.lab.__main__ import main
with mock_gpu.gpu():
    sys.exit(main(sys.argv[1:]))
"""


def laboratory():
    """How a process is started that is `catlib` on the device of this one."""
    if torch.cuda.is_available() and torch.cuda.get_device_name() == "mock GPU":
        return [sys.executable, "-c", ON_THE_MOCK]
    return [sys.executable, "-m", "catlib.lab"]


def needed(piece):
    """The piece, and the one whose runs it judges."""
    return [piece.options["of"], piece.name] if piece.kind == "finals" else [piece.name]


def tables_in(folder):
    """Every table of a study without its times, by name."""
    return {
        path.name: pd.read_csv(path, comment="#").drop(columns="seconds", errors="ignore")
        for path in sorted(folder.glob("*.csv"))
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function: the tables of one piece, run by itself; made once."""
    made = {}

    def tables(piece):
        if piece.name not in made:
            folder = tmp_path_factory.mktemp(piece.name)
            options = {"scale": "tiny", "runs": folder, "results": folder / "results"}
            assert work.study("paper", needed(piece), **options)
            assert not list(folder.glob("*/error.txt"))
            made[piece.name] = tables_in(folder / "results")
        return made[piece.name]

    return tables


@pytest.mark.parametrize("piece", list(pieces_to_try()))
def test_a_piece_alone_runs_to_its_table(alone, piece):
    tables = alone(piece)
    assert f"{piece.table}.csv" in tables
    arms = set(tables[f"{piece.table}.csv"].arm)
    assert {"AT", "balance only", "CAT"} <= arms


@pytest.mark.slow
def test_all_together_killed_and_resumed_gives_what_each_gives_alone(tmp_path, alone):
    """Killed three times, each time when some more runs have begun."""
    runs = tmp_path / "runs"
    command = [*laboratory(), "study", "--profile", "paper"]
    command += ["--scale", "tiny", "--runs", str(runs), "--results", str(tmp_path / "results")]
    for piece in PIECES:
        command += ["--piece", piece.name]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}

    def start():
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=tmp_path)

    killed = 0
    for begun in (2, 6, 20):
        process = start()
        while process.poll() is None and len(list(runs.glob("*/run.json"))) < begun:
            time.sleep(0.05)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == 3
    assert start().wait(3600) == 0
    assert all(is_done(path.parent) for path in runs.glob("*/run.json"))
    assert not list(runs.glob("*/checkpoint.pt")), "no weights stay behind"
    together = tables_in(tmp_path / "results")
    for piece in PIECES:
        for name, table in alone(piece).items():
            pd.testing.assert_frame_equal(together[name], table)

"""A machine for training may have no notebook stack, no peers, no git and no network.

That all of it is missing is simulated: in a process of its own, imports of everything but torch,
torchvision, NumPy, pandas, numba and scikit-learn, with what these require themselves, fail.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from catlib.lab import runs
from catlib.lab.batch.place import place
from catlib.lab.study import plan, work

pytestmark = pytest.mark.no_device("it works in processes that see no mock")

ROOT = Path(__file__).parents[1]
SUFFICIENT = ("torch", "torchvision", "numpy", "pandas", "numba", "scikit-learn")

# The first argument names what cannot be imported, the others are those of the command line.
BARE = '''
import socket, sys
from importlib.machinery import PathFinder

missing = set(sys.argv[1].split(","))
finders = list(sys.meta_path)

class Finder:
    """Finds what is installed, except what is to be missing."""

    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in missing:
            return None
        found = (finder.find_spec(name, path, target) for finder in finders)
        return next(filter(None, found), None)

def unreachable(*_):
    raise OSError("there is no network")

sys.meta_path[:] = [Finder]
socket.socket.connect = unreachable
from catlib.lab.__main__ import main
status = main(sys.argv[2:])
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(status)
'''


def required_by(names):
    """Distributions, with all that they require without an extra, those of this machine."""
    found = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other machines only
        found[name] = needs
        plain = [need for need in needs if "extra ==" not in need]
        waiting += [re.match(r"[\w.-]+", need).group() for need in plain]
    return set(found)


def modules_of_others(distributions):
    """Names of the modules, at the top level, that none of these distributions brings."""
    return {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & distributions
    }


def study_on_a_bare_machine(folder, *arguments):
    """`catlib study` where only what suffices can be imported."""
    missing = modules_of_others(required_by(SUFFICIENT) | {"catlib"})
    command = [sys.executable, "-c", BARE, ",".join(missing), "study", *arguments]
    where = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    environment = {
        "PATH": "",  # no git
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CATLIB_REVISION": "abc1234",
    }
    return subprocess.run(
        [*command, *where], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_pieces_of_the_study_run(tmp_path):
    pieces = ("audit", "similarity")
    options = [word for name in pieces for word in ("--piece", name)]
    run = study_on_a_bare_machine(tmp_path, "--profile", "smoke", *options)
    assert run.returncode == 0, run.stderr
    imported = set(run.stdout.splitlines()[-1].split())
    assert {"torch", "pandas", "sklearn", "filelock"} <= imported
    assert not imported & {"tqdm", "nbformat", "bs4", "psutil", "matplotlib"}
    for name in pieces:
        table = (tmp_path / "results" / f"smoke_{name}.csv").read_text()
        assert "# code: abc1234\n" in table


def test_the_pieces_of_a_profile_are_listed(tmp_path):
    run = study_on_a_bare_machine(tmp_path, "--profile", "paper", "--list")
    assert run.returncode == 0, run.stderr
    assert "cifar10_tables" in run.stdout


def test_the_stand_in_for_a_bare_machine_lacks_what_it_is_to_lack():
    """The test of the tests."""
    missing = modules_of_others(required_by(SUFFICIENT))
    assert not missing & {"torch", "torchvision", "PIL", "pandas", "sklearn", "scipy", "filelock"}
    assert {"nbformat", "nbclient", "papermill", "tqdm", "psutil", "pyautoattack"} <= missing


# ---- the study's pieces that need more


@pytest.fixture
def without(monkeypatch):
    """A function: from now on these packages seem not to be installed."""
    find_spec = importlib.util.find_spec

    def hide(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)  # importing it raises ImportError
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name in names else find_spec(name, *rest),
        )

    return hide


@pytest.fixture
def done(monkeypatch):
    """Names of the pieces that a study has run; they are only noted."""
    names = []

    def note(piece, *_):
        names.append(piece.name)
        return []

    kind = work.Kind(units=note, write=lambda *_: None)
    monkeypatch.setattr(work, "KINDS", dict.fromkeys(work.KINDS, kind))
    return names


def test_a_notebook_is_left_out_where_it_cannot_be_executed(without, done, tmp_path, capsys):
    without("nbclient", "papermill")
    assert work.study("paper", runs=tmp_path / "runs", results=tmp_path)
    assert done == [p.name for p in plan.pieces_of("paper") if p.kind != "notebook"]
    [sentence] = capsys.readouterr().out.splitlines()
    assert "notebook_06 (papermill, nbclient)" in sentence and "pip install" in sentence


def test_without_psutil_runs_at_a_time_follow_from_the_cores_alone(without, tmp_path):
    without("psutil")
    with place(1000, tmp_path) as where:
        assert where.count == (torch.cuda.device_count() or len(os.sched_getaffinity(0)))


def test_a_notebook_that_was_asked_for_is_refused_before_anything_runs(without, done, tmp_path):
    without("nbclient")
    with pytest.raises(ValueError, match=r"notebook_06 \(nbclient\).*pip install"):
        work.study("paper", ["notebook_06", "mnist_tables"], runs=tmp_path, results=tmp_path)
    assert not done


def test_final_models_are_judged_without_autoattack_and_it_is_said(without, done, tmp_path, capsys):
    without("pyautoattack")
    assert work.study("paper", ["cifar10_finals"], runs=tmp_path, results=tmp_path)
    assert done == ["cifar10_finals"]
    [sentence] = capsys.readouterr().out.splitlines()
    assert "without AutoAttack" in sentence and "cifar10_finals" in sentence
    assert work.autoattack_size({"tiny": False, "autoattack_size": 1000}) == 0


def test_where_everything_is_installed_nothing_is_said(done, tmp_path, capsys):
    assert work.study("paper", runs=tmp_path / "runs", results=tmp_path)
    assert done == [p.name for p in plan.pieces_of("paper")]
    assert capsys.readouterr().out == ""


# ---- provenance, benchmarks, warnings


@pytest.mark.parametrize("told, revision", [("1a2b3c", "1a2b3c"), ("", "unknown")])
def test_the_revision_can_be_told_where_there_is_no_git(monkeypatch, told, revision):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CATLIB_REVISION", told)
    # past the cache: another test may have asked already
    assert runs.revision.__wrapped__() == revision


@pytest.fixture
def benchmarks(monkeypatch):
    """Modules of tests/benchmarks, by name."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    yield importlib.import_module
    for name in ("report", "peers"):
        sys.modules.pop(name, None)


def test_a_report_of_benchmarks_is_written_where_peers_are_missing(
    benchmarks, monkeypatch, tmp_path
):
    report = benchmarks("report")
    version = importlib.metadata.version

    def of_what_is_there(name):
        if name in ("torchattacks", "foolbox"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", of_what_is_there)
    monkeypatch.setattr(report, "path", lambda device: tmp_path / f"{device}.csv")
    lines = report.header("cuda", "a GPU", 1, "0.0")
    row = dict.fromkeys(report.COLUMNS, "") | {"row": "9", "measure": "time"}
    written = report.write("cuda", [row], lines).read_text()
    assert "torchattacks not installed, foolbox not installed" in written
    assert f"torch {version('torch')}" in written
    assert report.read("cuda") == [row]


def test_a_benchmark_knows_which_peers_are_installed(benchmarks, without):
    peers = benchmarks("peers")
    without("foolbox")
    assert not peers.is_installed("foolbox")
    assert "foolbox is not installed" in peers.missing("foolbox")


@pytest.mark.parametrize(
    "message",
    [
        "`torch.jit.script_method` is deprecated. Please switch to `torch.compile`.",
        "<class 'torch.autograd.function.Function'> should not be instantiated. Methods on ...",
    ],
)
def test_what_an_older_torch_is_about_to_retire_fails_no_test(message):
    """torch 2.11 warns at every torch.compile; any other warning is an error in the tests."""
    warnings.warn(message, DeprecationWarning, 2)
    with pytest.raises(DeprecationWarning):
        warnings.warn("`catlib.something` is deprecated", DeprecationWarning, 2)


# ---- two processes at once


TWO_PIECES = """
import sys
from dataclasses import replace
from pathlib import Path
from catlib.lab.study import plan, work

one = next(piece for piece in plan.pieces_of("smoke") if piece.name == "audit")
trials = tuple((arm, replace(trial, iterations=8, evaluate_every=2)) for arm, trial in one.trials)
piece = replace(one, name=sys.argv[1], trials=trials)
work.pieces_of = lambda *_: [piece]
done = work.study("smoke", runs=Path(sys.argv[2]), results=Path(sys.argv[2]), workers=1)
sys.exit(0 if done else 3)
"""


@pytest.mark.slow
def test_two_studies_at_once_share_the_runs_that_their_pieces_have_in_common(tmp_path):
    """As those of cifar10_cheap and cifar10_sampling_number: each is made once, by either."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", TWO_PIECES, name, str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for name in ("first", "second")
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    tables = [(tmp_path / f"smoke_{name}.csv").read_text() for name in ("first", "second")]
    rows = [[line for line in text.splitlines() if line[0] != "#"] for text in tables]
    assert rows[0] == rows[1] and len(rows[0]) == 1 + 4 * 4
    for path in tmp_path.glob("*/run.json"):
        assert len(json.loads(path.read_text())["stretches"]) == 1
    assert not list(tmp_path.glob("**/*.part"))


def test_pieces_share_a_run_only_if_none_of_them_keeps_its_weights():
    """A piece that keeps no weights deletes the checkpoint of a run that is done."""
    for profile in plan.profiles():
        pieces = [piece for piece in plan.pieces_of(profile) if piece.kind == "train"]
        kept = {t.id for p in pieces if p.options.get("keep_best") for _, t in p.trials}
        others = {t.id for p in pieces if not p.options.get("keep_best") for _, t in p.trials}
        assert not kept & others


@pytest.mark.parametrize("name", ["audit", "similarity"])
def test_a_study_pauses_rather_than_wait_beyond_its_time(name, tmp_path):
    """Another process has the first run of the piece."""
    piece = next(piece for piece in plan.pieces_of("smoke") if piece.name == name)
    folder = work.KINDS[piece.kind].units(piece, tmp_path, float("inf"))[0].folder
    with (
        runs.only_one_process(folder, wait=0),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # that it waits
        assert not work.study("smoke", [name], minutes=0.01, runs=tmp_path, results=tmp_path)
    assert not (folder / "run.json").exists()

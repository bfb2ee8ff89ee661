"""The study: its configuration is consistent, what is killed goes on, tables name their origin."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby

import pandas as pd
import pytest
import torch

from catlib import PGD, UniformSampler, build_model, load_data
from catlib.collapse import one_step_more
from catlib.data import data_root
from catlib.lab import site
from catlib.lab.baselines import NFGSM, BatchMean, FreeTraining
from catlib.lab.batch import units as batch_units
from catlib.lab.batch.engine import Failure, Pause
from catlib.lab.runs import (
    Trial,
    build_training,
    is_done,
    movement,
    only_one_process,
    records_of,
    run,
    training_attack,
)
from catlib.lab.study import cost, plan, tables, units, work

TIMES = ["seconds"]


def read(path):
    return pd.read_csv(path, comment="#")


def quick(piece, **changes):
    """A piece cut down to seconds."""
    trials = tuple(
        (arm, replace(trial, iterations=4, evaluate_every=2, evaluation_size=20, **changes))
        for arm, trial in piece.trials
    )
    return replace(piece, trials=trials)


def piece(name, profile="smoke"):
    return next(piece for piece in plan.pieces_of(profile) if piece.name == name)


@pytest.fixture
def study(monkeypatch, tmp_path):
    """A function: the study of some pieces, their runs in ``runs`` and their tables beside it."""

    def run_study(*pieces, **options):
        monkeypatch.setattr(work, "pieces_of", lambda *_: list(pieces))
        places = {"runs": tmp_path / "runs", "results": tmp_path}
        return work.study("smoke", **(places | options))

    return run_study


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("profile", plan.profiles())
def test_every_profile_is_a_list_of_whole_pieces(profile, scale):
    pieces = plan.pieces_of(profile, scale)
    assert len({piece.table for piece in pieces}) == len(pieces)
    for one in pieces:
        assert one.kind in work.KINDS
        assert set(one.levels) <= {"accuracy", "robust_accuracy"}
        grid = [*one.options.get("grid", {}), *(["iterations"] if one.kind == "frontier" else [])]
        labels = [
            (arm, trial.seed, *(getattr(trial, name) for name in grid)) for arm, trial in one.trials
        ]
        assert len(set(labels)) == len(labels)
        for first, second in one.options.get("pairs", []):
            assert {first, second} <= {arm for arm, _ in one.trials}
        if scale == "full" and one.kind in ("train", "search", "frontier"):
            assert len({trial.id for _, trial in one.trials}) == len(one.trials), (
                "two arms would share a run"
            )
    kept = {t.id for one in pieces if one.options.get("keep_best") for _, t in one.trials}
    others = {t.id for one in pieces if not one.options.get("keep_best") for _, t in one.trials}
    assert not kept & others, "the weights of a shared run would be deleted"
    by_name = {one.name: one for one in pieces}
    for one in pieces:
        if one.kind == "finals" and not by_name[one.options["of"]].options.get("keep_best"):
            assert list(one.options["models"]) == ["last"], "the best weights are not kept"


def test_every_control_has_at_least_five_seeds_on_the_cpu_and_three_on_a_gpu():
    controls = {
        "AT",
        "CAT",
        "balance only",
        "weights only",
        "random subset",
        "inverted weights",
        "alpha 0",
        "alpha 0.25",
        "alpha 0.75",
        "alpha 0.9",
        "alpha 0.99",
        "temperature 1",
        "temperature 3",
        "warm-up",
        "softplus",
        "clamp",
        "rank",
    }
    for profile, name, least in (("cpu", "mnist_controls", 5), ("paper", "cifar10_controls", 3)):
        seeds = pd.DataFrame(
            [(arm, trial.seed) for arm, trial in piece(name, profile).trials],
            columns=["arm", "seed"],
        )
        assert controls <= set(seeds.arm)
        assert seeds.groupby("arm").seed.nunique().min() >= least


def test_at_and_cat_differ_in_the_sampler_alone():
    for profile in plan.profiles():
        for one in plan.pieces_of(profile):
            arms = {(arm, trial.seed, trial.sampling_number): trial for arm, trial in one.trials}
            for (arm, *rest), trial in arms.items():
                if arm == "CAT" and ("AT", *rest) in arms:
                    assert replace(trial, method="AT") == arms["AT", *rest]


def test_an_epsilon_can_be_scaled_and_a_step_given_in_epsilons(monkeypatch):
    monkeypatch.setitem(plan.configuration()["deviations"], "mnist", 0.25)
    assert plan.make_trial({"dataset": "mnist", "epsilon": 0.3, "scaled": 0.5}, {}).epsilon == 0.15
    assert (
        plan.make_trial({"dataset": "mnist", "epsilon": 0.3, "normalised": True}, {}).epsilon
        == 0.075
    )
    assert plan.make_trial({"dataset": "mnist", "epsilon": 0.2, "step": 1.25}, {}).step_size == 0.25


@pytest.mark.parametrize("dataset", plan.configuration()["deviations"])
def test_the_deviation_is_that_of_the_pixels(dataset):
    if dataset != "digits" and not (data_root() / f"{dataset}.npz").exists():
        pytest.skip(f"no {dataset}.npz; set CATLIB_DATA to the folder that has it")
    pixels = load_data(dataset).train(slice(5000))[0]
    assert plan.configuration()["deviations"][dataset] == pytest.approx(
        pixels.std().item(), abs=1e-4
    )


def test_new_settings_keep_the_ids_of_old_runs():
    assert Trial().id == "digits-cnn-CAT-k128-s0-44136fa3"
    assert (
        Trial(dataset="mnist", epsilon=0.2, seed=3).id
        == Trial(dataset="mnist", epsilon=0.2, seed=3, train_size=None, crafting="pgd").id
    )
    assert Trial(train_size=100).id != Trial().id


def test_a_table_holds_each_evaluation_once_and_says_where_it_is_from(tmp_path, study):
    one = quick(piece("tables"))
    assert study(one)
    path = tmp_path / f"{one.table}.csv"
    table, text = read(path), path.read_text()
    assert not table.duplicated(["arm", "seed", "iteration"]).any()
    assert len(table) == len(one.trials) * 2
    assert table.final_robust_accuracy.notna().sum() == len(one.trials)
    for word in (
        "dataset: digits",
        "model: cnn",
        "linf, epsilon 0.1",
        "PGD-20",
        "every 2 iterations",
        "seeds: 0 1 2",
        "torch",
        "cpu",
        one.command,
    ):
        assert word in text
    before = path.read_bytes()
    assert study(one)
    assert path.read_bytes() == before


def test_a_run_that_two_pieces_share_is_made_once_and_stands_in_both_tables(
    tmp_path, study, capsys
):
    one = quick(piece("cheap"))
    one = replace(one, trials=one.trials[:2])
    other = replace(one, name="other", trials=one.trials[:1])
    assert study(one, other)
    assert "2/2" in capsys.readouterr().out
    assert len(read(tmp_path / "smoke_cheap.csv")) == 2 * len(read(tmp_path / "smoke_other.csv"))


def test_parts_of_a_study_are_together_the_whole(tmp_path, study):
    one = quick(piece("cheap"))
    one = replace(one, trials=one.trials[:3])
    assert study(one, part="1/2")
    assert len(list((tmp_path / "runs").glob("*/run.json"))) == 2
    assert study(one, part="2/2")
    assert len(read(tmp_path / "smoke_cheap.csv")) == 2 * 3
    with pytest.raises(ValueError, match=r"shard is '3/2'"):
        study(one, part="3/2")


def test_a_run_that_fails_is_listed_and_the_others_and_the_tables_are_there(
    tmp_path, study, monkeypatch
):
    one = quick(piece("audit"))
    build = units.run

    def fail_once(trial, *arguments, **options):
        if trial == one.trials[0][1]:
            raise ValueError("no such thing")
        return build(trial, *arguments, **options)

    monkeypatch.setattr(units, "run", fail_once)
    with pytest.raises(Failure, match=r"1 runs failed.*\n.*error.txt"):
        study(one)
    [error] = (tmp_path / "runs").glob("*/error.txt")
    assert error.read_text().startswith("ValueError: no such thing")
    assert len(read(tmp_path / "smoke_audit.csv")) == 2 * (len(one.trials) - 1)
    monkeypatch.setattr(units, "run", build)
    assert study(one)
    assert not error.exists()


def test_what_a_study_lacks_is_said_before_anything_is_made(tmp_path, study):
    one = quick(piece("audit"))
    missing = tuple((arm, replace(trial, dataset="mnits")) for arm, trial in one.trials)
    with pytest.raises(ValueError, match="the dataset 'mnits' cannot be used"):
        study(replace(one, trials=missing))
    with pytest.raises(ValueError, match="--workers is for processes on this machine"):
        study(one, workers=2, scheduler="tcp://127.0.0.1:1")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"nothing can be written to .*with --results"):
        study(one, results=tmp_path / "file" / "results")
    assert not list(tmp_path.glob("*/*/run.json"))


def test_when_the_time_is_up_the_study_stops_and_then_goes_on(tmp_path, monkeypatch):
    one = quick(piece("tables"))
    monkeypatch.setattr(work, "pieces_of", lambda profile, scale="full": [one])
    calls = 0
    while not work.study("smoke", minutes=1 / 600, runs=tmp_path / "runs", results=tmp_path):
        calls += 1
        assert calls < 300
    assert calls, "all runs within a tenth of a second: the test says nothing"
    table = read(tmp_path / f"{one.table}.csv")
    work.study("smoke", runs=tmp_path / "again", results=tmp_path / "whole")
    pd.testing.assert_frame_equal(
        table.drop(columns=TIMES), read(tmp_path / "whole" / f"{one.table}.csv").drop(columns=TIMES)
    )


@pytest.mark.no_device("it works in processes that see no mock")
@pytest.mark.slow
def test_killed_and_started_again_no_row_is_lost_or_doubled(tmp_path):
    def start(runs, results):
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "catlib.lab",
                "study",
                "--profile",
                "smoke",
                "--piece",
                "cheap",
                "--runs",
                runs,
                "--results",
                results,
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )

    killed = 0
    for files in (2, 5, 9):  # killed when so many runs have left records, in the middle of the next
        process = start(tmp_path / "killed", tmp_path)
        while (
            process.poll() is None
            and len(list((tmp_path / "killed").glob("*/records.csv"))) < files
        ):
            time.sleep(0.02)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == 3
    assert start(tmp_path / "killed", tmp_path).wait(300) == 0
    assert start(tmp_path / "whole", tmp_path / "whole").wait(300) == 0
    table, whole = read(tmp_path / "smoke_cheap.csv"), read(tmp_path / "whole" / "smoke_cheap.csv")
    assert not table.duplicated(["arm", "seed", "iteration"]).any()
    pd.testing.assert_frame_equal(table.drop(columns=TIMES), whole.drop(columns=TIMES))
    assert all(is_done(path.parent) for path in (tmp_path / "killed").glob("*/run.json"))


def test_a_run_that_diverges_is_a_finding_and_not_repeated(tmp_path, study, device):
    one = replace(
        piece("tables"),
        trials=(
            (
                "AT",
                Trial(
                    method="AT",
                    learning_rate=1e30,
                    device=device,
                    iterations=6,
                    evaluate_every=1,
                    evaluation_size=10,
                ),
            ),
        ),
    )
    assert study(one)
    assert "# diverged: AT, seed 0" in (tmp_path / f"{one.table}.csv").read_text()
    assert is_done(tmp_path / "runs" / one.trials[0][1].id)


def test_an_unknown_piece_is_refused_with_the_ones_there_are(tmp_path):
    with pytest.raises(ValueError, match="no piece nonsense; it has: tables"):
        work.study("smoke", ["nonsense"], runs=tmp_path, results=tmp_path)


def test_a_study_begun_anew_does_not_replace_a_table_of_more_runs_by_its_first(
    tmp_path, capsys, study
):
    one = quick(piece("audit"))
    assert study(one)
    path = tmp_path / f"{one.table}.csv"
    whole = path.read_text()
    first = replace(one, trials=tuple((arm, replace(trial, seed=9)) for arm, trial in one.trials))
    run(first.trials[0][1], tmp_path / "again")
    tables.write_table(first, tmp_path / "again", tmp_path)
    assert path.read_text() == whole
    assert "stays as it is" in capsys.readouterr().out
    assert study(first, runs=tmp_path / "again")
    assert set(read(path).seed) == {9}


def test_a_table_is_not_replaced_by_one_of_as_many_other_runs(tmp_path, capsys, study):
    """As where each seed is run on another machine, from an empty folder of runs."""
    one = quick(piece("audit"))
    two_seeds = tuple((arm, replace(t, seed=seed)) for seed in (0, 1) for arm, t in one.trials)
    one = replace(one, trials=two_seeds)
    path = tmp_path / f"{one.table}.csv"
    for seed in (0, 1):
        for _, trial in one.trials:
            if trial.seed == seed:
                run(trial, tmp_path / f"runs{seed}")
                tables.write_table(one, tmp_path / f"runs{seed}", tmp_path)
    assert set(read(path).seed) == {0}
    assert capsys.readouterr().out.count("stays as it is") == 1
    for _, trial in one.trials:
        run(trial, tmp_path / "runs0")
    tables.write_table(one, tmp_path / "runs0", tmp_path)
    assert set(read(path).seed) == {0, 1}


def test_a_table_is_not_replaced_by_one_of_other_settings_of_the_same_arms_and_seeds(
    tmp_path, capsys
):
    one = quick(piece("audit"))
    arm, trial = one.trials[0]
    numbers = (2, 3)
    grid = tuple((arm, replace(trial, sampling_number=number)) for number in numbers)
    one = replace(one, trials=grid)
    path = tmp_path / f"{one.table}.csv"
    for _, trial in one.trials:
        run(trial, tmp_path / "runs")
    tables.write_table(one, tmp_path / "runs", tmp_path)
    run(one.trials[0][1], tmp_path / "anew")
    tables.write_table(one, tmp_path / "anew", tmp_path)
    assert set(read(path).sampling_number) == {2, 3}
    assert "stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_no_time_at_all_is_no_limit(tmp_path, minutes):
    with pytest.raises(ValueError, match=r"minutes is .*; it must be a number above 0"):
        work.study("smoke", ["tables"], runs=tmp_path, results=tmp_path, minutes=minutes)


def test_similarity_is_measured_on_runs_of_its_own_and_once(tmp_path, study):
    one = quick(piece("similarity"))
    assert study(one)
    table = read(tmp_path / "smoke_similarity.csv")
    assert set(table.arm) == {"AT", "CAT"}
    assert table["mean"].between(0, 1).all()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/run.json")}
    assert study(one)
    assert stamps == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/run.json")
    }


def test_a_draw_is_recorded_with_the_weights_of_its_moment(tmp_path, study):
    one = quick(piece("draws"))
    assert study(one)
    table = read(tmp_path / "smoke_draws.csv")
    training = build_training(one.trials[0][1])
    for _ in training:
        pass
    weights = training.sampler.weights.numpy()
    labels = training.data.y_train.numpy()
    assert table.image.tolist() == training.sampler.draw().tolist()
    assert table.label.tolist() == labels[table.image].tolist()
    for row in table.itertuples():
        of_class = weights[labels == row.label]
        assert row.weight == pytest.approx(weights[row.image], abs=1e-4)
        lighter = sum(weight < weights[row.image] for weight in of_class)
        assert row.below == pytest.approx(lighter / len(of_class), abs=1e-4)
        assert sum(of_class < row.class_median - 1e-3) <= len(of_class) / 2
        assert sum(of_class > row.class_median + 1e-3) <= len(of_class) / 2


def pause(*_, **__):
    raise Pause


def test_similarity_that_was_cut_off_keeps_the_half_that_was_measured(tmp_path, monkeypatch, study):
    one = quick(piece("similarity"))
    with monkeypatch.context() as patched:
        patched.setattr(units, "staleness", pause)
        assert not study(one)
    [measured] = (tmp_path / "runs").glob("*/neighbours.csv")
    stamp = measured.stat().st_mtime_ns
    assert study(one)
    assert measured.stat().st_mtime_ns == stamp
    assert set(read(tmp_path / "smoke_similarity_staleness.csv").arm) == {"AT", "CAT"}


def long_and_finals():
    """A piece with one long run, and the piece that judges its best and its last model."""
    long = quick(piece("tables"), final_restarts=0)
    long = replace(
        long, name="long", trials=long.trials[:1], options={"keep_best": True, "tiny": True}
    )
    return long, replace(
        long, name="finals", kind="finals", trials=(), options={"of": "long", "tiny": True}
    )


def test_the_finals_of_a_long_run_are_measured_once_and_kept_as_they_come(
    tmp_path, monkeypatch, study, capsys
):
    long, finals = long_and_finals()
    assert study(long, finals, names=["finals"])
    assert capsys.readouterr().out.count("needs a run that is not done") == 2
    assert study(long, finals, names=["long"])
    ticks = iter([False] * 3 + [True] * 99)  # the time is up after three measurements
    with monkeypatch.context() as patched:
        patched.setattr(units, "stop_at", lambda _: next(ticks) and pause())
        assert not study(long, finals)
    [kept] = (tmp_path / "runs").glob("*/finals-best.json")
    begun = json.loads(kept.read_text())
    assert len(begun["measured"]) == 3 and begun["status"] == "running"
    begun["measured"]["accuracy"] = 0.123  # which would not come out again
    kept.write_text(json.dumps(begun))
    assert study(long, finals)
    table = read(tmp_path / "smoke_finals.csv")
    assert list(table.model) == ["best", "last"]
    assert table.accuracy[0] == 0.123
    parts = json.loads(kept.read_text())["measured"]
    assert table.autoattack[0] == pytest.approx(
        (parts["autoattack_0"] + parts["autoattack_4"]) / 2, abs=1e-4
    )
    assert table["pgd_20_2"][1] <= table["accuracy"][1]
    stamp = kept.stat().st_mtime_ns
    assert study(long, finals)
    assert kept.stat().st_mtime_ns == stamp
    with monkeypatch.context() as patched:  # the table, on a machine without AutoAttack
        patched.setattr(units, "autoattack_is_installed", lambda: False)
        patched.setattr(work, "autoattack_is_installed", lambda: False)
        assert study(long, finals)
    assert read(tmp_path / "smoke_finals.csv").autoattack[0] == table.autoattack[0]
    [(_, trial)] = long.trials
    other = units.FinalUnit(
        trial, tmp_path / "runs", model="best", options=finals.options | {"restarts": 50}
    )
    assert not other.is_done(), "what was measured with other options is no answer"


def test_two_processes_measure_a_final_model_once(tmp_path, monkeypatch, study):
    long, finals = long_and_finals()
    assert study(long, finals, names=["long"])
    [(_, trial)] = long.trials
    measured = []

    def slow_measurement(*_):
        yield "accuracy", lambda: (measured.append(1), time.sleep(0.3), 0.5)[-1]

    monkeypatch.setattr(units, "final_measurements", slow_measurement)
    best, last = (
        units.FinalUnit(trial, tmp_path / "runs", model=model, options=finals.options)
        for model in ("best", "last")
    )
    # two locks in one process are as strange to each other as those of two processes
    with ThreadPoolExecutor(2) as pool, pytest.warns(UserWarning, match="works on this run"):
        for done in [pool.submit(best.run), pool.submit(best.run)]:
            done.result()
    assert best.is_done() and len(measured) == 1
    hurried = replace(last, deadline=time.time())
    with only_one_process(last.place, wait=0), pytest.raises(Pause):
        hurried.run()
    assert not last.record.exists()
    with only_one_process(best.place, wait=0):
        last.run()
    assert last.is_done()


def judged_at_its_end(**settings):
    """A piece with one run that keeps no weights, and the piece that judges its last model."""
    long, finals = long_and_finals()
    [(arm, trial)] = long.trials
    options = {"of": "long", "tiny": True, "models": ["last"]}
    trials = ((arm, replace(trial, **settings)),)
    return replace(long, trials=trials, options={"tiny": True}), replace(finals, options=options)


def test_a_run_that_is_judged_at_its_end_keeps_no_weights(tmp_path, monkeypatch, study):
    """Paused while it is judged, it goes on there; the table comes from what was measured."""
    long, finals = judged_at_its_end()
    # the beginning, two evaluations, one measurement; then the time is up
    ticks = iter([False] * 4 + [True] * 99)
    with monkeypatch.context() as patched:
        patched.setattr(units, "stop_at", lambda _: next(ticks) and pause())
        assert not study(long, finals)
    folder = tmp_path / "runs" / long.trials[0][1].id
    record = folder / "finals-last.json"
    assert is_done(folder) and (folder / "checkpoint.pt").exists()
    begun = json.loads(record.read_text())
    assert len(begun["measured"]) == 1 and begun["status"] == "running"
    begun["measured"]["accuracy"] = 0.123  # which would not come out again
    record.write_text(json.dumps(begun))
    assert study(long, finals, names=["long"])
    assert not (folder / "checkpoint.pt").exists()
    stamp = record.stat().st_mtime_ns
    assert study(long, finals)
    assert record.stat().st_mtime_ns == stamp
    table = read(tmp_path / "smoke_finals.csv")
    assert list(table.model) == ["last"] and list(table.iteration) == [4]
    assert table.accuracy[0] == 0.123 and "pgd_20_2" in table


def test_weights_that_are_gone_unjudged_are_a_failure_and_said(tmp_path, study):
    long, finals = judged_at_its_end()
    assert study(long)  # which knows of no finals
    with pytest.raises(Failure, match="1 runs failed"):
        study(long, finals)
    [error] = (tmp_path / "runs").glob("*/error.txt")
    assert "has no checkpoint.pt" in error.read_text()
    assert not (tmp_path / "smoke_finals.csv").exists()


def test_a_run_that_diverged_has_no_final_model_to_judge(tmp_path, study):
    long, finals = judged_at_its_end(learning_rate=1e30, iterations=6, evaluate_every=1)
    assert study(long, finals)
    assert "# diverged: AT, seed 0" in (tmp_path / "smoke_long.csv").read_text()
    assert not list((tmp_path / "runs").glob("*/finals-*.json"))
    long = replace(long, options=long.options | {"keep_best": True})
    assert study(long, replace(finals, options={"of": "long", "tiny": True}))
    assert not (tmp_path / "smoke_finals.csv").exists()


def test_a_part_of_the_runs_may_be_asked_for_by_seed(tmp_path, study):
    one = quick(piece("tables"), final_restarts=0)
    with pytest.raises(ValueError, match=r"the seed 7; the pieces have .* seeds 0, 1, 2"):
        study(one, seeds=[7])
    assert study(one, seeds=[1])
    assert set(read(tmp_path / f"{one.table}.csv").seed) == {1}
    assert "# runs: 2 of 6" in (tmp_path / f"{one.table}.csv").read_text()
    assert study(one, seeds=[0, 1], part="1/4")
    assert "# runs: 3 of 6" in (tmp_path / f"{one.table}.csv").read_text()
    assert study(one)
    assert set(read(tmp_path / f"{one.table}.csv").seed) == {0, 1, 2}


def test_beforehand_it_is_said_how_long_the_runs_that_are_left_take(study, capsys):
    one = quick(piece("tables"), final_restarts=0)
    shared = replace(one, name="shared", trials=one.trials[:3])
    assert study(one, seeds=[1], speed=cost.H200)
    assert study(one, shared, speed=cost.H200)
    said = [line for line in capsys.readouterr().out.splitlines() if "runs left" in line]
    assert [line.split(", about")[0] for line in said] == [
        "smoke_tables: 2 runs left",
        "smoke_tables: 4 runs left",
    ]


@pytest.mark.no_device("it works in processes that see no mock")
@pytest.mark.slow
def test_finals_in_processes_wait_for_their_run_and_a_failed_one_is_listed(tmp_path, study):
    long, finals = long_and_finals()
    assert study(long, finals, workers=2)
    table = (tmp_path / "smoke_finals.csv").read_bytes()
    [kept] = (tmp_path / "runs").glob("*/finals-last.json")
    kept.unlink()
    (kept.parent / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(Failure, match=r"1 runs failed.*\n.*finals-last.error.txt"):
        study(long, finals, workers=2)
    assert (tmp_path / "smoke_finals.csv").read_bytes() == table


def test_a_part_of_the_training_images_is_the_first_ones():
    training = build_training(Trial(train_size=200, device="cpu"))
    assert len(training.data.y_train) == 200
    assert torch.equal(training.data.x_train, load_data("digits").x_train[:200])


def test_the_accuracy_on_the_training_batch_is_that_before_the_update(tmp_path):
    trial, seen = Trial(iterations=2, evaluate_every=1, evaluation_size=10), []
    folder = run(
        trial,
        tmp_path,
        observe=lambda training, _: seen.append(
            (training.batch.logits.argmax(1) == training.batch.labels).double().mean().item()
        ),
    )
    assert read(folder / "records.csv").batch_accuracy.tolist() == pytest.approx(seen)


@pytest.mark.parametrize("method", ["AT", "CAT"])
def test_a_row_says_how_hard_the_drawn_examples_were_and_how_often_one_was_met_again(
    tmp_path, method
):
    """By plain counting, over every batch of a run that draws some images twice."""
    right, met, seen, expected = [], [], set(), []

    def observe(training, record):
        batch = training.batch
        right.append((batch.logits.argmax(1) == batch.labels).double().mean().item())
        for index in batch.indices.tolist():
            met.append(index in seen)
            seen.add(index)
        if record.accuracy is not None:
            expected.append((sum(right) / len(right), sum(met) / len(met)))
            right.clear()

    trial = Trial(
        method=method,
        iterations=7,
        evaluate_every=3,
        evaluation_size=10,
        evaluation_steps=1,
        train_size=150,
        sampling_number=40,
        steps=1,
    )
    table = read(run(trial, tmp_path, observe=observe) / "records.csv")
    assert list(table.iteration) == [3, 6, 7]
    assert table.drawn_accuracy.tolist() == pytest.approx([share for share, _ in expected])
    assert table.met_again.tolist() == pytest.approx([share for _, share in expected])
    assert 0 < table.met_again.iloc[-1] < 1


def test_evaluation_may_use_another_rule_and_epsilon():
    judge = Trial(epsilon=0.1, evaluation_epsilon=0.2, evaluation_rule="gradient").judge(restarts=3)
    assert (judge.epsilon, judge.rule, judge.restarts, judge.steps) == (0.2, "gradient", 3, 20)
    assert Trial(epsilon=0.1).judge() == PGD(0.1, steps=20)


@pytest.mark.parametrize("rule", ["sign", "gradient", "batch mean"])
def test_how_far_an_attack_moves_a_pixel_is_counted_in_epsilons(classifier, digits, rule):
    """Against one pass over all images at once; the attack of the batch's mean hardly moves."""
    images, labels = digits.test(slice(60))
    judge = Trial(epsilon=0.2, evaluation_steps=5, evaluation_rule=rule).judge()
    if rule == "batch mean":
        adversarial = judge(classifier, images, labels)
    else:
        generator = torch.Generator().manual_seed(0)
        adversarial = judge(classifier, images, labels, generator=generator)
    expected = (adversarial - images).abs().mean().item() / 0.2
    moved = movement(classifier, images, labels, judge)
    assert moved == pytest.approx(expected, rel=1e-5)
    assert moved < 0.1 if rule == "batch mean" else 0.2 < moved <= 1


def test_an_audit_judges_at_full_strength_what_trained_on_noise(tmp_path):
    """Its own reading finds it robust; signed PGD-20 at the whole epsilon does not."""
    trial = Trial(
        method="AT",
        steps=0,  # the random start alone
        evaluation_rule="batch mean",
        epsilon=0.3,
        audit_epsilon=0.3,
        iterations=60,
        evaluate_every=0,
        final_restarts=1,
        final_size=100,
    )
    final = json.loads((run(trial, tmp_path) / "run.json").read_text())["final"]
    assert final["robust_accuracy"] > 0.7
    assert final["full_strength"] < 0.1
    assert final["moved"] < 0.1


def test_every_arm_of_the_profile_cpu_can_be_built_and_trained(monkeypatch):
    """An iteration of each, at the scale to try it in minutes; once where pieces share an arm."""
    monkeypatch.setattr("catlib.lab.runs.load_data", functools.cache(load_data))
    trials = {}
    for one in plan.pieces_of("cpu", "tiny"):
        for arm, trial in one.trials:
            if trial.dataset == "digits" or (data_root() / f"{trial.dataset}.npz").exists():
                trials.setdefault((arm, trial.model, trial.dataset), trial)
    for trial in trials.values():
        record = next(records_of(trial, build_training(trial)))
        assert record.iteration == 1 and record.passes > 0


def test_a_setting_with_the_name_of_a_measurement_has_a_column_of_its_own(tmp_path, study):
    arms = [
        (loss, Trial(loss=loss, iterations=2, evaluate_every=1, evaluation_size=10, steps=1))
        for loss in ("cross-entropy", "mart")
    ]
    one = replace(quick(piece("tables")), trials=arms)
    assert study(one)
    table = read(tmp_path / f"{one.table}.csv")
    assert table.setting_loss.tolist() == ["cross-entropy"] * 2 + ["mart"] * 2
    assert table.loss.dtype == float and (table.loss > 0).all()


@pytest.mark.slow
def test_the_profile_cpu_runs_from_end_to_end_at_the_tiny_scale(tmp_path):
    for name in ("mnist", "cifar10"):
        if not (data_root() / f"{name}.npz").exists():
            pytest.skip(f"no {name}.npz; set CATLIB_DATA to the folder that has it")
    assert work.study("cpu", scale="tiny", runs=tmp_path / "runs", results=tmp_path)
    for one in plan.pieces_of("cpu", "tiny"):
        table = read(tmp_path / f"{one.table}.csv")
        long = work.long_piece(one) if one.kind == "finals" else one
        assert set(table.arm) == {arm for arm, _ in long.trials}
        if one.kind == "train":
            assert table.met_again.between(0, 1).all()


# ------------------------------------------------------------------ the cheap rivals


def test_n_fgsm_is_noise_and_one_signed_step_without_projection():
    images, labels = load_data("digits").train(slice(64))
    model = build_model("cnn", load_data("digits"))
    torch.manual_seed(0)
    adversarial = NFGSM(0.1)(model, images, labels)
    torch.manual_seed(0)
    start = (images + torch.empty_like(images).uniform_(-1, 1) * 0.2).requires_grad_()
    torch.nn.functional.cross_entropy(model(start), labels).backward()
    torch.testing.assert_close(adversarial, (start.detach() + 0.1 * start.grad.sign()).clamp(0, 1))
    moved = (adversarial - images).abs().max()
    assert 0.2 < moved <= 0.3 + 1e-6, "noise of 2 epsilon and a step of 1 are not projected back"


def test_the_gradient_of_the_mean_is_that_of_the_example_over_the_size_of_the_batch():
    images, labels = load_data("digits").train(slice(64))
    model = build_model("cnn", load_data("digits")).double()
    images = images.double()
    start = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(start), labels, reduction="sum").backward()
    once = BatchMean(0.1, steps=1)(model, images, labels)
    torch.testing.assert_close(once, (images + (start.grad / 64).clamp(-0.1, 0.1)).clamp(0, 1))
    far = BatchMean(0.01, steps=20)(model, images, labels)
    assert (far - images).abs().max() <= 0.01 + 1e-12
    assert model.training and not far.requires_grad
    trial = Trial(crafting="batch mean", evaluation_rule="batch mean", epsilon=0.3, steps=5)
    assert build_training(trial).attack == BatchMean(0.3, 5)
    assert trial.judge() == BatchMean(0.3, 20)


def free(steps=3, iterations=12):
    settings = {"method": "AT", "crafting": "free", "device": "cpu"}
    return build_training(Trial(**settings, steps=steps, iterations=iterations, evaluate_every=0))


def test_free_training_replays_a_batch_and_spends_one_pass_an_image():
    training, batches = free(), []
    for record in training:
        batches.append(training.batch.indices)
        assert record.passes == record.iteration * 128
        assert (
            training.batch.adversarial - training.data.train(training.batch.indices)[0]
        ).abs().max() <= 0.1 + 1e-6
    assert all(torch.equal(batches[i], batches[i - i % 3]) for i in range(12))
    assert not torch.equal(batches[0], batches[3])


def test_a_guard_of_free_training_replays_whole_batches_in_smaller_steps():
    """After the last replay of a batch, and between two; the batches may change their size, too."""
    training = free(steps=3, iterations=15)
    batches = []
    for record in training:
        batches.append(tuple(training.batch.indices.tolist()))
        moved = training.batch.adversarial - training.data.train(training.batch.indices)[0]
        if record.iteration == 3:
            training.attack = one_step_more(training.attack)
            assert training.attack.step_size == pytest.approx(0.1 * 3 / 4)
        if record.iteration == 5:
            training.attack = one_step_more(training.attack)
        if record.iteration == 12:
            training.sampler.sampling_number = 16
    replays = [(len(batch), len(list(same))) for batch, same in groupby(batches)]
    assert replays == [(128, 3), (128, 5), (128, 5), (16, 2)]
    assert 0 < moved.abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("crafting", ["n-fgsm", "free"])
def test_a_step_size_of_zero_is_none_at_all(crafting):
    trial = Trial(method="AT", crafting=crafting, step_size=0.0)
    assert training_attack(trial).step_size == 0.0
    assert training_attack(replace(trial, step_size=None)).step_size == trial.epsilon


def test_free_training_takes_the_noise_of_a_replay_from_the_update_before():
    training = free(steps=2)
    reference = free(steps=2)
    images, labels = training.data.train(
        next(iter(UniformSampler(training.data.y_train, 128, seed=0)))
    )
    images.requires_grad_()
    torch.nn.functional.cross_entropy(reference.model.train()(images), labels).backward()
    next(training), next(training)
    torch.testing.assert_close(
        training.batch.adversarial, (images + 0.1 * images.grad.sign()).clamp(0, 1).detach()
    )


@pytest.mark.parametrize("crafting", ["free", "n-fgsm"])
def test_the_rivals_go_on_from_a_checkpoint_as_if_nothing_had_happened(crafting):
    trial = Trial(
        method="AT", crafting=crafting, steps=3, iterations=8, evaluate_every=0, epsilon_warm_up=6
    )
    whole, first, second = (build_training(trial) for _ in range(3))
    list(records_of(trial, whole))
    for record in records_of(trial, first):
        if record.iteration == 4:  # in the middle of a replayed batch
            break
    second.load_state_dict(first.state_dict())
    list(records_of(trial, second))
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert isinstance(whole, FreeTraining) == (crafting == "free")


def test_deviations_are_those_of_the_pixels(real_data, digits):
    for data in (digits, real_data):
        assert plan.configuration()["deviations"][data.name] == round(
            data.x_train[:5000].double().std().item() / 255, 4
        )


def test_runs_of_other_code_are_refused_repeated_or_reused(tmp_path, monkeypatch):
    small = piece("tables")
    small = replace(small, trials=quick(small, final_restarts=0).trials[:2])
    monkeypatch.setattr(work, "pieces_of", lambda *_: [small])

    def run_study(**options):
        return work.study("smoke", ["tables"], runs=tmp_path, results=tmp_path, **options)

    assert run_study()
    first = {path: path.read_bytes() for path in tmp_path.glob("*/run.json")}
    assert run_study()  # nothing has changed
    for path in first:
        path.write_text(path.read_text().replace('"catlib/gain.py": "', '"catlib/gain.py": "0'))
    with pytest.raises(ValueError, match=r"2 of 2 runs .* catlib/gain.py.*--if-code-changed"):
        run_study()
    assert run_study(if_code_changed="reuse")
    assert all('"catlib/gain.py": "0' in path.read_text() for path in first)
    assert run_study(if_code_changed="repeat")
    assert not any('"catlib/gain.py": "0' in path.read_text() for path in first)
    assert run_study()
    with pytest.raises(ValueError, match="if_code_changed is 'perhaps'"):
        run_study(if_code_changed="perhaps")


def test_a_half_of_a_similarity_that_other_code_measured_is_not_kept_in_silence(
    tmp_path, monkeypatch
):
    one = quick(piece("similarity"))
    monkeypatch.setattr(work, "pieces_of", lambda *_: [one])

    def run_study(**options):
        return work.study("smoke", ["similarity"], runs=tmp_path, results=tmp_path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(units, "staleness", pause)
        assert not run_study()  # paused after the first half
    [measured] = tmp_path.glob("*/neighbours.csv")
    begun = measured.parent / "run.json"
    assert json.loads(begun.read_text())["status"] == "running"
    assert "catlib/lab/similarity.py" in json.loads(begun.read_text())["code"]
    of_other_code = begun.read_text().replace('similarity.py": "', 'similarity.py": "0')
    begun.write_text(of_other_code)
    with pytest.raises(ValueError, match=r"1 of 1 runs .* catlib/lab/similarity.py"):
        run_study()
    measured.write_text("gap\nof other code\n")
    assert run_study(if_code_changed="repeat")
    assert "of other code" not in measured.read_text()
    assert is_done(measured.parent)
    assert run_study()


def test_a_notebook_that_other_code_executed_is_refused_repeated_or_reused(
    tmp_path, monkeypatch, study
):
    one = piece("notebook_06", "paper")
    page = tmp_path / "notebooks" / "06_cat_versus_at.html"
    executed = []

    def execute(source, output, values, cell_timeout):
        executed.append(values["output_dir"])
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(f"{len(executed)}")

    monkeypatch.setattr(batch_units, "execute_or_fail", execute)
    monkeypatch.setattr(batch_units, "check_datasets", lambda _: None)
    monkeypatch.setattr(work, "check_datasets", lambda _: None)
    monkeypatch.setattr(site, "write_site", lambda paths, _: page.write_text(paths[0].read_text()))
    assert study(one)
    [record] = (tmp_path / "runs").glob("06_cat_versus_at-*/notebook.json")
    assert executed == [str(record.parent)], "its own runs lie in its folder"
    assert {"catlib/gain.py", "06_cat_versus_at.ipynb"} <= set(
        json.loads(record.read_text())["code"]
    )
    assert study(one)
    assert page.read_text() == "1", "of the same code, so it is used again"
    record.write_text(record.read_text().replace('"catlib/gain.py": "', '"catlib/gain.py": "0'))
    with pytest.raises(ValueError, match=r"06_cat_versus_at-.*; what differs: catlib/gain.py"):
        study(one)
    assert study(one, if_code_changed="reuse")
    assert page.read_text() == "1"
    assert study(one, if_code_changed="repeat")
    assert page.read_text() == "2"


@pytest.mark.no_device("its notebook is one that nbval runs")
@pytest.mark.slow
def test_a_notebook_of_the_study_is_executed_and_its_page_lies_beside_the_tables(tmp_path, study):
    one = next(p for p in plan.pieces_of("paper", "tiny") if p.name == "notebook_06")
    assert not study(one, minutes=1 / 60), "a cell that the end of the time cuts off is no failure"
    assert study(one, workers=1)
    assert (tmp_path / "notebooks" / "06_cat_versus_at.html").stat().st_size > 10_000
    assert (tmp_path / "notebooks" / "06_cat_versus_at.ipynb").exists()
    assert list((tmp_path / "runs").glob("06_*/table.csv"))

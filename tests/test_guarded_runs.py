"""Runs under a guard: what a collapse leaves in the files, and that a killed run ends the same."""

import json
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from catlib import load_data, robust_accuracy
from catlib.collapse import Guard
from catlib.lab import runs
from catlib.lab.runs import Trial, build_training, judged_images, records_of, run

# its attack hardly moves a pixel: the training is right on what it finds, and not robust
BLIND = Trial(
    method="CAT",
    guard=True,
    seed=1,
    iterations=24,
    sampling_number=50,
    steps=1,
    step_size=1e-3,
    epsilon=0.15,
    epsilon_warm_up=6,
    schedule="cyclic",
    evaluate_every=4,
    evaluation_size=40,
    evaluation_steps=2,
    device="cpu",
)


def see(attack):
    """A remedy for an attack that finds nothing: the share of epsilon stays as it is."""
    return replace(attack, steps=2, step_size=0.7 * attack.epsilon)


@pytest.fixture
def eager(monkeypatch):
    """Guards that spend much on checks, so that a short run has many of them."""

    def build_guard(trial, training):
        if not trial.guard:
            return None
        return Guard(training, share=0.4, size=20, remedy=see)

    monkeypatch.setattr(runs, "build_guard", build_guard)


def rows_of(folder):
    return pd.read_csv(folder / "records.csv").drop(columns="seconds")


def saved(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same_run(folder, whole, same):
    pd.testing.assert_frame_equal(rows_of(folder), rows_of(whole), check_exact=True)
    for part in ("training", "guard"):
        assert same(without_times(saved(folder)[part]), without_times(saved(whole)[part])), part


def without_times(state):
    """The sample is of the last batch, which a state that was loaded does not know."""
    return {name: value for name, value in state.items() if name != "sample"}


# what it leaves


def test_a_collapse_drops_the_rows_of_what_it_undid(tmp_path, eager):
    """Every record is noted beside: rows stay of those that were not undone later."""
    kept = []
    spent = []
    collapses = []

    def observe(training, record):
        spent.append(record.passes)
        collapses.append(record.collapses)
        if training.iteration != record.iteration:
            kept[:] = [one for one in kept if one[0] <= training.iteration]
        elif record.accuracy is not None:
            kept.append((record.iteration, record.passes, record.accuracy))

    table = rows_of(run(BLIND, tmp_path, observe=observe))
    assert collapses[-1] >= 1
    assert spent == sorted(spent)
    assert list(zip(table.iteration, table.passes, table.accuracy, strict=True)) == kept
    assert table.iteration.tolist() == list(range(4, 25, 4))
    assert table.collapses.tolist() == sorted(table.collapses)
    assert table.collapses.iloc[-1] == collapses[-1]
    assert table.checked.notna().any() and table.checked.dropna().between(0, 1).all()
    assert table.met_again.between(0, 1).all()
    usual = 24 * 50 * 2
    assert table.passes.iloc[-1] > usual, "what was undone and checked is counted"


def test_only_a_guarded_run_has_the_columns_of_a_guard(tmp_path):
    trial = replace(BLIND, guard=False, iterations=8)
    assert not {"checked", "collapses"} & set(rows_of(run(trial, tmp_path)))
    assert {"checked", "collapses"} <= set(rows_of(run(replace(trial, guard=True), tmp_path)))
    assert {"guard", "good"} & set(saved(tmp_path / trial.id)) == set()


def test_the_milder_attack_keeps_pace_with_epsilon(eager):
    """The remedy is applied as often as training collapsed, at every share of epsilon."""
    training = build_training(BLIND)
    guard = runs.build_guard(BLIND, training)
    guard.collapses = 1
    seen = []
    for record in records_of(BLIND, training, guard):
        share = min(1, record.iteration / BLIND.epsilon_warm_up)
        seen.append(training.attack.epsilon == pytest.approx(0.15 * share))
        assert training.attack == see(training.attack)
        if record.iteration == 8:
            break
    assert all(seen)


def test_a_trial_without_a_guard_keeps_its_id():
    assert (
        replace(BLIND, guard=False).id
        == Trial(
            **{
                k: v
                for k, v in vars(BLIND).items()
                if k not in ("guard", "noise", "validation_size")
            }
        ).id
    )
    assert BLIND.id != replace(BLIND, guard=False).id


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"crafting": "batch mean"}, "crafting 'batch mean', which has no step that a guard"),
        ({"steps": 0}, "guard is True and steps is 0: noise alone"),
    ],
)
def test_an_attack_that_no_guard_can_make_milder_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trial(guard=True, **settings)


@pytest.mark.parametrize("crafting", runs.WATCHED)
def test_whatever_is_watched_can_be_made_milder(crafting):
    trial = replace(BLIND, crafting=crafting, steps=2)
    training = build_training(trial)
    guard = runs.build_guard(trial, training)
    before = training.attack
    guard.collapses = 2
    assert guard.milder(before) not in (before, guard.remedy(before))


# killed


class Killed(BaseException):
    """As final as SIGKILL, but in this process."""


@pytest.mark.parametrize("settings", [{}, {"epsilon_warm_up": 0, "memory_bits": 8}])
def test_killed_before_or_after_any_checkpoint(tmp_path, monkeypatch, eager, settings, same):
    """At each checkpoint of a run that collapses, before the collapse and after it."""
    trial = replace(BLIND, **settings)
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    whole = run(trial, tmp_path / "whole")
    assert rows_of(whole).collapses.iloc[-1] >= 1
    genuine = runs._History.save_checkpoint
    writes = []

    def count(history, *arguments):
        writes.append(history.guard.collapses)
        genuine(history, *arguments)

    monkeypatch.setattr(runs._History, "save_checkpoint", count)
    run(trial, tmp_path / "counted")
    assert writes[0] == 0 < writes[-1], "some are before the collapse, some after it"
    for last in range(len(writes)):
        left = [last]

        def save(history, *arguments, left=left):
            genuine(history, *arguments)
            if not left[0]:
                raise Killed
            left[0] -= 1

        monkeypatch.setattr(runs._History, "save_checkpoint", save)
        with pytest.raises(Killed):
            run(trial, tmp_path / str(last))
        monkeypatch.setattr(runs._History, "save_checkpoint", genuine)
        assert_same_run(run(trial, tmp_path / str(last)), whole, same)


@pytest.mark.parametrize("call", [1, 2, 5, 9])
def test_ctrl_c_in_an_evaluation_or_a_check_changes_nothing(
    tmp_path, monkeypatch, eager, call, same
):
    """Checks and evaluations call the same attack; one of the calls is interrupted."""
    whole = run(BLIND, tmp_path / "whole")
    genuine = runs.PGD.attack_until_broken
    calls = [0]

    def interrupted(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(signal.SIGINT)
        return genuine(*arguments, **options)

    monkeypatch.setattr(runs.PGD, "attack_until_broken", interrupted)
    try:
        run(BLIND, tmp_path / "stopped")
    except KeyboardInterrupt:
        pass
    else:
        assert calls[0] < call, "there are no more calls"
    assert_same_run(run(BLIND, tmp_path / "stopped"), whole, same)


# a real collapse


@pytest.fixture
def larger_digits(tmp_path):
    """The first 500 digits at 16 x 16 pixels: on 8 x 8 one step is not fooled for long."""
    data = load_data("digits")
    arrays = {"y_train": data.y_train[:500].numpy(), "y_test": data.y_test.numpy()}
    for name, images in (("x_train", data.train()[0][:500]), ("x_test", data.test()[0])):
        larger = F.interpolate(images, size=(16, 16))
        arrays[name] = (255 * larger).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    path = tmp_path / "larger.npz"
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.slow
def test_one_step_of_epsilon_collapses_unless_it_is_guarded(tmp_path, larger_digits):
    """One step of 1.5 epsilon: right on what it finds, and not robust at all."""
    trial = Trial(
        dataset=larger_digits,
        method="AT",
        steps=1,
        step_size=0.45,
        epsilon=0.3,
        optimizer="adam",
        learning_rate=3e-3,
        iterations=400,
        sampling_number=50,
        evaluate_every=0,
        final_restarts=1,
        guard=True,
        device="cpu",
    )
    alone = build_training(replace(trial, guard=False))
    list(alone)
    crafted = (alone.batch.logits.argmax(1) == alone.batch.labels).double().mean().item()
    images, labels = judged_images(trial, alone, 200)
    collapsed = robust_accuracy(alone.model, images, labels, trial.judge())
    assert crafted > 0.5 and collapsed < 0.1
    folder = run(trial, tmp_path / "runs")
    table = pd.read_csv(folder / "records.csv")
    assert table.collapses.iloc[-1] >= 1 and table.iteration.tolist() == [400]
    final = json.loads((folder / "run.json").read_text())["final"]
    assert final["robust_accuracy"] > 0.2

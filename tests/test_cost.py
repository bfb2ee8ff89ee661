"""What the study's pieces cost: held against bounds, and the counts against runs that count."""

from dataclasses import replace

import pytest

from catlib import build_model, load_data
from catlib.lab.runs import Trial, build_training, records_of
from catlib.lab.study import cost, plan

PAPER = plan.pieces_of("paper")
OF_RUNS = [piece for piece in PAPER if piece.trials]
# of one command, which a machine that is lent for minutes must end
MOST_SECONDS = 60 * 8
MOST_DRAWS = 7e6  # images
MOST_PASSES = 9e7  # images, once forward and once backward
MOST_CHECKPOINTS = 6e9  # bytes
# of all of the profile together, on one H200
MOST_HOURS = 1.75


def commands():
    return [
        command
        for piece in OF_RUNS
        for command in cost.commands_of(piece, cost.H200, cost.finals_of(piece, PAPER))
    ]


@pytest.mark.parametrize("piece", OF_RUNS, ids=lambda piece: piece.name)
def test_every_piece_keeps_its_bounds(piece):
    judged = cost.finals_of(piece, PAPER)
    total = cost.cost_of_runs(piece, [trial for _, trial in piece.trials], judged)
    assert total.draws <= MOST_DRAWS
    assert total.training + total.evaluation <= MOST_PASSES
    assert total.checkpoints <= MOST_CHECKPOINTS
    for _, trial in piece.trials:
        one = cost.cost_of_runs(piece, [trial])
        assert one.evaluation <= one.training, "an evaluation is dearer than training"


def test_every_command_ends_within_eight_minutes_and_all_within_the_hours_stated():
    seconds = [command.seconds for command in commands()]
    assert max(seconds) <= MOST_SECONDS
    assert sum(seconds) <= 3600 * MOST_HOURS


def test_the_commands_of_a_piece_are_all_its_runs_each_once():
    for piece in OF_RUNS:
        trials = [trial for one in commands() if one.piece == piece for trial in one.trials]
        assert sorted(trial.id for trial in trials) == sorted(t.id for _, t in piece.trials)
        for command in commands():
            if command.seed is not None:
                assert {trial.seed for trial in command.trials} == {command.seed}
                assert command.text.endswith(f" --piece {command.piece.name} --seed {command.seed}")


def test_balance_only_stands_beside_at_and_cat_everywhere():
    for piece in OF_RUNS:
        assert {"AT", "balance only", "CAT"} <= {arm for arm, _ in piece.trials}, piece.name


TRIALS = {
    "PGD": Trial(steps=3),
    "restarts": Trial(steps=2, restarts=2),
    "free": Trial(method="AT", crafting="free", steps=2),
    "N-FGSM": Trial(crafting="n-fgsm"),
    "batch mean": Trial(crafting="batch mean", steps=2),
    "TRADES": Trial(loss="trades", crafting="kl", steps=2),
    "MART": Trial(loss="mart", steps=2),
}


@pytest.mark.parametrize("name", TRIALS)
def test_passes_are_those_that_a_run_counts(name):
    trial = replace(TRIALS[name], iterations=4, sampling_number=16, evaluate_every=0, device="cpu")
    *_, last = records_of(trial, build_training(trial))
    counted = cost.cost_of_trial(trial)
    assert (counted.draws, counted.training) == (last.examples, last.passes)
    assert counted.evaluation == 0


def test_evaluations_cost_at_most_what_is_said():
    """Every image that the model classifies while it is judged; none is broken at epsilon 0."""
    trial = Trial(
        epsilon=0.0,
        step_size=0.0,
        steps=0,
        iterations=5,
        evaluate_every=2,
        evaluation_size=30,
        evaluation_steps=3,
        device="cpu",
    )
    training = build_training(trial)
    images = []
    training.model.register_forward_pre_hook(lambda _, given: images.append(len(given[0])))
    list(records_of(trial, training))
    said = cost.cost_of_trial(trial).evaluation
    assert said == 3 * 30 * (3 + 2)
    judged = sum(images) - cost.cost_of_trial(trial).training
    assert 0.5 * said <= judged <= said + 3 * 30  # the start is looked at twice


@pytest.mark.parametrize("model, dataset", [("resnet18", "digits"), ("cnn", "digits")])
def test_a_checkpoint_is_no_larger_than_said(model, dataset):
    """Weights, momentum and a kilobyte for each tensor's name and place."""
    parameters = list(build_model(model, load_data(dataset)).parameters())
    bytes_of_weights = sum(p.numel() * p.element_size() for p in parameters)
    assert 2 * bytes_of_weights + 1024 * len(parameters) <= cost.CHECKPOINT_BYTES[model]


def test_a_slower_machine_takes_longer_and_more_commands():
    piece = next(piece for piece in PAPER if piece.name == "cifar10_tables")
    slow = replace(cost.H200, step=4 * cost.H200.step, image=4 * cost.H200.image)
    assert len(cost.commands_of(piece, cost.H200)) == 1
    assert [command.seed for command in cost.commands_of(piece, slow)] == [0, 1, 2]


def test_a_trial_without_an_end_has_no_cost():
    with pytest.raises(ValueError, match="iterations is None"):
        cost.cost_of_trial(Trial(iterations=None))

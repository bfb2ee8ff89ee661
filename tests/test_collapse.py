"""The guard against catastrophic overfitting: sees a collapse, undoes it, counts what it costs."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from catlib import (
    PGD,
    CaseSampler,
    PerturbationMemory,
    Training,
    UniformSampler,
    build_model,
    guarded,
    robust_accuracy,
)
from catlib.collapse import JUDGE_PASSES, Guard, one_step_more, smaller_step
from catlib.lab.baselines import NFGSM

pytestmark = pytest.mark.no_device(
    "it trains on the CPU; tests/test_mock_gpu.py has the guard on the device"
)

BLIND = PGD(0.15, 0.0, steps=1, random_start=False)  # finds nothing: its training is not robust


def make(data, attack=BLIND, sampler=CaseSampler, iterations=40, **options):
    return Training(
        build_model("cnn", data, seed=1),
        data,
        sampler(data.y_train, 50, seed=1),
        attack,
        iterations=iterations,
        device="cpu",
        **options,
    )


def see(attack):
    """A remedy for an attack that finds nothing."""
    return replace(attack, steps=2, step_size=0.1)


# what it does


def test_a_blind_attack_is_seen_and_undone(digits):
    """The training of a blind attack is right on what that finds, and on nothing else."""
    images, labels = digits.test()
    images = images[:200]
    labels = labels[:200]
    judge = PGD(0.15, steps=10)
    alone = make(digits, iterations=60)
    list(alone)
    training = make(digits, iterations=60)
    records = list(guarded(training, share=0.3, size=50, remedy=see))
    unguarded = robust_accuracy(alone.model, images, labels, judge)
    ours = robust_accuracy(training.model, images, labels, judge)
    assert ours > 0.3 and ours > unguarded + 0.2
    last = records[-1]
    assert last.iteration == 60 and last.collapses == 1 and training.attack.steps == 2


def test_it_goes_back_to_the_last_good_state(digits, same):
    """All but what was spent, and the record's batch, is as it was at the last good check."""
    training = make(digits)
    guard = Guard(training, share=0.5, size=50, remedy=see)
    good = training.state_dict()
    spent = []  # (passes of an iteration or a check)
    for record in training:
        batch = training.batch
        seen = guard.watch(record)
        spent.append(seen.passes)
        if seen.checked is not None and not seen.collapses:
            good = training.state_dict()
        if seen.collapses:
            break
    assert seen.iteration == record.iteration > training.iteration
    state = training.state_dict()
    counts = ("examples", "passes", "seconds")
    rest = [{k: v for k, v in s.items() if k not in counts} for s in (state, good)]
    assert same(*rest)
    assert state["passes"] == seen.passes and state["examples"] == record.examples
    assert training.batch is batch and training.attack == see(BLIND)
    assert spent == sorted(spent) and seen.passes > record.passes
    assert next(training).iteration == good["iteration"] + 1


@pytest.mark.parametrize("share", [0.03, 0.2])
def test_its_cost_is_counted_and_bounded(digits, share):
    """By a count of all images that go through the model."""
    training = make(digits, PGD(0.1, steps=2), iterations=100)
    sizes = []
    training.model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    guard = Guard(training, share=share, size=8)
    checks = 0
    for record in training:
        record = guard.watch(record)
        assert record.passes == sum(sizes)
        assert guard.spent <= share * record.passes
        checks += record.checked is not None
    assert record.checked is not None, "the end is checked"
    assert guard.spent == sum(sizes) - 100 * 50 * 3
    assert record.collapses == 0
    assert checks >= share * sum(sizes) // (8 * JUDGE_PASSES) - 1, "what is affordable is done"


def test_a_training_that_does_not_collapse_is_left_alone(digits, same):
    alone = make(digits, PGD(0.1, steps=3), UniformSampler)
    *_, record = alone
    training = make(digits, PGD(0.1, steps=3), UniformSampler)
    records = list(guarded(training, share=0.2, size=32))
    assert len([r for r in records if r.checked is not None]) > 1
    assert [r.collapses for r in records] == [0] * 40
    before = alone.state_dict() | {"passes": 0}
    assert same(before, training.state_dict() | {"passes": 0})
    assert records[-1].loss == record.loss


def test_it_gives_up_and_says_so(digits):
    """A remedy that does not help is tried so many times, and training still ends."""
    training = make(digits)
    with pytest.warns(UserWarning, match="went back 2 times before"):
        records = list(guarded(training, share=0.5, size=50, remedy=lambda a: a, most=2))
    assert records[-1].iteration == 40 and records[-1].collapses == 2


# its state


def watched(data, **options):
    """A guard that checks often, around a blind training."""
    return Guard(make(data, iterations=24), **{"share": 0.4, "size": 20, "remedy": see} | options)


@pytest.mark.parametrize("stop", [1, 9, 16, 22])
def test_it_goes_on_from_its_state_as_if_nothing_had_happened(digits, same, stop):
    """Stopped before the collapse and after it; the training's state is loaded first."""
    whole = watched(digits)
    expected = [replace(record, seconds=0) for record in whole.records()]
    assert expected[-1].collapses >= 1
    first = watched(digits)
    got = []
    for record in first.records():
        got.append(replace(record, seconds=0))
        if len(got) == stop:
            break
    second = watched(digits)
    second.training.load_state_dict(first.training.state_dict())
    second.load_state_dict(first.state_dict())
    got += [replace(record, seconds=0) for record in second.records()]
    assert got == expected
    assert second.training.attack == whole.training.attack
    assert same(second.training.state_dict(), whole.training.state_dict())
    assert same(second.state_dict(), whole.state_dict())


def test_its_state_is_a_snapshot(digits, same):
    guard = watched(digits)
    next(guard.records())
    state = guard.state_dict()
    before = copy.deepcopy(state)
    list(guard.records())
    assert same(state, before)


DAMAGE = {
    "lacks spent": lambda state: state.pop("spent"),
    "share 0.9; this one has 0.4": lambda state: state.update(share=0.9),
    "the guard's collapses is -1": lambda state: state.update(collapses=-1),
    "has 9 collapses; this guard goes back at most 8": lambda state: state.update(collapses=9),
    "does not fit this training.* seed 7": lambda state: state["good"].update(seed=7),
    "does not fit this training.*unexpected": lambda state: state.update(waiting={"unexpected": 1}),
    "does not fit this training.*out of bounds": lambda state: state["sample"].update(
        indices=torch.tensor([10**6])
    ),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_a_state_that_does_not_fit_changes_nothing(digits, same, sentence):
    guard = watched(digits)
    records = guard.records()
    next(records)
    state = guard.state_dict()
    DAMAGE[sentence](state)
    before = (guard.state_dict(), guard.training.state_dict())
    batch = guard.training.batch
    with pytest.raises(ValueError, match=sentence):
        guard.load_state_dict(state)
    assert same(before, (guard.state_dict(), guard.training.state_dict()))
    assert guard.training.batch is batch
    assert next(records).iteration == 2


# remedies


def test_remedies():
    assert smaller_step(PGD(0.3, 0.4, steps=1)) == PGD(0.3, 0.2, steps=1)
    assert smaller_step(NFGSM(0.1)) == NFGSM(0.1, 0.05)
    assert one_step_more(PGD(0.3, 0.4, steps=1)) == PGD(0.3, 0.2, steps=2)


def test_the_remedy_suits_the_training(digits):
    memory = PerturbationMemory(len(digits.x_train), (1, 8, 8), 0.15)
    assert Guard(make(digits)).remedy is one_step_more
    assert Guard(make(digits, memory=memory)).remedy is smaller_step
    assert Guard(make(digits, NFGSM(0.1))).remedy is smaller_step


@dataclass(frozen=True)
class Nameless:
    strength: float = 0.1

    def __call__(self, model, images, labels):
        return images


@pytest.mark.parametrize(
    "options, error, sentence",
    [
        ({"share": 0}, ValueError, "share is 0; it must lie between 0 and 1"),
        ({"ratio": 1.5}, ValueError, "ratio is 1.5; it must lie between 0 and 1"),
        ({"size": 0}, ValueError, "size is 0; it must be an integer of at least 1"),
        ({"most": -1}, ValueError, "most is -1; it must be an integer of at least 0"),
        ({"attack": Nameless()}, TypeError, "Nameless without an epsilon"),
    ],
)
def test_what_no_guard_can_use_is_refused(digits, options, error, sentence):
    training = make(digits, options.pop("attack", BLIND))
    with pytest.raises(error, match=sentence):
        Guard(training, **options)


# a real collapse


def enlarged(data, size=16):
    """Digits of 16 x 16 pixels, the first 500: on 8 x 8 even one step is not fooled for long."""
    larger = [F.interpolate(x.float(), size=(size, size)) for x in (data.x_train, data.x_test)]
    scale = 255 if data.x_train.dtype == torch.uint8 else 1
    train, test = (x / scale for x in larger)
    return replace(data, x_train=train[:500], y_train=data.y_train[:500], x_test=test)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_of_epsilon_collapses_unless_it_is_guarded(digits, seed):
    """One step of epsilon from the image itself: right on what it finds, and not robust at all.

    With the guard the training ends about as robust as one that takes two steps from the start.
    """
    data = enlarged(digits)
    judge = PGD(0.3, steps=10)

    def train(attack, guard):
        model = build_model("cnn", data, seed=seed)
        training = Training(
            model,
            data,
            UniformSampler(data.y_train, 50, seed=seed),
            attack,
            torch.optim.Adam(model.parameters(), 3e-3),
            iterations=400,
            seed=seed,
            device="cpu",
        )
        *_, record = guarded(training, share=0.1, size=50) if guard else training
        crafted = training.batch.logits.argmax(1) == training.batch.labels
        robust = robust_accuracy(model, *data.train(slice(300)), judge)
        return record, crafted.double().mean().item(), robust

    one_step = PGD(0.3, 0.3, steps=1, random_start=False)
    _, crafted, collapsed = train(one_step, guard=False)
    assert crafted > 0.5 and collapsed < 0.1
    _, _, never_collapsed = train(one_step_more(one_step), guard=False)
    record, _, ours = train(one_step, guard=True)
    assert record.collapses >= 1 and record.iteration == 400
    assert ours > 0.2 and ours > never_collapsed - 0.1

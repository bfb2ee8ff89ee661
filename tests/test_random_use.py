"""Training, its samplers and its states, used, interrupted and broken in any order.

Hypothesis draws what happens to a training: iterations, errors and Ctrl-C in every part of one,
states taken, loaded and refused. A reference training of the same kind was never disturbed. At any
moment the two must agree, bit for bit, and each record must have come exactly once.
"""

import io
import os
import signal
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import nn

from catlib import (
    PGD,
    CaseSampler,
    CropAndFlip,
    PerturbationMemory,
    Training,
    UniformSampler,
    crop_and_flip,
    load_data,
)
from catlib.data import Moves
from catlib.lab.baselines import NFGSM, FreeTraining

# How many to draw; 1000 take about five minutes. With --hypothesis-seed each part draws its own.
EXAMPLES = os.environ.get("CATLIB_RANDOM_USES")
ITERATIONS = 12


class Trouble(Exception):
    pass


class Accidents:
    """The one place that knows what is to go wrong, and where."""

    def __init__(self):
        self.disarm()

    def arm(self, place: str, what: str, call: int) -> None:
        """At this call of this place, counted from 1, this is to happen."""
        self.place = place
        self.what = what
        self.left = call
        self.happened = False

    def disarm(self) -> None:
        self.arm(place="", what="", call=0)

    def visit(self, place: str, value=None):
        """What the places call; they go on with the value that is returned."""
        if place != self.place:
            return value
        self.left -= 1
        if self.left:
            return value
        self.happened = True
        if self.what == "Ctrl-C":
            signal.raise_signal(signal.SIGINT)
        elif self.what == "error":
            raise Trouble
        elif self.what == "nan":
            return value * float("nan")
        return value


class Net(nn.Module):
    """Small, with batch norm and dropout: with something that every forward pass could spoil."""

    def __init__(self, accidents: Accidents):
        super().__init__()
        self.accidents = accidents
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Flatten(),
                nn.Linear(64, 12),
                nn.BatchNorm1d(12),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.Linear(12, 10),
            )

    def forward(self, x):
        logits = self.layers(x)
        if torch.is_grad_enabled():
            of_an_attack = x.requires_grad or not self.training
            place = "backward of an attack" if of_an_attack else "backward of an update"
            logits = Backward.apply(logits, self.accidents, place)
        return self.accidents.visit("forward", logits)


class Backward(torch.autograd.Function):
    """The identity; its backward pass is a place of accidents."""

    @staticmethod
    def forward(ctx, logits, accidents, place):
        ctx.accidents = accidents
        ctx.place = place
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.accidents.visit(ctx.place, gradient), None, None


@cache
def data():
    digits = load_data("digits")
    return replace(digits, x_train=digits.x_train[:120], y_train=digits.y_train[:120])


KINDS = (
    "AT",
    "CAT, sort",
    "CAT, tree",
    "CAT, augmented, scheduled",
    "CAT, N-FGSM",
    "free",
    "AT, remembered",
    "CAT, remembered and moved",
)


class Visiting(CropAndFlip):
    """An augmentation that can be undone; every draw of moves visits the accidents."""

    def __init__(self, accidents: Accidents):
        super().__init__(1)
        object.__setattr__(self, "accidents", accidents)

    def draw(self, images, generator):
        moves = super().draw(images, generator)
        factor = self.accidents.visit("augment", 1.0)
        return moves if factor == 1 else Spoiling(**vars(moves))


class Spoiling(Moves):
    """Moves that leave no number."""

    def __call__(self, images):
        return super().__call__(images) * float("nan")


def build(kind: str, accidents: Accidents) -> Training:
    """A new training of this kind; every part of it visits the accidents."""
    model = Net(accidents)
    if kind == "AT":
        sampler = UniformSampler(data().y_train, 10, seed=1)
    else:
        sampler = CaseSampler(data().y_train, 10, 0.3, tree=kind == "CAT, tree", seed=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = None
    augment = None
    if "augmented" in kind or kind == "free":

        def augment(images, generator):
            return accidents.visit("augment", crop_and_flip(images, generator, 1))

    if "scheduled" in kind:
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, ITERATIONS)
    memory = None
    if "remembered" in kind:
        memory = PerturbationMemory(120, (1, 8, 8), 0.1)
    if "moved" in kind:
        augment = Visiting(accidents)
    attack = PGD(0.1, steps=2)
    if kind == "CAT, N-FGSM":
        rival = NFGSM(0.1)

        def attack(model, images, labels):
            accidents.visit("attack")
            return accidents.visit("attack", rival(model, images, labels))

    def judge(model, images, labels):
        accidents.visit("judge")
        return PGD(0.1, steps=1, random_start=False)(model, images, labels)

    update = sampler.update

    def visiting_update(indices, gain):
        accidents.visit("update")
        update(indices, gain)

    sampler.update = visiting_update
    optimizer.register_step_post_hook(lambda *_: accidents.visit("step"))
    build_it = FreeTraining if kind == "free" else Training
    return build_it(
        model,
        data(),
        sampler,
        attack,
        optimizer,
        scheduler=scheduler,
        iterations=ITERATIONS,
        evaluate_every=3,
        evaluation_size=20,
        evaluation_attack=judge,
        augment=augment,
        memory=memory,
        seed=3,
        device="cpu",
    )


# where an accident can happen, and what
PLACES = {
    "forward": ("error", "Ctrl-C"),
    "backward of an attack": ("error", "Ctrl-C"),
    "backward of an update": ("error", "Ctrl-C", "nan"),
    "augment": ("error", "Ctrl-C", "nan"),
    "attack": ("error", "Ctrl-C"),
    "judge": ("error", "Ctrl-C"),
    "step": ("Ctrl-C",),
    "update": ("Ctrl-C",),
}


def timeless(record):
    return replace(record, seconds=0.0)


@cache
def undisturbed(kind: str):
    """(records, states) of a training that was left alone; state i is that after i iterations."""
    training = build(kind, Accidents())
    states = [training.state_dict()]
    records = []
    for record in training:
        records.append(timeless(record))
        states.append(training.state_dict())
    return records, states


def equal(a, b) -> bool:
    """Equal, number for number, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def comparable(state: dict) -> dict:
    """What must agree with the undisturbed training: all but the time, and what is on its way."""
    on_its_way = ("seconds", "drawn", "pending")
    rest = {name: value for name, value in state.items() if name not in on_its_way}
    if state["drawn"] is not None:  # the sampler is one draw ahead
        weights = state["sampler"].get("weights")
        rest["sampler"] = {"weights": weights}
        # free training draws before its first replay of a batch
        rest.pop("replayed", None)
    # noise of zeros and no noise yet are the same
    if "noise" in rest and not state["iteration"]:
        rest.pop("noise")
    return rest


class RandomUse(RuleBasedStateMachine):
    """A training, and the number of records that have come out of it."""

    @initialize(kind=st.sampled_from(KINDS))
    def begin(self, kind):
        self.kind = kind
        self.records, self.states = undisturbed(kind)
        self.accidents = Accidents()
        self.training = build(kind, self.accidents)
        self.received = 0
        self.saved = []  # (records received, a state or the bytes of one)
        self.random_state = torch.get_rng_state()

    def receive(self, record) -> None:
        assert timeless(record) == self.records[self.received]
        self.received += 1

    @rule(n=st.integers(1, 4))
    def train(self, n):
        for record in self.training:
            self.receive(record)
            n -= 1
            if not n:
                return
        assert self.received == ITERATIONS

    @rule(
        accident=st.sampled_from([(p, w) for p in PLACES for w in PLACES[p]]),
        call=st.integers(1, 4),
    )
    def train_with_an_accident(self, accident, call):
        self.accidents.arm(*accident, call)
        try:
            record = next(self.training, None)
        except (Trouble, KeyboardInterrupt, FloatingPointError):
            assert self.accidents.happened
        else:
            assert not self.accidents.happened
            if record is None:
                assert self.received == ITERATIONS
            else:
                self.receive(record)
        finally:
            self.accidents.disarm()

    @rule()
    def evaluate(self):
        assert self.training.evaluate() == self.training.evaluate()

    @rule(through_a_file=st.booleans())
    def save(self, through_a_file):
        state = self.training.state_dict()
        if through_a_file:
            file = io.BytesIO()
            torch.save(state, file)
            state = file.getvalue()
        self.saved.append((self.received, state))

    @precondition(lambda self: self.saved)
    @rule(which=st.integers(0, 100), anew=st.booleans())
    def load(self, which, anew):
        received, state = self.saved[which % len(self.saved)]
        if isinstance(state, bytes):
            state = torch.load(io.BytesIO(state), weights_only=True)
        if anew:
            self.training = build(self.kind, self.accidents)
        self.training.load_state_dict(state)
        self.received = received

    @rule(how=st.sampled_from(["kind", "seed", "nan", "shape", "beyond", "lacking", "sampler"]))
    def load_what_does_not_fit(self, how):
        state = self.training.state_dict()
        weight = state["model"]["layers.1.weight"]
        if how == "kind":
            other = "CAT, sort" if self.kind == "AT" else "AT"
            state = undisturbed(other)[1][2]
        elif how == "seed":
            state["seed"] = 4
        elif how == "nan":
            weight[3, 5] = float("nan")
        elif how == "shape":
            state["model"]["layers.1.weight"] = weight[:, :5].clone()
        elif how == "beyond":
            state["iteration"] = ITERATIONS + 1
        elif how == "lacking":
            del state["optimizer"]
        elif how == "sampler":
            state["sampler"] = {"n": 120, "sampling_number": 10}
        before = self.training.state_dict()
        with pytest.raises(ValueError):
            self.training.load_state_dict(state)
        assert equal(self.training.state_dict(), before)

    @rule()
    def carry_the_sampler_over(self):
        """A sampler that gets its own state is the sampler that it was."""
        sampler = self.training.sampler
        before = sampler.state_dict()
        sampler.load_state_dict(before)
        assert equal(sampler.state_dict(), before)

    @invariant()
    def agrees_with_the_undisturbed_training(self):
        state = self.training.state_dict()
        expected = self.states[self.training.iteration]
        if state["drawn"] is not None:
            expected = {**expected, "drawn": state["drawn"]}
        assert equal(comparable(state), comparable(expected))
        waiting = 0 if state["pending"] is None else 1
        assert self.received + waiting == self.training.iteration
        assert not self.training.model._forward_pre_hooks
        assert all(parameter.requires_grad for parameter in self.training.model.parameters())
        assert torch.equal(torch.get_rng_state(), self.random_state)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_random_use():
    if EXAMPLES is None:
        chosen = settings(max_examples=200, stateful_step_count=16, deadline=None)
    else:
        chosen = settings(
            max_examples=int(EXAMPLES), stateful_step_count=30, deadline=None, derandomize=False
        )
    run_state_machine_as_test(RandomUse, settings=chosen)

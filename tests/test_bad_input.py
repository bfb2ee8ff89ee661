"""One table of bad input.

Each raises an error that names the value seen and the range allowed, and changes nothing.
"""

import re

import numpy as np
import pytest
import torch
from torch import nn

from catlib import (
    PGD,
    CaseSampler,
    CropAndFlip,
    Data,
    PerturbationMemory,
    Training,
    UniformSampler,
    accuracy,
    build_model,
    check_model,
    crop_and_flip,
    information_gain,
    load_data,
    pgd,
    recalibrated,
    robust_accuracy,
    smooth,
)
from catlib.data import subset
from catlib.lab.background import BackgroundTraining
from catlib.lab.baselines import NFGSM, FreeTraining
from catlib.lab.runs import Trial
from catlib.readings import steps_near_boundary

NAN, INF = float("nan"), float("inf")
LABELS = torch.arange(60) % 3
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).train()
DIGITS = load_data("digits")
BYTES = torch.full((6, 1, 8, 8), 255, dtype=torch.uint8)
TWO_CLASSES = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
WEIGHT = nn.Parameter(torch.zeros(2))


def images(value=0.5, n=4, dtype=torch.float32):
    x = torch.full((n, 1, 4, 4), 0.5)
    x[-1, 0, 2, 3] = value
    return x.to(dtype)


def attack(x=None, y=None, **options):
    """An attack on four good images, but for what is said."""
    x, y = images() if x is None else x, torch.tensor([0, 1, 2, 0]) if y is None else y
    return lambda: pgd(MODEL, x, y, **({"epsilon": 0.1, "steps": 2} | options))


def steps_each(steps, **options):
    """An attack in which each of four good images has its own steps."""
    return lambda: PGD(0.1, **options)(MODEL, images(), torch.tensor([0, 1, 2, 0]), steps=steps)


def labels(*values):
    return attack(y=torch.tensor(values))


def case(**options):
    return lambda: CaseSampler(**({"labels": LABELS, "sampling_number": 6} | options))


def update(indices, gain, tree):
    sampler = SAMPLERS[tree]
    return lambda: sampler.update(torch.tensor(indices), torch.tensor(gain))


def case_state(tree, **changed):
    """Load a state that differs from a whole one, or lacks what is None, into a sampler."""

    def load():
        state = CaseSampler(LABELS, 6, seed=9).state_dict() | changed
        SAMPLERS[tree].load_state_dict({k: v for k, v in state.items() if v is not None})

    return load


def uniform_state(**changed):
    sampler = UniformSampler(LABELS, 6)
    return lambda: sampler.load_state_dict(sampler.state_dict() | changed)


def data(**changed):
    """Six good images for training and for test, but for what is said."""
    y = LABELS[:6]
    good = {"x_train": BYTES, "y_train": y, "x_test": BYTES, "y_test": y, "classes": tuple("abc")}
    return lambda: Data("six", **(good | changed))


def own_data(**changed):
    return lambda: Data.from_tensors(**({"x_train": BYTES, "y_train": LABELS[:6]} | changed))


def training(**options):
    model = build_model("cnn", DIGITS)
    good = {"sampler": UniformSampler(DIGITS.y_train), "attack": PGD(0.1), "device": "cpu"}
    return lambda: Training(model, DIGITS, **(good | options))


def set_attribute(tree, name, value):
    return lambda: setattr(SAMPLERS[tree], name, value)


class Returns(nn.Module):
    """A model that takes images of 16 pixels for logits of 16 classes, and returns what is said."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x.flatten(1))


class Away:
    """An augmentation that moves pixels and does not say how to move them back."""

    def draw(self, images, generator):
        return lambda images: images.roll(1, 2)


MEMORY = PerturbationMemory(60, (1, 4, 4), 0.1)


def remember(**options):
    """A good memory, but for what is said."""
    return lambda: PerturbationMemory(**({"n": 60, "shape": (1, 4, 4), "epsilon": 0.1} | options))


def remembered(indices=(1, 2), perturbations=None):
    if perturbations is None:
        perturbations = torch.zeros(2, 1, 4, 4)
    return lambda: MEMORY.update(torch.tensor(indices), perturbations)


def memory_state(**changed):
    """Load a state that differs from a whole one, or lacks what is None, into a memory."""

    def load():
        state = MEMORY.state_dict() | changed
        MEMORY.load_state_dict({k: v for k, v in state.items() if v is not None})

    return load


BATCH = images(), LABELS[:4]
BIAS = nn.Parameter(torch.zeros(16))
MODELS = {
    "a model of numbers": (Returns(lambda x: x[:, 0]), ValueError, "(4,)", "(B, K)"),
    "a model of maps": (
        Returns(lambda x: x[:, :, None, None]),
        ValueError,
        "(4, 16, 1, 1)",
        "(B, K)",
    ),
    "a model of one row": (Returns(lambda x: x[:1]), ValueError, "(1, 16)", "(B, K)"),
    "a model of a tuple": (Returns(lambda x: (x, x)), TypeError, "tuple of 2", "Wrap it"),
    "a model of a dict": (Returns(lambda x: {"logits": x}), TypeError, "dict of 1", "Wrap it"),
    "a model of nothing": (Returns(lambda x: None), TypeError, "NoneType", "Wrap it"),
    "a model of integers": (
        Returns(lambda x: x.long()),
        TypeError,
        "torch.int64",
        "floating point",
    ),
}
CALLERS = {
    "pgd": lambda model: lambda: pgd(model, *BATCH, epsilon=0.1, steps=1),
    "pgd with restarts": lambda model: (
        lambda: pgd(model, *BATCH, epsilon=0.1, steps=0, restarts=2, batch_size=4)
    ),
    "accuracy": lambda model: lambda: accuracy(model, *BATCH),
    "robust_accuracy": lambda model: lambda: robust_accuracy(model, *BATCH, PGD(0.1)),
    "robust_accuracy, any attack": (
        lambda model: lambda: robust_accuracy(model, *BATCH, lambda m, x, y: x)
    ),
    "check_model": lambda model: lambda: check_model(model, BATCH[0]),
}


def attacked(attack):
    """Robust accuracy by a custom attack, of a model that is right on every image."""
    model = Returns(lambda x: nn.functional.one_hot(LABELS[: len(x)], 16) + 0 * x)
    return lambda: robust_accuracy(model, *BATCH, attack)


SAMPLERS = {tree: CaseSampler(LABELS, 6, tree=tree) for tree in (False, True)}

# what is wrong: (the call, the error, the value seen, what is allowed)
TABLE = {
    # images
    "a NaN pixel": (attack(images(NAN)), ValueError, "nan", "number in [0, 1]"),
    "an infinite pixel": (attack(images(INF)), ValueError, "inf", "[0, 1]"),
    "an infinitely dark pixel": (attack(images(-INF)), ValueError, "-inf", "[0, 1]"),
    "a pixel above 1": (attack(images(1.5)), ValueError, "1.5", "[0, 1]"),
    "a pixel below 0": (attack(images(-0.25)), ValueError, "-0.25", "[0, 1]"),
    "bytes as floats": (attack(images(255.0)), ValueError, "255", "[0, 1]"),
    "integer images": (
        attack(images(1, dtype=torch.uint8)),
        TypeError,
        "torch.uint8",
        "float32 or float64 in [0, 1]",
    ),
    "half images": (
        attack(images(dtype=torch.float16)),
        TypeError,
        "torch.float16",
        "float32 or float64",
    ),
    "a pixel above 1 by rounding": (attack(images(1 + 2**-23)), ValueError, "1.00000012", "clamp"),
    "a pixel below 0 by rounding": (
        attack(images(-1e-8)),
        ValueError,
        "-9.99999994e-09",
        "clamp(0, 1)",
    ),
    "images as arrays": (attack(images().numpy()), TypeError, "ndarray", "tensors"),
    "one image without batch": (attack(images()[0]), ValueError, "(1, 4, 4)", "(B, C, H, W)"),
    "a NaN pixel, early stop": (attack(images(NAN), early_stop=True), ValueError, "nan", "[0, 1]"),
    # labels
    "a label of -100": (labels(0, 1, -100, 0), ValueError, "-100", "0..K-1"),
    "a label of -1": (labels(0, 1, -1, 0), ValueError, "-1", "0..K-1"),
    "a label of K": (labels(0, 1, 3, 0), ValueError, "label is 3", "0..2"),
    "a label of K, early stop": (
        attack(y=torch.tensor([0, 1, 3, 0]), early_stop=True),
        ValueError,
        "label is 3",
        "0..2",
    ),
    "float labels": (labels(0.0, 1.0, 2.0, 0.0), TypeError, "torch.float32", "integers in 0..K-1"),
    "boolean labels": (labels(True, False, True, True), TypeError, "torch.bool", "integers"),
    "a label too few": (labels(0, 1, 2), ValueError, "(3,)", "(B,)"),
    "one-hot labels": (attack(y=torch.eye(4, dtype=torch.long)), ValueError, "(4, 4)", "(B,)"),
    # the model
    **{
        f"{what}, by {caller}": (call(model), error, seen, allowed)
        for what, (model, error, seen, allowed) in MODELS.items()
        for caller, call in CALLERS.items()
    },
    "logits that are detached": (
        lambda: pgd(Returns(lambda x: x.detach()), images(), LABELS[:4], epsilon=0.1, steps=1),
        ValueError,
        "no gradient",
        "attack that needs none",
    ),
    "images that are detached": (
        lambda: robust_accuracy(Returns(lambda x: 0 * BIAS + x.detach()), *BATCH, PGD(0.1)),
        ValueError,
        "no gradient",
        "attack that needs none",
    ),
    # the attack
    "a negative epsilon": (attack(epsilon=-0.1), ValueError, "-0.1", "at least 0"),
    "an epsilon of NaN": (attack(epsilon=NAN), ValueError, "nan", "finite number of at least 0"),
    "an infinite epsilon": (attack(epsilon=INF), ValueError, "inf", "finite"),
    "an epsilon in words": (attack(epsilon="8/255"), ValueError, "'8/255'", "finite number"),
    "a negative step": (attack(step_size=-0.01), ValueError, "-0.01", "at least 0"),
    "a step of NaN": (attack(step_size=NAN), ValueError, "nan", "finite number"),
    "negative steps": (attack(steps=-1), ValueError, "-1", "at least 0"),
    "half a step": (attack(steps=2.5), ValueError, "2.5", "integer"),
    "no restart": (attack(restarts=0), ValueError, "0", "at least 1"),
    "restarts from one start": (attack(restarts=3, random_start=False), ValueError, "3", "use 1"),
    "batches of none": (attack(batch_size=0), ValueError, "0", "at least 1"),
    "an unknown rule": (attack(rule="signum"), ValueError, "'signum'", "sign, gradient"),
    "an unknown norm": (attack(norm="l1"), ValueError, "'l1'", "linf, l2"),
    "an unknown mode": (attack(batch_norm="off"), ValueError, "'off'", "eval, train"),
    "PGD itself": (lambda: PGD(-1), ValueError, "-1", "at least 0"),
    "a start of another shape": (
        attack(start=torch.zeros(4, 1, 4)),
        ValueError,
        "(4, 1, 4)",
        "one perturbation an image",
    ),
    "a start of too few": (
        attack(start=torch.zeros(3, 1, 4, 4)),
        ValueError,
        "(3, 1, 4, 4)",
        "one perturbation an image",
    ),
    "a start of NaN": (attack(start=images(NAN)), ValueError, "nan", "finite number"),
    "an infinite start, early stop": (
        attack(start=images(INF), early_stop=True),
        ValueError,
        "inf",
        "finite number",
    ),
    "a start of bytes": (
        attack(start=images(dtype=torch.uint8)),
        TypeError,
        "torch.uint8",
        "floating-point",
    ),
    "adversarial images in place of a start": (
        attack(start=images() + 0.1),
        ValueError,
        "0.6",
        "give start - images",
    ),
    "a start in words": (attack(start="random"), TypeError, "str", "floating-point tensor"),
    "steps for too few images": (
        steps_each(torch.ones(3, dtype=torch.long)),
        ValueError,
        "(3,)",
        "one for each image",
    ),
    "half steps for images": (steps_each(torch.ones(4)), TypeError, "torch.float32", "integers"),
    "steps below 0": (steps_each(torch.tensor([1, -2, 0, 0])), ValueError, "-2", "at least 0"),
    "steps as a list": (steps_each([1, 1, 1, 1]), TypeError, "list", "a tensor of integers (4,)"),
    "steps for each and an early stop": (
        steps_each(torch.ones(4, dtype=torch.long), early_stop=True),
        ValueError,
        "early_stop=True",
        "use early_stop=False",
    ),
    "steps for each and a graph": (
        steps_each(torch.ones(4, dtype=torch.long), compile=True),
        ValueError,
        "compile=True",
        "use compile=False",
    ),
    "a budget of most 0": (
        lambda: steps_near_boundary(torch.ones(3), 0),
        ValueError,
        "0",
        "at least 1",
    ),
    # Eq. 3 and 4
    "gain of a label of -100": (
        lambda: information_gain(torch.zeros(2, 3), torch.tensor([0, -100])),
        ValueError,
        "-100",
        "0..2",
    ),
    "gain of a label of K": (
        lambda: information_gain(torch.zeros(2, 3), torch.tensor([0, 3])),
        ValueError,
        "3",
        "0..2",
    ),
    "gain of one class": (
        lambda: information_gain(torch.zeros(2, 1), torch.tensor([0, 0])),
        ValueError,
        "(2, 1)",
        "K > 1",
    ),
    "gain of shapes": (
        lambda: information_gain(torch.zeros(2, 3), torch.tensor([0])),
        ValueError,
        "(1,)",
        "(B, K)",
    ),
    "gain of float labels": (
        lambda: information_gain(torch.zeros(2, 3), torch.tensor([0.5, 1])),
        ValueError,
        "torch.float32",
        "integers",
    ),
    "smooth, alpha above 1": (
        lambda: smooth(torch.ones(2), torch.ones(2), 1.5),
        ValueError,
        "1.5",
        "[0, 1]",
    ),
    "smooth, alpha below 0": (
        lambda: smooth(torch.ones(2), torch.ones(2), -0.5),
        ValueError,
        "-0.5",
        "[0, 1]",
    ),
    "smooth, alpha NaN": (
        lambda: smooth(torch.ones(2), torch.ones(2), NAN),
        ValueError,
        "nan",
        "[0, 1]",
    ),
    "smooth of shapes": (
        lambda: smooth(torch.ones(2), torch.ones(3), 0.5),
        ValueError,
        "(3,)",
        "same shape",
    ),
    # samplers
    "a sampling number of 0": (case(sampling_number=0), ValueError, "0", "1..60"),
    "a sampling number above n": (case(sampling_number=61), ValueError, "61", "1..60"),
    "a negative sampling number": (case(sampling_number=-3), ValueError, "-3", "1..60"),
    "half a sampling number": (case(sampling_number=6.0), ValueError, "6.0", "integer in 1..60"),
    "uniform, 0": (lambda: UniformSampler(LABELS, 0), ValueError, "0", "1..60"),
    "uniform, above n": (lambda: UniformSampler(LABELS, 61), ValueError, "61", "1..60"),
    "no examples": (case(labels=torch.tensor([], dtype=torch.long)), ValueError, "(0,)", "n > 0"),
    "sampler, float labels": (case(labels=LABELS.float()), ValueError, "torch.float32", "integers"),
    "sampler, a label of -1": (case(labels=LABELS - 1), ValueError, "-1", "0..K-1"),
    "sampler, one-hot labels": (case(labels=torch.eye(6).long()), ValueError, "(6, 6)", "(n,)"),
    "alpha above 1": (case(alpha=1.01), ValueError, "1.01", "[0, 1]"),
    "alpha below 0": (case(alpha=-0.01), ValueError, "-0.01", "[0, 1]"),
    "alpha of NaN": (case(alpha=NAN), ValueError, "nan", "[0, 1]"),
    "a temperature of 0": (case(temperature=0), ValueError, "0", "positive number or 'auto'"),
    "a temperature of NaN": (case(temperature=NAN), ValueError, "nan", "positive number"),
    "an infinite temperature": (case(temperature=INF), ValueError, "inf", "positive number"),
    "a temperature in words": (case(temperature="warm"), ValueError, "'warm'", "'auto'"),
    "a temperature near 0": (case(temperature=5e-324), ValueError, "5e-324", "at least 1e-12"),
    "alpha in words": (case(alpha="half"), ValueError, "'half'", "[0, 1]"),
    "no seed": (case(seed=None), ValueError, "None", "an integer in -2**63"),
    "half a seed": (case(seed=0.5), ValueError, "0.5", "an integer"),
    "uniform, no seed": (
        lambda: UniformSampler(LABELS, 6, seed=None),
        ValueError,
        "None",
        "integer",
    ),
    "a log_weight for the tree": (
        case(tree=True, log_weight=torch.neg),
        ValueError,
        "log_weight",
        "tree=False",
    ),
    "a log_weight that is no function": (case(log_weight=3), ValueError, "3", "a function or None"),
    "a log_weight of another shape": (
        lambda: CaseSampler(LABELS, 6, log_weight=lambda w: w[:5]).draw(),
        ValueError,
        "(5,)",
        "the same",
    ),
    "a log_weight of NaN": (
        lambda: CaseSampler(LABELS, 6, log_weight=lambda w: w * NAN).draw(),
        FloatingPointError,
        "nan",
        "below 1e+15",
    ),
    "no state of a sampler": (
        lambda: UniformSampler(LABELS, 6).load_state_dict({"weights": 1}),
        ValueError,
        "CaseSampler",
        "This sampler is a UniformSampler",
    ),
    "a state whose order repeats": (
        uniform_state(order=torch.zeros(60, dtype=torch.long)),
        ValueError,
        "60",
        "no order of 0..59",
    ),
    "a state whose order is too short": (
        uniform_state(order=torch.arange(7)),
        ValueError,
        "7",
        "no order of 0..59",
    ),
    "a state whose order is of floats": (
        uniform_state(order=torch.rand(60)),
        ValueError,
        "torch.float32",
        "torch.int64",
    ),
    "a state whose place lies beyond": (
        uniform_state(order=torch.arange(60), next=61),
        ValueError,
        "61",
        "0..60",
    ),
    **{
        f"{what}{', tree' if tree else ''}": entry
        for tree in (False, True)
        for what, entry in {
            "alpha set to 2": (set_attribute(tree, "alpha", 2), ValueError, "2", "[0, 1]"),
            "temperature set to -1": (
                set_attribute(tree, "temperature", -1),
                ValueError,
                "-1",
                "positive number",
            ),
            "a NaN gain": (update([1, 2], [0.5, NAN], tree), ValueError, "nan", "finite"),
            "an infinite gain": (update([1, 2], [0.5, INF], tree), ValueError, "inf", "finite"),
            "a gain above float32": (
                lambda tree=tree: SAMPLERS[tree].update(
                    torch.tensor([1]), torch.tensor([1e300], dtype=torch.float64)
                ),
                ValueError,
                "inf",
                "finite",
            ),
            "a state of the other kind": (
                case_state(tree, weights=None, order=torch.arange(60), next=0),
                ValueError,
                "UniformSampler",
                "it lacks weights",
            ),
            "a state with a NaN weight": (
                case_state(tree, weights=torch.full((60,), NAN)),
                ValueError,
                "nan",
                "must be finite",
            ),
            "a state with an infinite weight": (
                case_state(tree, weights=torch.cat([torch.ones(59), torch.tensor([INF])])),
                ValueError,
                "inf",
                "example 59",
            ),
            "a state with too few weights": (
                case_state(tree, weights=torch.ones(7)),
                ValueError,
                "(7,)",
                "(60,)",
            ),
            "a state with a column of weights": (
                case_state(tree, weights=torch.ones(60, 1)),
                ValueError,
                "(60, 1)",
                "(60,)",
            ),
            "a state with weights of float64": (
                case_state(tree, weights=torch.ones(60, dtype=torch.float64)),
                ValueError,
                "torch.float64",
                "float32",
            ),
            "a state with a list of weights": (
                case_state(tree, weights=[1.0] * 60),
                ValueError,
                "list",
                "float32",
            ),
            "a state with a divisor of 0": (
                case_state(tree, divisor=0.0),
                ValueError,
                "0.0",
                "positive number",
            ),
            "a state with a divisor of NaN": (
                case_state(tree, divisor=NAN),
                ValueError,
                "nan",
                "positive number",
            ),
            "a state with two temperatures": (
                case_state(tree, temperature=2.0, divisor=3.0),
                ValueError,
                "3.0",
                "the same number",
            ),
            "a state with a temperature of -1": (
                case_state(tree, temperature=-1.0),
                ValueError,
                "-1.0",
                "in the state",
            ),
            "a state with alpha 2": (case_state(tree, alpha=2.0), ValueError, "2.0", "[0, 1]"),
            "a state with half a draw": (case_state(tree, draws=0.5), ValueError, "0.5", "integer"),
            "a state with another generator": (
                case_state(tree, generator=torch.zeros(16, dtype=torch.uint8)),
                ValueError,
                "cpu",
                "random generator",
            ),
            "an index of n": (update([1, 60], [0.5, 0.5], tree), IndexError, "60", "0..59"),
            "an index of -1": (update([1, -1], [0.5, 0.5], tree), IndexError, "-1", "0..59"),
            "an index twice": (
                update([1, 1], [0.5, 0.5], tree),
                ValueError,
                "twice",
                "without replacement",
            ),
            "half an index": (
                update([1.0, 2.5], [0.5, 0.5], tree),
                ValueError,
                "torch.float32",
                "integers",
            ),
            "a mask": (
                update([True, False], [0.5, 0.5], tree),
                ValueError,
                "torch.bool",
                "integers",
            ),
            "a gain too few": (update([1, 2], [0.5], tree), ValueError, "(1,)", "(B,)"),
            "another sampler's state": (
                lambda tree=tree: SAMPLERS[tree].load_state_dict(
                    CaseSampler(LABELS, 7).state_dict()
                ),
                ValueError,
                "sampling_number 7",
                "this one has 6",
            ),
            "other data's state": (
                lambda tree=tree: SAMPLERS[tree].load_state_dict(
                    CaseSampler(LABELS[:50], 6).state_dict()
                ),
                ValueError,
                "n 50",
                "this one has 60",
            ),
        }.items()
    },
    # the memory of perturbations
    "a memory of nothing": (remember(n=0), ValueError, "0", "at least 1"),
    "a memory of flat images": (remember(shape=(4, 4)), ValueError, "(4, 4)", "(C, H, W)"),
    "a memory without channels": (remember(shape=(0, 4, 4)), ValueError, "0", "at least 1"),
    "a memory of epsilon 0": (remember(epsilon=0), ValueError, "0", "positive number"),
    "a memory of epsilon NaN": (remember(epsilon=NAN), ValueError, "nan", "positive number"),
    "a memory of 4 bits": (remember(bits=4), ValueError, "4", "8 or 16"),
    "to remember image n": (remembered((1, 60)), IndexError, "60", "0..59"),
    "to remember image -1": (remembered((1, -1)), IndexError, "-1", "0..59"),
    "to recall image n": (lambda: MEMORY[torch.tensor([60])], IndexError, "60", "0..59"),
    "to recall by a mask": (
        lambda: MEMORY[torch.ones(60, dtype=torch.bool)],
        ValueError,
        "torch.bool",
        "(B,) integers",
    ),
    "to remember one image twice": (remembered((1, 1)), ValueError, "twice", "one perturbation"),
    "to remember one perturbation too few": (
        remembered(perturbations=torch.zeros(1, 1, 4, 4)),
        ValueError,
        "(1, 1, 4, 4)",
        "(2, 1, 4, 4)",
    ),
    "to remember a perturbation of NaN": (
        remembered(perturbations=images(NAN, 2) - 0.5),
        ValueError,
        "nan",
        "at most 0.1",
    ),
    "to remember a perturbation beyond epsilon": (
        remembered(perturbations=images(0.75, 2) - 0.5),
        ValueError,
        "0.25",
        "at most 0.1",
    ),
    "a memory's state that lacks something": (
        memory_state(stored=None),
        ValueError,
        "stored",
        "state_dict()",
    ),
    "a memory's state of other data": (memory_state(n=50), ValueError, "50", "this one has 60"),
    "a memory's state of another epsilon": (
        memory_state(epsilon=0.2),
        ValueError,
        "0.2",
        "this one has 0.1",
    ),
    "a memory's state of floats": (
        memory_state(stored=torch.zeros(60, 1, 4, 4)),
        ValueError,
        "torch.float32",
        "torch.int8",
    ),
    "a memory's state of a half-known image": (
        memory_state(stored=torch.tensor([0, -128] * 480, dtype=torch.int8).view(60, 1, 4, 4)),
        ValueError,
        "0.100787",
        "at most 0.1",
    ),
    "a shift of -1": (lambda: CropAndFlip(-1), ValueError, "-1", "at least 0"),
    # evaluation
    "accuracy of nothing": (
        lambda: accuracy(MODEL, images()[:0], LABELS[:0]),
        ValueError,
        "no images",
        "judge",
    ),
    "robust accuracy of nothing": (
        lambda: robust_accuracy(MODEL, images()[:0], LABELS[:0], PGD()),
        ValueError,
        "no images",
        "judge",
    ),
    "accuracy, a pixel above 1": (
        lambda: accuracy(MODEL, images(1.5), LABELS[:4]),
        ValueError,
        "1.5",
        "[0, 1]",
    ),
    "accuracy, integer images": (
        lambda: accuracy(MODEL, images(dtype=torch.uint8), LABELS[:4]),
        TypeError,
        "torch.uint8",
        "[0, 1]",
    ),
    "accuracy, a label of -100": (
        lambda: accuracy(MODEL, images(), LABELS[:4] - 100),
        ValueError,
        "-100",
        "0..K-1",
    ),
    "accuracy, a label above K-1": (
        lambda: accuracy(MODEL, images(), LABELS[:4] + 3),
        ValueError,
        "label is 5",
        "0..2",
    ),
    "robust accuracy, a label above K-1": (
        lambda: robust_accuracy(MODEL, images(), LABELS[:4] + 3, lambda m, x, y: x),
        ValueError,
        "label is 5",
        "0..2",
    ),
    "accuracy in batches of 0": (
        lambda: accuracy(MODEL, *BATCH, batch_size=0),
        ValueError,
        "0",
        "at least 1",
    ),
    "robust accuracy in batches of 0": (
        lambda: robust_accuracy(MODEL, *BATCH, PGD(), batch_size=0),
        ValueError,
        "0",
        "at least 1",
    ),
    "robust accuracy crafted in another precision": (
        lambda: robust_accuracy(MODEL, *BATCH, PGD(), precision="half"),
        ValueError,
        "half",
        "float32, bfloat16",
    ),
    "robust accuracy without a seed": (
        lambda: robust_accuracy(MODEL, *BATCH, PGD(), seed=None),
        ValueError,
        "None",
        "integer",
    ),
    "check_model of nothing": (
        lambda: check_model(MODEL, images()[:0]),
        ValueError,
        "no images",
        "judge",
    ),
    "an attack that returns one image": (
        attacked(lambda m, x, y: x[:1]),
        ValueError,
        "(1, 1, 4, 4)",
        "(4, 1, 4, 4)",
    ),
    "an attack that returns NaN": (attacked(lambda m, x, y: x * NAN), ValueError, "NaN", "[0, 1]"),
    "an attack that returns doubles": (
        attacked(lambda m, x, y: x.double()),
        TypeError,
        "torch.float64",
        "the same",
    ),
    "an attack that returns nothing": (
        attacked(lambda m, x, y: None),
        TypeError,
        "NoneType",
        "tensor",
    ),
    "an attack that returns two things": (
        attacked(lambda m, x, y: (x, y)),
        TypeError,
        "tuple",
        "tensor",
    ),
    "robust accuracy, a NaN pixel": (
        lambda: robust_accuracy(MODEL, images(NAN), LABELS[:4], PGD()),
        ValueError,
        "nan",
        "[0, 1]",
    ),
    # data
    "an unknown dataset": (
        lambda: load_data("imagenet"),
        ValueError,
        "'imagenet'",
        "digits, mnist, fashion_mnist, cifar10",
    ),
    "a dataset that lies elsewhere": (
        lambda: load_data("../nowhere/x"),
        ValueError,
        "'../nowhere/x'",
        "digits, mnist, fashion_mnist, cifar10, or the path of an .npz file or of a folder",
    ),
    "a dataset without a name": (lambda: load_data(""), ValueError, "''", "the path of"),
    "data: test images of another size": (
        data(x_test=BYTES[:, :, 1:]),
        ValueError,
        "(6, 1, 7, 8)",
        "the same channels, height, width and type",
    ),
    "data: test images of other channels": (
        data(x_test=BYTES.expand(6, 3, 8, 8)),
        ValueError,
        "(6, 3, 8, 8)",
        "the same channels",
    ),
    "data: test images of another type": (
        data(x_test=BYTES / 255),
        ValueError,
        "torch.float32",
        "type",
    ),
    "data: images without channels": (
        data(x_train=BYTES[:, 0]),
        ValueError,
        "(6, 8, 8)",
        "(n, C, H, W)",
    ),
    "data: channels last": (
        data(x_train=BYTES.expand(6, 3, 8, 8).permute(0, 2, 3, 1)),
        ValueError,
        "(6, 8, 8, 3)",
        "x.permute(0, 3, 1, 2)",
    ),
    "data: no test images": (
        data(x_test=BYTES[:0], y_test=LABELS[:0]),
        ValueError,
        "(0, 1, 8, 8)",
        "at least one",
    ),
    "data: images as arrays": (data(x_train=BYTES.numpy()), TypeError, "ndarray", "from_tensors"),
    "data: integer images": (data(x_train=BYTES.long()), TypeError, "torch.int64", "uint8"),
    "data: floats up to 255": (data(x_train=BYTES.float()), ValueError, "255", "[0, 1]"),
    "data: a NaN pixel": (data(x_train=BYTES * NAN), ValueError, "nan", "[0, 1]"),
    "data: labels of uint8": (data(y_train=LABELS[:6].byte()), TypeError, "torch.uint8", "int64"),
    "data: a label too few": (data(y_train=LABELS[:5]), ValueError, "(5,)", "(6,)"),
    "data: a label of K": (data(y_test=LABELS[:6] + 1), ValueError, "3", "0..2"),
    "data: a label of -1": (data(y_train=LABELS[:6] - 1), ValueError, "-1", "0..2"),
    "data: one class": (data(classes=("a",)), ValueError, "('a',)", "at least 2"),
    "own data: test images without labels": (
        own_data(x_test=BYTES),
        ValueError,
        "x_test and y_test",
        "give both",
    ),
    "own data: labels of floats": (
        own_data(y_train=LABELS[:6] / 1),
        TypeError,
        "torch.float32",
        "integers",
    ),
    "own data: a label too few": (own_data(y_train=LABELS[:5]), ValueError, "5", "6 images"),
    "own data: a label of -1": (own_data(y_train=LABELS[:6] - 1), ValueError, "-1", "0..K-1"),
    "own data: a number as a class": (
        own_data(y_train=LABELS[:6] + 10**9),
        ValueError,
        "1000000002",
        "0..K-1",
    ),
    "own data: a class of one image": (
        own_data(y_train=torch.tensor([0, 0, 0, 1, 1, 2])),
        ValueError,
        "class 2",
        "add images",
    ),
    "own data: images of int16": (
        own_data(x_train=BYTES.short()),
        TypeError,
        "torch.int16",
        "uint8",
    ),
    "own data: too few classes": (own_data(classes=["a", "b"]), ValueError, "2", "0..1"),
    "own data: items without labels": (
        lambda: Data.from_dataset([BYTES[0], BYTES[1]]),
        TypeError,
        "Tensor",
        "a pair of an image and a label",
    ),
    "own data: images of two sizes": (
        lambda: Data.from_dataset([(BYTES[0], 0), (BYTES[1, :, 1:], 1)]),
        ValueError,
        "(1, 7, 8)",
        "one shape",
    ),
    "own data: a label between two": (
        lambda: Data.from_dataset([(BYTES[0], 0), (BYTES[1], 0.9)]),
        TypeError,
        "0.9",
        "item 1 of train",
    ),
    "own data: a label for each class": (
        lambda: Data.from_dataset([(BYTES[0], torch.tensor([0, 1]))]),
        TypeError,
        "[0, 1]",
        "integers",
    ),
    "own data: no items": (lambda: Data.from_dataset([]), ValueError, "no items", "train"),
    "own data: no length": (
        lambda: Data.from_dataset(iter([])),
        TypeError,
        "list_iterator",
        "a length",
    ),
    "a cnn for small images": (
        lambda: build_model("cnn", data(x_train=BYTES[..., :3], x_test=BYTES[..., :3])()),
        ValueError,
        "8 x 3",
        "4 x 4",
    ),
    "an unknown model": (lambda: build_model("vgg", DIGITS), ValueError, "'vgg'", "cnn, resnet18"),
    "a width of 4": (
        lambda: build_model("resnet18", DIGITS, width=4),
        ValueError,
        "width is 4",
        "integer of at least 8",
    ),
    "half a width": (
        lambda: build_model("resnet18", DIGITS, width=16.5),
        ValueError,
        "16.5",
        "integer of at least 8",
    ),
    "a width of a cnn": (
        lambda: build_model("cnn", DIGITS, width=16),
        ValueError,
        "'cnn'",
        "only resnet18",
    ),
    "a width of a model of one's own": (
        lambda: build_model("my_models:small", DIGITS, width=16),
        ValueError,
        "16",
        "only resnet18",
    ),
    "a trial with the width of a cnn": (
        lambda: Trial(model="cnn", width=16),
        ValueError,
        "'cnn'",
        "only resnet18",
    ),
    "a trial with a width of 0": (
        lambda: Trial(model="resnet18", width=0),
        ValueError,
        "0",
        "at least 8",
    ),
    # training
    "a sampler that cannot learn": (
        training(sampler=[[1, 2]]),
        TypeError,
        "list",
        "update(indices, gain)",
    ),
    "a sampler of other data": (
        training(sampler=UniformSampler(LABELS, 6)),
        ValueError,
        "60",
        "1437",
    ),
    "an unknown precision": (
        training(precision="fp8"),
        ValueError,
        "'fp8'",
        "auto, float32, bfloat16",
    ),
    "nothing to judge by": (
        training(attack=lambda m, x, y: x, evaluate_every=5),
        ValueError,
        "None",
        "required when attack is not a PGD",
    ),
    "an attack that changes the shape": (
        lambda: next(training(attack=lambda m, x, y: x[:, :, 1:])()),
        ValueError,
        "(128, 1, 7, 8)",
        "(128, 1, 8, 8)",
    ),
    "a loss without logits": (
        lambda: next(training(loss=lambda m, x, a, y: m(a).sum())()),
        TypeError,
        "a Tensor",
        "(loss, adversarial_logits)",
    ),
    "a loss of three things": (
        lambda: next(training(loss=lambda m, x, a, y: (m(a).sum(), m(a), y))()),
        TypeError,
        "tuple of 3",
        "(loss, adversarial_logits)",
    ),
    "a loss for each example": (
        lambda: next(training(loss=lambda m, x, a, y: (m(a).sum(1), m(a)))()),
        TypeError,
        "(128,)",
        "a scalar",
    ),
    "a loss that is a number": (
        lambda: next(training(loss=lambda m, x, a, y: (0.5, m(a)))()),
        TypeError,
        "0.5",
        "a scalar",
    ),
    "a loss that is detached": (
        lambda: next(training(loss=lambda m, x, a, y: (m(a).sum().detach() * 0 + 2, m(a)))()),
        ValueError,
        "2",
        "without detach()",
    ),
    "a loss with logits of other images": (
        lambda: next(training(loss=lambda m, x, a, y: (m(a).sum(), m(a)[:5]))()),
        ValueError,
        "(5, 10)",
        "(B, K)",
    ),
    "a trial with an unknown loss": (
        lambda: Trial(loss="hinge"),
        ValueError,
        "'hinge'",
        "cross-entropy, trades, mart",
    ),
    "a trial with a negative beta": (
        lambda: Trial(loss="trades", beta=-1.0),
        ValueError,
        "-1.0",
        "at least 0",
    ),
    "a trial with a beta of NaN": (
        lambda: Trial(loss="mart", beta=NAN),
        ValueError,
        "nan",
        "finite number",
    ),
    "the attack of TRADES in l2": (
        lambda: Trial(crafting="kl", norm="l2"),
        ValueError,
        "'l2'",
        "'linf'",
    ),
    "the attack of TRADES with restarts": (
        lambda: Trial(crafting="kl", restarts=3),
        ValueError,
        "3",
        "which has 1 only",
    ),
    "n-fgsm in l2": (lambda: Trial(crafting="n-fgsm", norm="l2"), ValueError, "'l2'", "'linf'"),
    "free training in l2": (lambda: Trial(crafting="free", norm="l2"), ValueError, "'l2'", "linf"),
    "free training with restarts": (
        lambda: Trial(crafting="free", restarts=2),
        ValueError,
        "2",
        "which has 1 only",
    ),
    "n-fgsm by the raw gradient": (
        lambda: Trial(crafting="n-fgsm", rule="gradient"),
        ValueError,
        "'gradient'",
        "'sign'",
    ),
    "the mean's gradient with batch norm in training mode": (
        lambda: Trial(crafting="batch mean", batch_norm="train"),
        ValueError,
        "'train'",
        "'eval'",
    ),
    "the mean's gradient with a step size": (
        lambda: Trial(crafting="batch mean", step_size=0.1),
        ValueError,
        "0.1",
        "Leave step_size out",
    ),
    "a judge by the mean's gradient in l2": (
        lambda: Trial(evaluation_rule="batch mean", norm="l2"),
        ValueError,
        "'l2'",
        "'linf' only",
    ),
    "to change what is no live setting": (
        lambda: BackgroundTraining(Trial()).set(learning_rate=0.1),
        ValueError,
        "learning_rate",
        "alpha, epsilon, steps, sampling_number, dataset, device",
    ),
    "a subset of another name": (
        lambda: subset(LABELS, 4, "frist"),
        ValueError,
        "'frist'",
        "first, spread",
    ),
    "an information gain of NumPy's labels": (
        lambda: information_gain(torch.zeros(2, 3), np.zeros(2, int)),
        TypeError,
        "ndarray",
        "a tensor",
    ),
    "own data: a DataLoader": (
        lambda: Data.from_dataset(torch.utils.data.DataLoader([(BYTES[0], 0)])),
        TypeError,
        "DataLoader",
        ".dataset",
    ),
    "an augmentation whose moves have no way back": (
        lambda: next(
            training(
                memory=PerturbationMemory(1437, (1, 8, 8), 0.1), augment=Away(), attack=PGD(0.1)
            )()
        ),
        TypeError,
        "function",
        "inverse()",
    ),
    "a device of another name": (training(device="foo"), ValueError, "'foo'", "'cpu'"),
    "a model that is a function": (
        lambda: Training(lambda x: x, DIGITS, UniformSampler(DIGITS.y_train), PGD(0.1)),
        TypeError,
        "function",
        "torch.nn.Module",
    ),
    "an attack on a function": (
        lambda: pgd(lambda x: x.flatten(1), images(), LABELS[:4], epsilon=0.1, steps=1),
        TypeError,
        "function",
        "torch.nn.Module",
    ),
    "a model with too few classes": (
        lambda: next(
            Training(
                TWO_CLASSES,
                DIGITS,
                UniformSampler(DIGITS.y_train),
                PGD(0.1),
                device="cpu",
            )
        ),
        ValueError,
        "9",
        "0..1",
    ),
    "an augmentation that normalises": (
        lambda: next(training(augment=lambda x, g: (x - 0.5) / 0.25)()),
        ValueError,
        "-2",
        "normalise inside the model",
    ),
    "an augmentation that crops": (
        lambda: next(training(augment=lambda x, g: x[..., 1:])()),
        TypeError,
        "augment returned torch.float32",
        "must return",
    ),
    "an attack that leaves [0, 1], in training": (
        lambda: next(training(attack=lambda m, x, y: x + 1, evaluation_attack=PGD(0.1))()),
        ValueError,
        "clamp(0, 1)",
        "must lie in [0, 1]",
    ),
    "an attack that leaves [0, 1], in an evaluation": (
        lambda: robust_accuracy(MODEL, images(), LABELS[:4], lambda m, x, y: x - 1),
        ValueError,
        "clamp(0, 1)",
        "must lie in [0, 1]",
    ),
    "log weights of NumPy": (
        lambda: CaseSampler(LABELS, 6, log_weight=lambda w: w.numpy()).draw(),
        TypeError,
        "ndarray",
        "a tensor (n,)",
    ),
    "labels from 1 on": (
        lambda: Data.from_tensors(BYTES, torch.arange(len(BYTES)) % 3 + 1),
        ValueError,
        "from 1 to 3",
        "labels - 1",
    ),
    "own data: an array with channels first": (
        lambda: Data.from_dataset([(np.zeros((3, 8, 8), np.uint8), 0)]),
        ValueError,
        "(3, 8, 8)",
        "torch.from_numpy",
    ),
    "an optimizer of another model": (
        training(optimizer=torch.optim.SGD(MODEL.parameters(), 0.1)),
        ValueError,
        "4 of the optimizer's 4 parameters",
        "model.parameters()",
    ),
    "a scheduler of another optimizer": (
        training(scheduler=torch.optim.lr_scheduler.StepLR(torch.optim.SGD([WEIGHT], 0.1), 2)),
        ValueError,
        "another optimizer",
        "is given",
    ),
    "a scheduler that wants a metric": (
        training(
            scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([WEIGHT], 0.1))
        ),
        TypeError,
        "ReduceLROnPlateau",
        "steps without arguments",
    ),
    "an optimizer that wants a closure": (
        training(optimizer=torch.optim.LBFGS([WEIGHT])),
        TypeError,
        "LBFGS",
        "steps without",
    ),
    "a memory that is none": (training(memory=True), TypeError, "bool", "a PerturbationMemory"),
    "a memory of other images": (
        training(memory=MEMORY),
        ValueError,
        "(1, 4, 4)",
        "1437 training images (1, 8, 8)",
    ),
    "a memory that is too narrow": (
        training(memory=PerturbationMemory(1437, (1, 8, 8), 0.05)),
        ValueError,
        "0.05",
        "largest epsilon",
    ),
    "a memory for another attack": (
        training(
            memory=PerturbationMemory(1437, (1, 8, 8), 0.1),
            attack=NFGSM(0.1),
        ),
        TypeError,
        "NFGSM",
        "must be a PGD",
    ),
    "a memory and an augmentation that is not undone": (
        training(memory=PerturbationMemory(1437, (1, 8, 8), 0.1), augment=crop_and_flip),
        TypeError,
        "crop_and_flip",
        "CropAndFlip(padding)",
    ),
    "a memory for free training": (
        lambda: FreeTraining(
            build_model("cnn", DIGITS),
            DIGITS,
            UniformSampler(DIGITS.y_train),
            PGD(0.1),
            memory=PerturbationMemory(1437, (1, 8, 8), 0.1),
        ),
        ValueError,
        "memory is given",
        "Use memory=None",
    ),
    "a budget without weights": (
        training(budget=steps_near_boundary),
        TypeError,
        "UniformSampler",
        "CaseSampler(temperature=1e12",
    ),
    "a budget for another attack": (
        training(
            budget=steps_near_boundary, sampler=CaseSampler(DIGITS.y_train), attack=NFGSM(0.1)
        ),
        TypeError,
        "NFGSM",
        "only a PGD",
    ),
    "a budget and a graph": (
        training(budget=steps_near_boundary, sampler=CaseSampler(DIGITS.y_train), compile=True),
        ValueError,
        "compile=True",
        "use compile=False",
    ),
    "no seed of a training": (training(seed=None), ValueError, "None", "integer of at least 0"),
    "unknown ranks": (training(ranks="both"), ValueError, "both", "auto, alone"),
    "a negative seed": (training(seed=-1), ValueError, "-1", "integer of at least 0"),
    "negative iterations": (training(iterations=-3), ValueError, "-3", "at least 0"),
    "iterations as a float": (training(iterations=1e3), ValueError, "1000.0", "an integer"),
    "a negative evaluate_every": (training(evaluate_every=-5), ValueError, "-5", "at least 0"),
    "recalibrated by nothing": (
        lambda: recalibrated(MODEL, images()[:0]),
        ValueError,
        "no images",
        "judge",
    ),
    "recalibrated by a pixel above 1": (
        lambda: recalibrated(MODEL, images(1.5)),
        ValueError,
        "1.5",
        "[0, 1]",
    ),
    "recalibrated in batches of 0": (
        lambda: recalibrated(MODEL, images(), batch_size=0),
        ValueError,
        "0",
        "at least 1",
    ),
    "recalibrated by -1 images": (training(recalibrate=-1), ValueError, "-1", "at least 0"),
    "an unknown subset": (
        training(evaluation_subset="last"),
        ValueError,
        "'last'",
        "first, spread",
    ),
    "first evaluations without others": (
        training(evaluate_first=5),
        ValueError,
        "5",
        "an evaluate_every of at least 1",
    ),
    "a trial with first evaluations alone": (
        lambda: Trial(evaluate_first=5, evaluate_every=0),
        ValueError,
        "5",
        "an evaluate_every of at least 1",
    ),
    "an audit without a judgement at the end": (
        lambda: Trial(audit_epsilon=0.3),
        ValueError,
        "0.3",
        "final_restarts of at least 1",
    ),
    "an epsilon of 8 for 8/255": (
        lambda: Trial(epsilon=8),
        ValueError,
        "epsilon is 8;",
        "Did you mean 8/255?",
    ),
    "an evaluation's epsilon of 8 for 8/255": (
        lambda: Trial(evaluation_epsilon=8.0),
        ValueError,
        "evaluation_epsilon is 8;",
        "below 1",
    ),
    "an audit at a negative epsilon": (
        lambda: Trial(audit_epsilon=-0.3, final_restarts=1),
        ValueError,
        "-0.3",
        "at least 0",
    ),
    "a trial with an unknown subset": (
        lambda: Trial(evaluation_subset="random"),
        ValueError,
        "'random'",
        "first, spread",
    ),
    "a trial that recalibrates by -5 images": (
        lambda: Trial(recalibrate=-5),
        ValueError,
        "-5",
        "at least 0",
    ),
    "an evaluation of nothing": (training(evaluation_size=0), ValueError, "0", "at least 1"),
    "a state of other data": (
        lambda: training()().load_state_dict(
            training()().state_dict() | {"seen": torch.zeros(5, dtype=torch.bool)}
        ),
        ValueError,
        "5 training images",
        "1437",
    ),
    "a state that is none": (
        lambda: training()().load_state_dict({"seen": torch.zeros(5)}),
        ValueError,
        "lacks made_of, model",
        "state_dict()",
    ),
}


@pytest.mark.parametrize("what", TABLE)
def test_bad_input(what, snapshot, global_rng_untouched):
    call, error, seen, allowed = TABLE[what]
    before = (
        snapshot(MODEL),
        MEMORY.state_dict()["stored"].tolist(),
        {tree: str(s.state_dict()) for tree, s in SAMPLERS.items()},
        {t: s.weights.tolist() for t, s in SAMPLERS.items()},
    )
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.search(rf"(?<![\w.]){re.escape(seen)}(?!\w)", message), (
        f"{seen!r} is not in: {message}"
    )
    assert allowed in message, f"{allowed!r} is not in: {message}"
    after = (
        snapshot(MODEL),
        MEMORY.state_dict()["stored"].tolist(),
        {tree: str(s.state_dict()) for tree, s in SAMPLERS.items()},
        {t: s.weights.tolist() for t, s in SAMPLERS.items()},
    )
    assert after == before


def test_what_is_good_after_all():
    """The edges of the ranges are inside."""
    (
        attack(images(0.0))(),
        attack(images(1.0))(),
        attack(epsilon=0)(),
        attack(steps=0)(),
        attack(step_size=0)(),
    )
    (
        case(sampling_number=60)(),
        case(sampling_number=1)(),
        case(alpha=0)(),
        case(alpha=1)(),
        case(temperature=1e-9)(),
    )
    assert pgd(MODEL, images()[:0], LABELS[:0], epsilon=0.1, steps=2).shape == (0, 1, 4, 4)
    assert information_gain(torch.zeros(0, 3), LABELS[:0]).shape == (0,)

# ruff: noqa: E501 - a row of the table is a line
"""One table of bad input: each raises an error that names the value seen and the range allowed, and changes nothing."""

import re

import pytest
import torch
from torch import nn

from catlib import (
    PGD,
    CaseSampler,
    Training,
    UniformSampler,
    accuracy,
    build_model,
    information_gain,
    load_data,
    pgd,
    robust_accuracy,
    smooth,
)

NAN, INF = float("nan"), float("inf")
LABELS = torch.arange(60) % 3
MODEL = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).train()
DIGITS = load_data("digits")
WEIGHT = nn.Parameter(torch.zeros(2))


def images(value=0.5, n=4, dtype=torch.float32):
    x = torch.full((n, 1, 4, 4), 0.5)
    x[-1, 0, 2, 3] = value
    return x.to(dtype)


def attack(x=None, y=None, **options):
    """An attack on four good images, but for what is said."""
    x, y = images() if x is None else x, torch.tensor([0, 1, 2, 0]) if y is None else y
    return lambda: pgd(MODEL, x, y, **({"epsilon": 0.1, "steps": 2} | options))


def labels(*values):
    return attack(y=torch.tensor(values))


def case(**options):
    return lambda: CaseSampler(**({"labels": LABELS, "sampling_number": 6} | options))


def update(indices, gain, tree):
    sampler = SAMPLERS[tree]
    return lambda: sampler.update(torch.tensor(indices), torch.tensor(gain))


def training(**options):
    model = build_model("cnn", DIGITS)
    good = {"sampler": UniformSampler(DIGITS.y_train), "attack": PGD(0.1), "device": "cpu"}
    return lambda: Training(model, DIGITS, **(good | options))


def set_attribute(tree, name, value):
    return lambda: setattr(SAMPLERS[tree], name, value)


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
    "images as arrays": (attack(images().numpy()), TypeError, "ndarray", "tensors"),
    "one image without batch": (attack(images()[0]), ValueError, "(1, 4, 4)", "(B, C, H, W)"),
    "a NaN pixel, early stop": (attack(images(NAN), early_stop=True), ValueError, "nan", "[0, 1]"),
    # labels
    "a label of -100": (labels(0, 1, -100, 0), ValueError, "-100", "0..K-1"),
    "a label of -1": (labels(0, 1, -1, 0), ValueError, "-1", "0..K-1"),
    "a label of K": (labels(0, 1, 3, 0), ValueError, "labels up to 3", "0..K-1"),
    "a label of K, early stop": (
        attack(y=torch.tensor([0, 1, 3, 0]), early_stop=True),
        ValueError,
        "labels up to 3",
        "0..K-1",
    ),
    "float labels": (labels(0.0, 1.0, 2.0, 0.0), TypeError, "torch.float32", "integers in 0..K-1"),
    "boolean labels": (labels(True, False, True, True), TypeError, "torch.bool", "integers"),
    "a label too few": (labels(0, 1, 2), ValueError, "(3,)", "(B,)"),
    "one-hot labels": (attack(y=torch.eye(4, dtype=torch.long)), ValueError, "(4, 4)", "(B,)"),
    # the model
    "a model of one number": (
        lambda: pgd(nn.Flatten(0), images(), LABELS[:4], epsilon=0.1, steps=1),
        ValueError,
        "(64,)",
        "(B, K)",
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
            "an index of n": (update([1, 60], [0.5, 0.5], tree), IndexError, "60", "0..59"),
            "an index of -1": (update([1, -1], [0.5, 0.5], tree), IndexError, "-1", "0..59"),
            "an index twice": (
                update([1, 1], [0.5, 0.5], tree),
                ValueError,
                "twice",
                "without replacement",
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
    "robust accuracy, a NaN pixel": (
        lambda: robust_accuracy(MODEL, images(NAN), LABELS[:4], PGD()),
        ValueError,
        "nan",
        "[0, 1]",
    ),
    # names
    "an unknown dataset": (
        lambda: load_data("imagenet"),
        ValueError,
        "'imagenet'",
        "digits, mnist, fashion_mnist, cifar10",
    ),
    "an unknown model": (lambda: build_model("vgg", DIGITS), ValueError, "'vgg'", "cnn, resnet18"),
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
        "say how",
    ),
    "an attack that changes the shape": (
        lambda: next(training(attack=lambda m, x, y: x[:, :, 1:])()),
        ValueError,
        "(128, 1, 7, 8)",
        "(128, 1, 8, 8)",
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
    "no seed": (training(seed=None), ValueError, "None", "integer of at least 0"),
    "a negative seed": (training(seed=-1), ValueError, "-1", "integer of at least 0"),
    "negative iterations": (training(iterations=-3), ValueError, "-3", "at least 0"),
    "iterations as a float": (training(iterations=1e3), ValueError, "1000.0", "an integer"),
    "a negative evaluate_every": (training(evaluate_every=-5), ValueError, "-5", "at least 0"),
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

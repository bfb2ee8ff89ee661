"""Eq. 2 against another library, closed forms in float64, plain loops, and properties."""

import copy
import gc
import math
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from catlib import PGD, pgd
from catlib.modes import attack_mode


def batch(n=8, channels=1, size=8, classes=10, dtype=torch.float32, device="cpu", seed=0):
    """Images in [0, 1], some of their pixels on the border, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = (
        torch.rand(n, channels, size, size, generator=generator, dtype=dtype)
        .mul_(1.2)
        .sub_(0.1)
        .clamp_(0, 1)
    )
    return images.to(device), torch.randint(classes, (n,), generator=generator).to(device)


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def count_images(model):
    """Images that go forward through the model, as a list of batch sizes."""
    sizes = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


class Linear(nn.Module):
    """Two classes, so that the gradient always points along w_1 - w_0."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)  # (pixels,)

    def forward(self, x):
        margin = x.flatten(1) @ self.w
        return torch.stack([margin, torch.zeros_like(margin)], 1)


# an independent library


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("random_start", [True, False])
def test_equals_torchattacks_linf(conv_net, dtype, random_start, device):
    torchattacks = pytest.importorskip("torchattacks")
    model = conv_net(3).eval().to(device, dtype)
    images, labels = batch(
        16, 3, dtype=dtype, device=device
    )  # 16: the mean of their loss divides gradients exactly
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = torchattacks.PGD(model, eps=0.1, alpha=0.02, steps=10, random_start=random_start)(
            images, labels
        )
    ours = pgd(
        model,
        images,
        labels,
        epsilon=0.1,
        step_size=0.02,
        steps=10,
        random_start=random_start,
        generator=seeded(5, device),
    )
    assert (ours - images).abs().max() > 0.09
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_equals_torchattacks_l2(conv_net):
    torchattacks = pytest.importorskip("torchattacks")
    model = conv_net(3).eval().double()
    images, labels = batch(16, 3, dtype=torch.float64)
    theirs = torchattacks.PGDL2(model, eps=0.8, alpha=0.3, steps=10, random_start=False)(
        images, labels
    )
    ours = pgd(
        model, images, labels, epsilon=0.8, step_size=0.3, steps=10, norm="l2", random_start=False
    )
    assert (ours - images).flatten(1).norm(dim=1).max() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


# closed forms


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_closed_form_linf_sign(steps):
    """On a linear model every step is the same, so that m of them and one clamp are Eq. 2."""
    images, labels = batch(6, 2, dtype=torch.float64)
    labels = labels % 2
    w = torch.randn(2 * 8 * 8, dtype=torch.float64, generator=seeded(1))
    ours = pgd(
        Linear(w), images, labels, epsilon=0.1, step_size=0.03, steps=steps, random_start=False
    )
    direction = torch.sign(w).view(2, 8, 8) * (2 * labels - 1).view(-1, 1, 1, 1)
    expected = (images + min(0.03 * steps, 0.1) * direction).clamp(0, 1)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_closed_form_l2_sign(steps):
    images, labels = batch(6, 2, dtype=torch.float64)
    images, labels = images * 0.5 + 0.25, labels % 2  # the border is out of reach
    w = torch.randn(2 * 8 * 8, dtype=torch.float64, generator=seeded(1))
    ours = pgd(
        Linear(w),
        images,
        labels,
        epsilon=0.2,
        step_size=0.03,
        steps=steps,
        norm="l2",
        random_start=False,
    )
    direction = (w / w.norm()).view(2, 8, 8) * (2 * labels - 1).view(-1, 1, 1, 1)
    torch.testing.assert_close(ours, images + min(0.03 * steps, 0.2) * direction, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm, epsilon", [("linf", 10.0), ("l2", 10.0), ("l2", 0.05)])
def test_eq2_as_printed(norm, epsilon):
    """On a linear model, delta + raw gradient is a recursion in one number t.

    delta = t d, with d = w_other - w_y. There is no step size: whatever is given must not matter.
    Another example in the batch must not matter either.
    """
    images, labels = batch(6, 1, dtype=torch.float64)
    images, labels = images * 0.2 + 0.4, labels % 2
    w = 0.02 * torch.randn(64, dtype=torch.float64, generator=seeded(2))
    attack = PGD(epsilon, step_size=123.0, steps=7, rule="gradient", norm=norm, random_start=False)
    ours = attack(Linear(w), images, labels)
    for x, y, result in zip(images.flatten(1), labels.tolist(), ours.flatten(1), strict=True):
        d = w if y == 1 else -w
        margin, square, t = float(x @ d), float(d @ d), 0.0
        for _ in range(7):
            t += 1 / (1 + math.exp(-(margin + t * square)))  # softmax minus one-hot, along d
            if norm == "l2":
                t = min(t, epsilon / math.sqrt(square))
        assert float((x + t * d).min()) > 0 and float((x + t * d).max()) < 1
        torch.testing.assert_close(result, x + t * d, atol=1e-6 if epsilon < 1 else 1e-12, rtol=0)


def test_eq2_as_printed_is_projected_onto_the_cube():
    images, labels = batch(4, dtype=torch.float64)
    w = 40 * torch.randn(64, dtype=torch.float64, generator=seeded(2))
    ours = pgd(
        Linear(w), images, labels % 2, epsilon=0.1, steps=1, rule="gradient", random_start=False
    )
    d = w * (2 * (labels % 2) - 1).view(-1, 1)
    slope = torch.sigmoid((images.flatten(1) * d).sum(1, keepdim=True)) * d
    expected = (images + slope.view_as(images).clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


# properties


@given(
    norm=st.sampled_from(["linf", "l2"]),
    rule=st.sampled_from(["sign", "gradient"]),
    n=st.integers(0, 4),
    channels=st.integers(1, 3),
    size=st.integers(5, 7),  # torch refuses batch statistics of a single value
    epsilon=st.one_of(st.just(0.0), st.floats(1e-6, 3)),
    steps=st.integers(0, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    scale=st.sampled_from([1e-30, 1.0, 1e4]),
    start=st.sampled_from([(True, 3), (True, 1), (False, 1)]),
    early_stop=st.booleans(),
    batch_norm=st.sampled_from(["eval", "train"]),
    seed=st.integers(0, 99),
)
@example(
    norm="l2",
    rule="gradient",
    n=3,
    channels=1,
    size=5,
    epsilon=8 / 255,
    steps=3,
    dtype=torch.float32,
    scale=1e4,
    start=(True, 3),
    early_stop=False,
    batch_norm="eval",
    seed=0,
)
def test_never_leaves_the_ball_or_the_pixel_range(
    conv_net,
    norm,
    rule,
    n,
    channels,
    size,
    epsilon,
    steps,
    dtype,
    scale,
    start,
    early_stop,
    batch_norm,
    seed,
):
    model = conv_net(channels).to(dtype)
    with torch.no_grad():
        model.head.weight *= scale
    images, labels = batch(n, channels, size, dtype=dtype, seed=seed)
    before = images.clone()
    adversarial = pgd(
        model,
        images,
        labels,
        epsilon=epsilon,
        steps=steps,
        restarts=start[1],
        random_start=start[0],
        rule=rule,
        norm=norm,
        batch_norm=batch_norm,
        early_stop=early_stop,
        batch_size=5,
        generator=seeded(seed),
    )
    assert (
        adversarial.shape == images.shape
        and adversarial.dtype == dtype
        and not adversarial.requires_grad
    )
    assert adversarial.isfinite().all() and torch.equal(images, before)
    assert ((adversarial >= 0) & (adversarial <= 1)).all()
    delta = (adversarial.double() - images.double()).flatten(1)
    assert (delta.norm(dim=1, p=math.inf if norm == "linf" else 2) <= epsilon + 1e-6).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", ["sign", "gradient"])
def test_an_example_does_not_depend_on_the_rest_of_its_batch(conv_net, norm, rule):
    model = conv_net().eval().double()
    images, labels = batch(5, dtype=torch.float64)
    attack = PGD(0.2, steps=4, norm=norm, rule=rule, random_start=False)
    alone = torch.cat(
        [attack(model, x, y) for x, y in zip(images.split(1), labels.split(1), strict=True)]
    )
    torch.testing.assert_close(attack(model, images, labels), alone, atol=1e-9, rtol=0)


def test_the_start_is_uniform_in_the_ball():
    """Kolmogorov-Smirnov: four tests at 1e-4 with fixed seeds, so one false-alarm rate of 4e-4."""
    stats = pytest.importorskip("scipy.stats")
    images, labels = (
        torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64),
        torch.zeros(4000, dtype=torch.long),
    )
    linf, l2 = (
        PGD(0.3, steps=0, norm=norm)(
            Linear(torch.ones(4).double()), images, labels, generator=seeded(7)
        )
        - images
        for norm in ("linf", "l2")
    )
    assert stats.kstest(linf.flatten(), stats.uniform(-0.3, 0.6).cdf).pvalue > 1e-4
    assert stats.kstest(l2.flatten(1).norm(dim=1), stats.uniform(0, 0.3).cdf).pvalue > 1e-4
    # a coordinate of a uniform direction in four dimensions: (c + 1) / 2 is Beta(3/2, 3/2)
    direction = (F.normalize(l2.flatten(1), dim=1) + 1) / 2
    for pixel in (0, 3):
        assert stats.kstest(direction[:, pixel], stats.beta(1.5, 1.5).cdf).pvalue > 1e-4


# a start that is given


def in_the_ball(images, start, epsilon, norm):
    """Images plus a start, image by image: onto the ball first, then into [0, 1]."""
    moved = []
    for x, delta in zip(images, start, strict=True):
        if norm == "l2":
            delta = delta * min(1.0, epsilon / max(float(delta.norm()), 1e-300))
        else:
            delta = delta.clamp(-epsilon, epsilon)
        moved.append((x + delta).clamp(0, 1))
    return torch.stack(moved)


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [0.05, 0.5, 1e10])
def test_a_start_is_brought_into_the_ball(conv_net, norm, scale, early_stop):
    model = conv_net().eval().double()
    images, labels = batch(6, dtype=torch.float64)
    with torch.no_grad():
        labels = model(images).argmax(1)  # an early stop would keep an image it need not attack
    start = scale * torch.randn(images.shape, dtype=torch.float64, generator=seeded(1))
    before = start.clone()
    attack = PGD(0.2, steps=0, norm=norm, early_stop=early_stop)
    begun = attack(model, images, labels, start=start)
    expected = in_the_ball(images, start, 0.2, norm)
    torch.testing.assert_close(begun, expected, atol=1e-6, rtol=0)
    assert torch.equal(start, before)


@pytest.mark.parametrize("options", [{}, {"early_stop": True}, {"norm": "l2"}], ids=str)
def test_an_attack_goes_on_from_where_it_ended(classifier, digits, options):
    """Two steps and three from there are five steps, in float64."""
    model = copy.deepcopy(classifier).double()
    images, labels = (x[:40] for x in digits.test())
    images = images.double()
    attack = PGD(0.1, 0.02, norm=options.get("norm", "linf"), random_start=False)
    if "early_stop" in options:
        attack = replace(attack, early_stop=True)
    first = replace(attack, steps=2)(model, images, labels)
    ours = replace(attack, steps=3)(model, images, labels, start=first - images)
    whole = replace(attack, steps=5)(model, images, labels)
    torch.testing.assert_close(ours, whole, atol=1e-6, rtol=0)
    from_the_image = replace(attack, steps=3)(model, images, labels)
    assert "early_stop" in options or (ours - from_the_image).abs().max() > 0.01


@pytest.mark.parametrize("batch_size", [1, 20, 512])
def test_the_first_restart_begins_at_the_start(conv_net, batch_size):
    """The others begin at random: the worst of one attack from there and of random ones."""
    model = conv_net().eval().double()
    images, labels = batch(8, dtype=torch.float64)
    start = torch.empty_like(images).uniform_(-0.1, 0.1, generator=seeded(9))
    attack = PGD(0.1, steps=2, restarts=4, batch_size=batch_size)
    ours = attack(model, images, labels, start=start, generator=seeded(3))
    alone = replace(attack, restarts=1)
    generator = seeded(3)
    singles = [alone(model, images, labels, start=start, generator=generator)]
    for _ in range(3):
        singles.append(alone(model, images, labels, generator=generator))
    with torch.no_grad():
        losses = torch.stack([F.cross_entropy(model(x), labels, reduction="none") for x in singles])
    worst = losses.argmax(0)
    assert (worst == 0).any() and (worst > 0).any()
    for image, single in enumerate(worst):
        torch.testing.assert_close(ours[image], singles[single][image], atol=1e-9, rtol=0)


def test_a_start_of_zero_is_no_random_start(conv_net):
    """With or without random_start; it may be of another precision than the images."""
    model, (images, labels) = conv_net().eval(), batch()
    plain = pgd(model, images, labels, epsilon=0.1, steps=3, random_start=False)
    zeros = torch.zeros_like(images, dtype=torch.float16)
    for random_start in (True, False):
        begun = pgd(
            model, images, labels, epsilon=0.1, steps=3, start=zeros, random_start=random_start
        )
        assert torch.equal(begun, plain)


@pytest.mark.slow
def test_a_compiled_attack_begins_at_the_start(classifier, digits):
    images, labels = digits.test(slice(16))
    start = torch.empty_like(images).uniform_(-0.1, 0.1, generator=seeded(9))
    attack = PGD(0.1, steps=2)
    plain = attack(classifier, images, labels, start=start)
    fast = replace(attack, compile=True)(classifier, images, labels, start=start)
    assert (plain - fast).abs().gt(1e-5).double().mean() < 0.01  # a sign may turn by rounding


# steps of each image


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", ["sign", "gradient"])
def test_each_image_gets_its_steps(conv_net, norm, rule):
    """The result is that of an attack on each image alone, with that many steps."""
    model = conv_net().eval().double()
    images, labels = batch(9, dtype=torch.float64)
    start = torch.empty_like(images).uniform_(-0.1, 0.1, generator=seeded(9))
    steps = torch.tensor([0, 3, 1, 1, 0, 2, 5, 3, 1])
    attack = PGD(0.1, 0.03, norm=norm, rule=rule)
    ours = attack(model, images, labels, start=start, steps=steps)
    for place, number in enumerate(steps.tolist()):
        one = slice(place, place + 1)
        alone = replace(attack, steps=number)
        expected = alone(model, images[one], labels[one], start=start[one])
        torch.testing.assert_close(ours[one], expected, atol=1e-9, rtol=0)


def test_steps_that_are_saved_are_not_passed(conv_net):
    """Only images with steps left go through the model: 9 images, 16 steps, in 5 batches."""
    model, (images, labels) = conv_net(), batch(9)
    sizes = count_images(model)
    attack = PGD(0.1)
    attack(model, images, labels, steps=torch.tensor([0, 3, 1, 1, 0, 2, 5, 3, 1]))
    assert sizes == [7, 4, 3, 1, 1]
    sizes.clear()
    assert torch.equal(
        replace(attack, random_start=False)(model, images, labels, steps=torch.zeros(9).long()),
        images,
    )
    assert sizes == []
    attack(model, images[:0], labels[:0], steps=torch.zeros(0, dtype=torch.long))


def test_equal_steps_for_each_are_steps_for_all(conv_net):
    """Bit for bit, with restarts too: the random starts are the same."""
    model, (images, labels) = conv_net(), batch(6)
    for restarts in (1, 3):
        attack = PGD(0.1, 0.03, steps=4, restarts=restarts)
        each = torch.full((6,), 4)
        ours = attack(model, images, labels, steps=each, generator=seeded(2))
        assert torch.equal(ours, attack(model, images, labels, generator=seeded(2)))


# restarts


@pytest.mark.parametrize("batch_size", [1, 8, 20, 512])
def test_restarts_keep_the_worst(conv_net, batch_size):
    """The result is the worst of single attacks from the same generator, whatever shares a pass."""
    model = conv_net().eval().double()
    images, labels = batch(8, dtype=torch.float64)
    attack = PGD(0.1, steps=3, restarts=5, batch_size=batch_size)
    ours = attack(model, images, labels, generator=seeded(3))
    generator, singles = seeded(3), []
    for _ in range(5):
        singles.append(replace(attack, restarts=1)(model, images, labels, generator=generator))
    with torch.no_grad():
        losses = torch.stack([F.cross_entropy(model(x), labels, reduction="none") for x in singles])
    assert len(losses.argmax(0).unique()) > 1
    for i, best in enumerate(losses.argmax(0)):
        torch.testing.assert_close(ours[i], singles[best][i], atol=1e-9, rtol=0)


def test_passes_without_early_stop_are_the_steps(classifier, digits):
    images, labels = digits.test(slice(8))
    model = copy.deepcopy(classifier)
    sizes = count_images(model)
    pgd(model, images, labels, epsilon=0.1, steps=7)
    assert sizes == [8] * 7
    sizes.clear()
    pgd(
        model, images, labels, epsilon=0.1, steps=7, restarts=6, batch_size=20
    )  # 2 restarts a pass, and one to judge
    assert sizes == [16] * 24
    sizes.clear()
    pgd(model, images, labels, epsilon=0.1, steps=7, restarts=6)
    assert sizes == [48] * 8


# early stop


def broken_by_loop(model, image, label, starts, epsilon, step_size, steps):
    """One image, one restart after the other, in plain steps: the verdict and the passes used."""
    passes = 1
    if model(image[None]).argmax() != label:
        return True, passes
    for start in starts:
        x = start[None].clone()
        for step in range(steps + 1):
            x.requires_grad_()
            logits = model(x)
            passes += 1
            if logits.argmax() != label:
                return True, passes
            if step < steps:
                (slope,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), x)
                lower, upper = (image - epsilon).clamp(min=0), (image + epsilon).clamp(max=1)
                x = torch.clamp(x.detach() + step_size * slope.sign(), lower, upper)
    return False, passes


@pytest.mark.parametrize("batch_size", [7, 512])
def test_early_stop_spends_what_it_needs_and_judges_like_a_loop(classifier, digits, batch_size):
    model = copy.deepcopy(classifier).double()
    images, labels = digits.test(slice(40))
    images, epsilon = images.double(), 0.08
    generator = seeded(11)
    starts = torch.stack(
        [
            (
                torch.empty_like(images).uniform_(-epsilon, epsilon, generator=generator) + images
            ).clamp(0, 1)
            for _ in range(3)
        ]
    )
    verdicts, passes = zip(
        *[
            broken_by_loop(model, x, y, starts[:, i], epsilon, 0.02, 5)
            for i, (x, y) in enumerate(zip(images, labels, strict=True))
        ],
        strict=True,
    )
    sizes = count_images(model)
    attack = PGD(epsilon, 0.02, steps=5, restarts=3, early_stop=True, batch_size=batch_size)
    adversarial, broken = attack.attack_until_broken(model, images, labels, generator=seeded(11))
    assert broken.tolist() == list(verdicts) and 5 < sum(verdicts) < 35
    assert sum(sizes) == sum(passes) and max(sizes) <= batch_size
    sizes.clear()
    torch.testing.assert_close(
        attack(model, images, labels, generator=seeded(11)), adversarial, atol=0, rtol=0
    )
    with torch.no_grad():
        assert ((model(adversarial).argmax(1) != labels) == broken).all()
        wrong = model(images).argmax(1) != labels
    assert torch.equal(adversarial[wrong], images[wrong])


def test_early_stop_shows_the_model_no_empty_batch(conv_net):
    """When all is broken there is nothing left to send; this model would refuse it."""
    model = conv_net().eval()
    images, _ = batch(6)
    labels = (model(images).argmax(1) + 1) % 10  # all wrong from the start
    sizes = count_images(model)
    assert torch.equal(
        pgd(model, images, labels, epsilon=0.1, steps=5, restarts=3, early_stop=True), images
    )
    assert sizes == [6]


# the model is left as it was found


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("raises", [False, True])
def test_leaves_the_model_as_found(
    conv_net, snapshot, global_rng_untouched, early_stop, batch_norm, raises, device
):
    model = conv_net().to(device).train()
    model.frozen_norm.eval()
    images, calls = batch(device=device)[0], []
    labels = (
        copy.deepcopy(model).eval()(images).argmax(1)
    )  # right at first: the early stop has work to do

    def trip(*_):
        calls.append(1)
        if raises and len(calls) == 2:
            raise KeyError("the model gave up")

    handle = model.drop.register_forward_hook(trip)
    before = snapshot(model)
    attack = PGD(0.01, steps=4, restarts=2, early_stop=early_stop, batch_norm=batch_norm)
    if raises:
        with pytest.raises(KeyError, match="the model gave up"):
            attack(model, images, labels)
    else:
        attack(model, images, labels)
    assert snapshot(model) == before
    handle.remove()


@pytest.mark.parametrize("early_stop", [False, True])
def test_leaves_no_memory_behind(conv_net, early_stop):
    model, (images, labels) = conv_net(), batch()

    def tensors():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    pgd(model, images, labels, epsilon=0.1, steps=3, restarts=2, early_stop=early_stop)
    before = tensors()
    pgd(model, images, labels, epsilon=0.1, steps=3, restarts=2, early_stop=early_stop)
    assert tensors() == before


@pytest.mark.parametrize(
    "options",
    [{}, {"restarts": 2, "batch_norm": "train"}, {"early_stop": True}],
    ids=str,
)
def test_ctrl_c_anywhere_leaves_the_model_as_found(
    conv_net, snapshot, interrupted_everywhere, options
):
    """Ctrl-C at many instructions of an attack: the model is as before, the signal not lost."""
    model = conv_net().train()
    model.frozen_norm.eval()
    images = batch(2, size=5)[0]
    labels = copy.deepcopy(model).eval()(images).argmax(1)
    before = snapshot(model)
    attack = PGD(0.01, steps=2, **options)

    def check(delivered):
        assert delivered, "the interrupt was lost"
        assert snapshot(model) == before

    # a prime, so that the instructions of a loop are met at different places
    runs = interrupted_everywhere(lambda: attack(model, images, labels), check, "catlib", every=23)
    assert runs > 20
    expected = attack(copy.deepcopy(model), images, labels, generator=seeded())
    assert torch.equal(attack(model, images, labels, generator=seeded()), expected)


def test_two_threads_may_attack_one_model(conv_net, snapshot):
    """Each result is what it is alone, and the model is as before: a thread waits for the other."""
    model = conv_net().train()
    attacks = [PGD(0.1, steps=3), PGD(0.1, steps=3, batch_norm="train")]
    images, labels = batch()
    before = snapshot(model)
    expected = [attack(model, images, labels, generator=seeded()) for attack in attacks]

    def work(which):
        return attacks[which](model, images, labels, generator=seeded())

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, [0, 1] * 30))
    for i, result in enumerate(results):
        assert torch.equal(result, expected[i % 2])
    assert snapshot(model) == before


def test_a_thread_that_waits_for_the_model_can_be_interrupted(conv_net):
    """Another thread has the model; Ctrl-C ends the wait of the main thread."""
    model, (images, labels) = conv_net(), batch()
    taken, done = threading.Event(), threading.Event()

    def hold():
        with attack_mode(model):
            taken.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(30)
    presser = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    presser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            pgd(model, images, labels, epsilon=0.1, steps=1)
    finally:
        done.set()
        presser.join()
        holder.join()


def test_a_mode_that_is_right_is_not_set_again(conv_net):
    """What watches its own mode, such as weights that are merged in eval mode, is not disturbed."""
    written = []

    class Watched(nn.Identity):
        def __setattr__(self, name, value):
            written.append(name)
            super().__setattr__(name, value)

    model = nn.Sequential(conv_net(), Watched())
    model.eval()
    written.clear()
    pgd(model, *batch(), epsilon=0.1, steps=1)
    assert written == []


def test_parameters_made_in_inference_mode_leave_the_model_as_found(conv_net, snapshot):
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)).train()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        pgd(model, *batch(), epsilon=0.1, steps=2)
    assert snapshot(model) == before


@pytest.mark.parametrize("early_stop", [False, True])
def test_a_model_that_works_in_place_changes_no_image(conv_net, early_stop):
    """Judged, it sees a copy; for the gradient torch itself refuses it."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_net()

        def forward(self, x):
            return self.net(x.sub_(0.5))

    model, (images, _) = InPlace().eval(), batch()
    labels = model(images.clone()).argmax(1)
    before = images.clone()
    with pytest.raises(RuntimeError, match="in-place"):
        pgd(model, images, labels, epsilon=0.1, steps=1, early_stop=early_stop, random_start=False)
    assert torch.equal(images, before)
    pgd(model, images, (labels + 1) % 10, epsilon=0.1, steps=0, restarts=2, early_stop=early_stop)
    assert torch.equal(images, before)


# models that fail


class Failing(nn.Module):
    """A model whose logits or gradients are planted; ``change`` takes a model and images."""

    def __init__(self, model, change):
        super().__init__()
        self.model = model
        self.change = change

    def forward(self, x):
        return self.change(self.model, x)


def flat(x):
    return x.sum((1, 2, 3))[:, None]


FAILURES = {
    "gradients of NaN": lambda model, x: model(x) + 0 * torch.sqrt(0 * flat(x)),
    "gradients of infinity": lambda model, x: (
        model(x) + torch.sqrt(x[:, 0, 0, :1] - x[:, 0, 0, :1].detach())
    ),
    "logits of NaN": lambda model, x: model(x) * math.nan,
    "logits of infinity": lambda model, x: model(x) / 0,
    "huge gradients": lambda model, x: model(x) * 1e30,
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", ["sign", "gradient"])
@pytest.mark.parametrize("step_size", [None, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_stay_finite_whatever_the_model_returns(
    conv_net, failure, norm, rule, step_size, dtype
):
    model = Failing(conv_net().to(dtype), FAILURES[failure])
    images, labels = batch(dtype=dtype)
    for early_stop in (False, True):
        attack = PGD(0.3, step_size, steps=3, norm=norm, rule=rule, early_stop=early_stop)
        adversarial = attack(model, images, labels)
        assert adversarial.isfinite().all() and adversarial.min() >= 0 and adversarial.max() <= 1
        delta = (adversarial.double() - images.double()).flatten(1)
        length = delta.norm(dim=1, p=math.inf if norm == "linf" else 2)
        assert length.max() <= 0.3 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_huge_step_still_goes_the_way_of_the_gradient(conv_net, norm):
    model, (images, labels) = conv_net().eval().double(), batch(dtype=torch.float64)
    far, huge = (
        PGD(0.3, step_size, steps=2, norm=norm, random_start=False)(model, images, labels)
        for step_size in (1e6, 1e300)
    )
    torch.testing.assert_close(far, huge, atol=1e-5, rtol=0)
    assert (far - images).abs().amax((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("failure", ["gradients of NaN", "logits of NaN", "logits of infinity"])
def test_what_is_not_finite_breaks_an_image(conv_net, failure):
    model = Failing(conv_net().eval(), FAILURES[failure])
    images, _ = batch()
    labels = model.model(images).argmax(1)
    _, broken = PGD(0.0, steps=1).attack_until_broken(model, images, labels)
    assert broken.all()
    _, broken = PGD(0.0, steps=1).attack_until_broken(model.model, images, labels)
    assert not broken.any()


def test_a_restart_that_finds_a_loss_of_nan_is_the_worst(conv_net):
    net = conv_net().eval().double()
    images, labels = batch(dtype=torch.float64)
    images[:, 0, 0, 0] = 0.5

    def fails_above_the_middle(model, x):
        return model(x) + torch.where(x[:, 0, 0, :1] > 0.5, math.nan, 0.0)

    attack = PGD(0.1, steps=0, restarts=8)
    adversarial = attack(Failing(net, fails_above_the_middle), images, labels, generator=seeded(1))
    assert (adversarial[:, 0, 0, 0] > 0.5).all()


def test_settings_may_be_any_real_numbers():
    attack = PGD(Fraction(8, 255), Fraction(2, 255), steps=np.int64(3))
    assert attack == PGD(8 / 255, 2 / 255, 3) and type(attack.epsilon) is float
    assert PGD(np.float32(0.5)).step_size == 0.125


def test_computes_no_gradient_of_the_parameters(conv_net):
    """Only the gradient on the images is computed, though the parameters require theirs."""
    model, computed = conv_net(), []

    def watch(layer, images, features):
        features.register_hook(lambda gradient: computed.append("features"))

    model.drop.register_forward_hook(watch)
    model.head.weight.register_hook(lambda gradient: computed.append("weight"))
    pgd(model, *batch(), epsilon=0.1, steps=2)
    assert computed == ["features", "features"] and model.head.weight.requires_grad


def test_batch_norm_train_uses_the_statistics_of_the_batch(conv_net):
    """Against plain steps through a model whose batch norms alone are in training mode."""
    model = conv_net().double()
    images, labels = batch(6, dtype=torch.float64)
    ours = pgd(
        model,
        images,
        labels,
        epsilon=0.1,
        step_size=0.02,
        steps=3,
        random_start=False,
        batch_norm="train",
    )
    plain = conv_net().double().eval()
    plain.norm.train(), plain.frozen_norm.train()
    x = images
    for _ in range(3):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(plain(x), labels), x)
        x = torch.clamp(x.detach() + 0.02 * slope.sign(), images - 0.1, images + 0.1).clamp(0, 1)
    torch.testing.assert_close(ours, x, atol=1e-12, rtol=0)
    assert not torch.equal(
        ours, pgd(model, images, labels, epsilon=0.1, step_size=0.02, steps=3, random_start=False)
    )


# where it works

CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"restarts": 3},
        {"early_stop": True},
        {"norm": "l2"},
        {"batch_norm": "train"},
        {"random_start": False},
    ],
    ids=str,
)
def test_is_the_same_in_every_grad_mode(conv_net, context, options):
    model, (images, labels), attack = conv_net(), batch(), PGD(0.1, steps=3, **options)
    expected = attack(model, images, labels, generator=seeded())
    with CONTEXTS[context]():  # images that were made there, too
        assert torch.equal(
            attack(model, images.clone(), labels.clone(), generator=seeded()), expected
        )


@pytest.mark.parametrize(
    "options", [{}, {"restarts": 3}, {"early_stop": True}, {"norm": "l2"}], ids=str
)
def test_works_under_autocast(conv_net, options, device):
    model = conv_net().to(device)
    images, labels = batch(16, device=device)
    full = pgd(model, images, labels, epsilon=0.1, steps=5, generator=seeded(0, device), **options)
    with torch.autocast(device, torch.bfloat16):
        half = pgd(
            model, images, labels, epsilon=0.1, steps=5, generator=seeded(0, device), **options
        )
    assert half.dtype == torch.float32 and half.isfinite().all()
    delta = (half - images).flatten(1).norm(dim=1, p=2 if "norm" in options else math.inf)
    assert delta.max() <= 0.1 + 1e-6 and half.min() >= 0 and half.max() <= 1
    assert F.cosine_similarity((full - images).flatten(), (half - images).flatten(), dim=0) > 0.8
    # and the update after it, in the same autocast region, still finds its gradients
    with torch.autocast(device, torch.bfloat16):
        adversarial = pgd(model, images, labels, epsilon=0.1, steps=1)
        model.zero_grad()
        F.cross_entropy(model(adversarial), labels).backward()
    assert all(
        p.grad is not None and p.grad.any()
        for n, p in model.named_parameters()
        if n in ("conv.weight", "head.weight")
    )


@pytest.mark.parametrize(
    "options", [{}, {"restarts": 3}, {"early_stop": True}, {"norm": "l2"}], ids=str
)
def test_channels_last_gives_the_same(conv_net, options):
    model = conv_net(3).eval().double()
    images, labels = batch(6, 3, dtype=torch.float64)
    attack = PGD(0.1, steps=3, random_start="restarts" in options, **options)
    expected = attack(model, images, labels, generator=seeded())
    model, images = (thing.to(memory_format=torch.channels_last) for thing in (model, images))
    last = attack(model, images, labels, generator=seeded())
    assert last.shape == expected.shape
    if "restarts" not in options:  # random starts follow the order of the memory
        torch.testing.assert_close(last, expected, atol=1e-9, rtol=0)
    assert (last - images).abs().max() <= 0.1 + 1e-6 or "norm" in options


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int32, torch.int64]
)
@pytest.mark.parametrize("early_stop", [False, True])
def test_takes_labels_of_any_integer_type(conv_net, dtype, early_stop):
    model, (images, labels), attack = conv_net(), batch(), PGD(0.1, steps=2, early_stop=early_stop)
    expected = attack(model, images, labels, generator=seeded())
    assert torch.equal(attack(model, images, labels.to(dtype), generator=seeded()), expected)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize(
    "options",
    [{}, {"restarts": 3}, {"early_stop": True}, {"norm": "l2"}, {"random_start": False}],
    ids=str,
)
def test_none_and_one(conv_net, n, options, device):
    images, labels = batch(n, device=device)
    adversarial = pgd(conv_net().to(device), images, labels, epsilon=0.1, steps=2, **options)
    assert adversarial.shape == images.shape and adversarial.dtype == images.dtype


def test_the_generator_decides(conv_net):
    model, (images, labels) = conv_net(), batch()
    attack = PGD(0.1, steps=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, again = attack(model, images, labels), attack(model, images, labels)
        assert not torch.equal(first, again)  # no generator: fresh entropy,
        torch.manual_seed(0)
        assert not torch.equal(first, attack(model, images, labels))  # not the global state
    assert torch.equal(
        attack(model, images, labels, generator=seeded(4)),
        attack(model, images, labels, generator=seeded(4)),
    )
    assert not torch.equal(
        attack(model, images, labels, generator=seeded(4)),
        attack(model, images, labels, generator=seeded(5)),
    )


def test_pgd_is_PGD(conv_net):
    model, (images, labels) = conv_net(), batch()
    settings = {
        "epsilon": 0.2,
        "step_size": 0.05,
        "steps": 3,
        "restarts": 2,
        "norm": "l2",
        "batch_size": 9,
    }
    expected = pgd(model, images, labels, **settings, generator=seeded())
    assert torch.equal(PGD(**settings)(model, images, labels, generator=seeded()), expected)
    assert PGD(0.1, steps=10).step_size == pytest.approx(0.025) and PGD(0.1, steps=10) == PGD(
        0.1, 0.025, 10
    )


def test_more_steps_and_restarts_hurt_more(classifier, digits):
    images, labels = digits.test()
    attacks = [
        PGD(0.1, steps=steps, restarts=restarts)
        for steps, restarts in ((0, 1), (1, 1), (10, 1), (10, 4))
    ]
    adversarial = [attack(classifier, images, labels, generator=seeded()) for attack in attacks]
    loss = [F.cross_entropy(classifier(x), labels).item() for x in adversarial]
    assert loss == sorted(loss) and loss[2] > 2 * loss[0]

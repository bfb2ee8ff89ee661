"""Row 3: what a PGD-20-10 verdict costs when no pass is spent on what is broken."""

import pytest
import torch
import torch.nn.functional as F
from measure import SideBySide

import catlib

pytestmark = [pytest.mark.benchmark, pytest.mark.usefixtures("only_cpu")]
STEPS, RESTARTS, BATCH = 20, 10, 256


def ten_full_runs(model, images, labels, attack, seed=0):
    """The plain loop: (restart, iterate) where each image was first misclassified.

    Restart -1 is before any attack.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    first = torch.full((len(images), 2), RESTARTS, device=images.device)
    alive = model(images).argmax(1) == labels
    first[~alive] = -1
    lower, upper = (images - attack.epsilon).clamp(min=0), (images + attack.epsilon).clamp(max=1)
    for restart in range(RESTARTS):
        x = (
            torch.empty_like(images).uniform_(-attack.epsilon, attack.epsilon, generator=generator)
            + images
        ).clamp(0, 1)
        for step in range(STEPS + 1):
            with torch.enable_grad():
                logits = model(x.requires_grad_(step < STEPS))
                if step < STEPS:
                    slope = torch.autograd.grad(
                        F.cross_entropy(logits, labels, reduction="sum"), x
                    )[0]
            broken = alive & (logits.argmax(1) != labels)
            first[broken] = torch.tensor([restart, step], device=images.device)
            alive &= ~broken
            if step < STEPS:
                x = (x.detach() + attack.step_size * slope.sign()).clamp(lower, upper)
    return first


@torch.no_grad()
def epsilon_of(model, images, labels, share):
    """The epsilon at which about this share of the images survives."""
    low, high = 0.0, 0.5
    for _ in range(7):
        middle = (low + high) / 2
        attack = catlib.PGD(middle, steps=STEPS)
        low, high = (
            (middle, high)
            if catlib.robust_accuracy(model, images, labels, attack) > share
            else (low, middle)
        )
    return low


@pytest.mark.parametrize("share", [0.5, 0.9])
@torch.no_grad()
def test_evaluation(benchmark, note, mnist, robust_cnn, share):
    x, y = mnist.test(slice(BATCH))
    attack = catlib.PGD(
        epsilon_of(robust_cnn, x[:200], y[:200], share), steps=STEPS, restarts=RESTARTS
    )
    counted = []
    hook = robust_cnn.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    first = ten_full_runs(robust_cnn, x, y, attack)
    full = sum(counted)
    counted.clear()
    broken = attack.attack_until_broken(
        robust_cnn, x, y, generator=torch.Generator().manual_seed(0), batch_size=BATCH
    )[1]
    passes = sum(counted)
    hook.remove()
    survivors = first[:, 0] == RESTARTS
    # a look at every image, whole restarts while it lasts, and the iterates up to the breaking one
    needed = len(x) + sum(
        (restart.clamp(0) * (STEPS + 1) + (step + 1) * (0 <= restart < RESTARTS)).item()
        for restart, step in first
    )
    run = SideBySide(
        benchmark,
        {
            "plain": lambda: ten_full_runs(robust_cnn, x, y, attack),
            "catlib": lambda: catlib.robust_accuracy(robust_cnn, x, y, attack, batch_size=BATCH),
        },
        rounds=2,
        warm=0,
    )
    name, kept = f"{share:.0%} robust", survivors.double().mean().item()
    note(
        3,
        f"{name}: passes over those that the survivors need",
        passes / needed,
        "<=1.0",
        robust_accuracy=kept,
        note=f"{passes} of {full} passes, share {passes / full:.3f}; "
        f"epsilon {attack.epsilon:.3f}, {len(x)} images",
    )
    note(
        3,
        f"{name}: time over ten full runs",
        run.ratio("catlib", "plain"),
        f"<={passes / full + 0.10:.3f}",
        seconds=run.seconds("catlib"),
        robust_accuracy=kept,
        rounds=run.rounds,
        note=f"share of passes {passes / full:.3f}, plus 0.10",
    )
    differ = (broken == survivors).sum().item()
    note(
        3,
        f"{name}: verdicts that differ from the plain loop's",
        differ,
        "<=0",
        robust_accuracy=kept,
    )
    assert passes == needed and not differ
    assert catlib.robust_accuracy(robust_cnn, x, y, attack, batch_size=BATCH) == pytest.approx(kept)

"""Accuracy, robust accuracy, and checks whether they can be trusted."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks import (
    PGD,
    Network,
    check_adversarial,
    check_batch,
    has_finite_gradient,
    is_right,
)
from .checks import check_count
from .interrupts import Interrupts
from .kernels.gpu import full_float32
from .modes import attack_mode
from .survivors import survivors

CRAFTING_PRECISIONS = ("float32", "bfloat16")


@contextmanager
def judging(model: nn.Module, device: torch.device) -> Iterator[Interrupts]:
    """The conditions under which a model is judged, until the end of the ``with`` block.

    The model is in eval mode, and without autocast even where the caller uses it. On a GPU float32
    is computed in full, not rounded to TF32, as torch's convolutions otherwise do. Torch's global
    random state is restored at the end. Ctrl-C waits until the block polls the interrupts, or
    until it ends.
    """
    devices = [device] if device.type == "cuda" else []
    with (
        attack_mode(model) as interrupts,
        torch.random.fork_rng(devices=devices),
        torch.autocast(device.type, enabled=False),
        full_float32(device),
    ):
        yield interrupts


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 1000) -> float:
    """Share of the images that are classified as their labels, in eval mode and float32.

    Logits that are not all finite count as a misclassification.

    Args:
        model: images (B, C, H, W) to logits (B, K).
        images: (n, C, H, W) in [0, 1].
        labels: (n,), integers in 0..K-1.
        batch_size: images in one forward pass.

    Raises: ValueError, TypeError: an argument, or what the model returns, is outside what is
        written here. KeyboardInterrupt: Ctrl-C, between two batches. The model is as before.
    """
    network = Network(model, _check_what_to_judge(images, labels, batch_size))
    verdicts = []
    with judging(model, images.device) as interrupts:
        for x, y in interrupts.polled(_batches(images, labels, batch_size)):
            verdicts.append(is_right(network(x), y))
    return torch.cat(verdicts).double().mean().item()


@torch.no_grad()
def robust_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Callable,
    *,
    batch_size: int = 512,
    seed: int = 0,
    precision: str = "float32",
    compile: bool = False,
) -> float:
    """Share of the images that stay classified as their labels under an attack.

    The model is judged in eval mode and float32. With :class:`PGD` an example counts as broken when
    any iterate of any restart is misclassified, and is attacked no further. With any other
    ``attack(model, images, labels) -> images`` it counts as broken when the image that the attack
    returns is misclassified. An example that is misclassified without an attack is broken and not
    attacked. A logit that is not finite counts as a misclassification; with PGD, so does a gradient
    that is not finite.

    Args:
        model: images (B, C, H, W) to logits (B, K).
        images: (n, C, H, W) in [0, 1].
        labels: (n,), integers in 0..K-1.
        attack: a PGD, or any ``attack(model, images, labels) -> images``.
        batch_size: images in one forward pass.
        seed: of the random starts. An attack that draws from torch's global random state finds it
            seeded by this number; its own state is restored afterwards.
        precision: of the steps of a PGD; with "bfloat16" a GPU takes about half the time. Verdicts
            are in float32 all the same, see :func:`catlib.survivors.survivors`.
        compile: let torch.compile speed up a PGD, in batches of 256 images; worth it for many
            evaluations, as the first takes a minute.

    Raises: as :func:`accuracy`, also for what the attack returns. Ctrl-C ends PGD between two
        steps, and another attack at once.
    """
    network = Network(model, _check_what_to_judge(images, labels, batch_size))
    if not isinstance(seed, Integral):
        raise ValueError(f"seed is {seed!r}; it must be an integer.")
    if precision not in CRAFTING_PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}; it must be one of {', '.join(CRAFTING_PRECISIONS)}."
        )
    is_fast = precision == "bfloat16" or compile
    generator = torch.Generator(images.device).manual_seed(seed)
    verdicts = []
    with judging(model, images.device) as interrupts:
        torch.manual_seed(seed)
        if isinstance(attack, PGD):
            # survivors are packed over many batches; one chunk of images is in memory at once
            for x, y in _batches(images, labels, 16 * batch_size):
                if is_fast and attack.batch_norm == "eval":
                    stand = survivors(
                        attack,
                        model,
                        x,
                        y,
                        generator=generator,
                        precision=precision,
                        compile=compile,
                    )
                    verdicts.append(stand)
                    continue
                _, broken = attack.attack_until_broken(
                    model, x, y, generator=generator, batch_size=batch_size
                )
                verdicts.append(~broken)
        else:
            for x, y in interrupts.polled(_batches(images, labels, batch_size)):
                robust = is_right(network(x), y)
                attacked = robust.clone()
                if attacked.any():
                    x = x[attacked]
                    y = y[attacked]
                    with torch.enable_grad(), interrupts.allowed():
                        adversarial = attack(model, x.clone(), y.clone())
                    adversarial = check_adversarial(adversarial, x)
                    robust[attacked] = is_right(network(adversarial), y)
                verdicts.append(robust)
    return torch.cat(verdicts).double().mean().item()


def _check_what_to_judge(images: Tensor, labels: Tensor, batch_size: int) -> int:
    """Raise an error if the batch size, the images or the labels cannot be used, or are none.

    Returns: the largest label.
    """
    check_count("batch_size", batch_size, at_least=1)
    largest_label = check_batch(images, labels)
    if not len(images):
        raise ValueError("there are no images to judge the model by.")
    return largest_label


def _batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(images.split(size), labels.split(size), strict=True)


@torch.no_grad()
def recalibrated(model: nn.Module, images: Tensor, *, batch_size: int = 500) -> nn.Module:
    """A copy of a model whose batch norms have the statistics of these images, in eval mode.

    While a model learns fast, the running statistics of its batch norms are those of a model of
    some iterations ago: early in training it then classifies far worse in eval mode than with
    statistics that fit its weights. The copy goes once over the images, batch by batch. Each batch
    norm normalises by the batch, and keeps the mean over the batches of their means and of their
    (unbiased) variances. Other layers, such as dropout, are in eval mode. Batch norms without
    running statistics stay as they are.

    Args:
        model: images (B, C, H, W) to logits (B, K). It is not changed in any way.
        images: (n, C, H, W) in [0, 1], on the model's device; some hundred training images.
        batch_size: at most so many images in one forward pass; the batches differ by one image at
            most.

    Raises: ValueError, TypeError: an argument is outside what is written here.
    """
    _check_what_to_judge(images, torch.zeros(len(images), dtype=torch.long), batch_size)
    judged = copy.deepcopy(model)
    norms = []
    for module in judged.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            norms.append(module)
    momenta = [norm.momentum for norm in norms]
    with judging(judged, images.device) as interrupts:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches
            norm.training = True
        if norms:
            batches = images.tensor_split(math.ceil(len(images) / batch_size))
            for batch in interrupts.polled(batches):
                judged(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return judged.eval()


def check_model(model: nn.Module, images: Tensor) -> list[str]:
    """Reasons why this model's robust accuracy could not be trusted.

    Looks for (Croce and Hein, ICML 2020; Athalye et al., ICML 2018):

    - a model that is not in eval mode
    - pixels outside [0, 1]
    - random output
    - output that is NaN or infinite
    - probabilities instead of logits
    - a gradient of the loss that is NaN or infinite
    - a loss without a gradient, where PGD is blind

    Args:
        model: images (B, C, H, W) to logits (B, K).
        images: (B, C, H, W), a few dozen of those that the model will be judged by.

    Returns: one sentence for each finding. Each is also a warning.

    Raises: ValueError, TypeError: there is no image, or the model returns no logits (B, K).
    """
    images = images.detach().float()
    if not len(images):
        raise ValueError("there are no images to judge the model by.")
    found = []
    if any(module.training for module in model.modules()):
        found.append(
            "the model is not in eval mode: batch norm and dropout answer differently in training; "
            "call model.eval()."
        )
    if not (images.min() >= 0 and images.max() <= 1):
        found.append(
            f"images go from {images.min():.3g} to {images.max():.3g}, outside [0, 1]: epsilon is "
            "in units of [0, 1]; divide bytes by 255 and normalise in the model's first layer."
        )
    with judging(model, images.device), torch.enable_grad():
        x = images.clone().requires_grad_()
        network = Network(model)
        logits = network(x)
        if not _are_equal(logits, network(x)):
            found.append(
                "the model gives random output: one gradient says little; average the attack over "
                "many passes."
            )
        finite = logits.isfinite().all(1)
        if not finite.all():
            found.append(
                f"the output is NaN or infinite for {_share(~finite):.0%} of the images, which "
                "count as misclassified; look for a division by zero, a logarithm or an overflow."
            )
        if _look_like_probabilities(logits):
            found.append(
                "the output looks like probabilities, not logits: a second softmax flattens the "
                "gradient; return what comes before the softmax."
            )
        gradient = _loss_gradient(logits, x)
        broken = finite & ~has_finite_gradient(gradient)
        if broken.any():
            found.append(
                f"the gradient of the loss is NaN or infinite for {_share(broken):.0%} of the "
                "images, which count as misclassified by PGD though the output is finite; look for "
                "a square root, a division or a norm at zero."
            )
        blind = (gradient == 0).flatten(1).all(1)
        if _share(blind) > 0.05:
            found.append(
                f"the loss has no gradient for {_share(blind):.0%} of the images: PGD is blind "
                "there; look for rounding, detach, saturated logits, and judge by AutoAttack or an "
                "attack without gradients."
            )
    for sentence in found:
        warnings.warn(sentence, stacklevel=2)
    return found


def _look_like_probabilities(logits: Tensor) -> bool:
    sums = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def _are_equal(a: Tensor, b: Tensor) -> bool:
    """Whether all entries are the same; two that are both NaN are."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _loss_gradient(logits: Tensor, x: Tensor) -> Tensor:
    """The gradient on the images x of the loss of the predicted class; zero where there is none."""
    gradient = None
    if logits.requires_grad:
        loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _share(which: Tensor) -> float:
    return which.double().mean().item()

"""What a model can do, and whether to believe it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks import PGD, check_batch
from .modes import attack_mode


@contextmanager
def judging(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The circumstances in which every model is judged; they end with the block.

    The model is in eval mode and in full precision, whatever autocast is around it. What it draws
    from torch's global random state leaves no trace there.
    """
    devices = [device] if device.type == "cuda" else []
    with (
        attack_mode(model),
        torch.random.fork_rng(devices=devices),
        torch.autocast(device.type, enabled=False),
    ):
        yield


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 1000) -> float:
    """Share of the images that are classified as their labels, in eval mode and float32.

    Args:
        images: (n, C, H, W) in [0, 1].
        labels: (n,), integers in 0..K-1.
        batch_size: images in one forward pass.
    """
    largest_label = _check_what_to_judge(images, labels)
    verdicts = []
    with judging(model, images.device):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            verdicts.append(_is_right(model, x, y, largest_label))
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
) -> float:
    """Share of the images that stay classified as their labels under an attack.

    The model is judged in eval mode and float32. With :class:`PGD` an example counts as broken when
    any iterate of any restart is misclassified, and is attacked no further; with any other
    ``attack(model, images, labels) -> images``, when what it returns is misclassified. An example
    that is misclassified from the start is broken and not attacked.

    Args:
        images: (n, C, H, W) in [0, 1].
        labels: (n,), integers in 0..K-1.
        batch_size: images in one forward pass.
        seed: of the random starts. An attack that draws from torch's global random state finds it
            seeded by this number; its own state is restored afterwards.
    """
    largest_label = _check_what_to_judge(images, labels)
    generator = torch.Generator(images.device).manual_seed(seed)
    verdicts = []
    with judging(model, images.device):
        torch.manual_seed(seed)
        if isinstance(attack, PGD):
            # survivors are packed over many batches; one chunk of images is in memory at once
            chunk = 16 * batch_size
            for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
                _, broken = attack.attack_until_broken(
                    model, x, y, generator=generator, batch_size=batch_size
                )
                verdicts.append(~broken)
        else:
            for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
                robust = _is_right(model, x, y, largest_label)
                attacked = robust.clone()
                if attacked.any():
                    with torch.enable_grad():
                        adversarial = attack(model, x[attacked], y[attacked]).detach()
                    robust[attacked] = _is_right(model, adversarial, y[attacked], largest_label)
                verdicts.append(robust)
    return torch.cat(verdicts).double().mean().item()


def _check_what_to_judge(images: Tensor, labels: Tensor) -> int:
    """Refuse images or labels that nothing can be judged by; the largest label."""
    largest_label = check_batch(images, labels)
    if not len(images):
        raise ValueError("there are no images to judge the model by.")
    return largest_label


def _is_right(model: nn.Module, x: Tensor, y: Tensor, largest_label: int) -> Tensor:
    """Which of a batch is classified as labelled, (B,)."""
    logits = model(x)
    if largest_label >= logits.shape[1]:
        raise ValueError(
            f"a label is {largest_label}; the model's logits {tuple(logits.shape)} allow "
            f"0..{logits.shape[1] - 1}."
        )
    return logits.argmax(1) == y


def check_model(model: nn.Module, images: Tensor) -> list[str]:
    """What would make this model's robust accuracy not worth believing.

    Looks for a model that is not in eval mode, gives random output or probabilities instead of
    logits, or gives PGD no gradient, and for pixels outside [0, 1] (Croce and Hein, ICML 2020;
    Athalye et al., ICML 2018).

    Args:
        images: (B, C, H, W), a few dozen of those that the model will be judged by.

    Returns: one sentence for each finding. Each is also a warning.
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
        logits = model(x)
        if not torch.equal(logits, model(x)):
            found.append(
                "the model gives random output: one gradient says little; average the attack over "
                "many passes."
            )
        if _look_like_probabilities(logits):
            found.append(
                "the output looks like probabilities, not logits: a second softmax flattens the "
                "gradient; return what comes before the softmax."
            )
        blind = _share_without_gradient(logits, x)
        if blind > 0.05:
            found.append(
                f"the loss has no gradient for {blind:.0%} of the images: PGD is blind there; look "
                "for rounding, detach, saturated logits, and judge by AutoAttack or an attack "
                "without gradients."
            )
    for sentence in found:
        warnings.warn(sentence, stacklevel=2)
    return found


def _look_like_probabilities(logits: Tensor) -> bool:
    sums = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-4)


def _share_without_gradient(logits: Tensor, x: Tensor) -> float:
    """Share of the images x on which the loss of the predicted class has a gradient of zero."""
    if not logits.requires_grad:
        return 1.0
    loss = F.cross_entropy(logits, logits.argmax(1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    if gradient is None:
        return 1.0
    return (gradient.flatten(1).abs().amax(1) == 0).double().mean().item()

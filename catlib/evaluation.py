"""What a model can do, and whether to believe it."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .attacks import PGD, check_batch


@contextmanager
def _evaluating(model: nn.Module, images: Tensor, labels: Tensor | None = None):
    """Lend which of a batch is classified as labelled, in eval mode and full precision; modes and random state are handed back."""
    top = check_batch(images, labels) if labels is not None else -1
    if not len(images):
        raise ValueError("there are no images to judge the model by.")

    def right(x, y):
        if top >= (logits := model(x)).shape[1]:
            raise ValueError(
                f"a label is {top}; the model's logits {tuple(logits.shape)} allow 0..{logits.shape[1] - 1}."
            )
        return logits.argmax(1) == y

    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        devices = [images.device] if images.is_cuda else []
        with (
            torch.random.fork_rng(devices=devices),
            torch.autocast(images.device.type, enabled=False),
        ):
            yield right
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 1000) -> float:
    """Share of the images (n, C, H, W) in [0, 1] that are classified as their labels (n,), in eval mode, float32."""
    with _evaluating(model, images, labels) as right:
        verdicts = [
            right(x, y)
            for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True)
        ]
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
    """Share of the images that stay classified as their labels under an attack, in eval mode and float32.

    With :class:`PGD` an example counts as broken when any iterate of any restart is misclassified, and is attacked no
    further; with any other ``attack(model, images, labels) -> images``, when what it returns is. One misclassified from the
    start is broken and not attacked.

    ``images`` (n, C, H, W) in [0, 1] and ``labels`` (n,) go through the model ``batch_size`` at a time. ``seed`` is of the random
    starts; an attack that draws from torch's global state gets it forked and seeded.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    # survivors are packed over many batches; the images of one chunk are held in memory at once
    chunk, verdicts = 16 * batch_size if isinstance(attack, PGD) else batch_size, []
    with _evaluating(model, images, labels) as right:
        torch.manual_seed(seed)
        for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
            if isinstance(attack, PGD):
                robust = ~attack.attack_until_broken(
                    model, x, y, generator=generator, batch_size=batch_size
                )[1]
            elif (robust := right(x, y)).any():
                with torch.enable_grad():
                    adversarial = attack(model, x[robust], y[robust]).detach()
                robust[robust.clone()] = right(adversarial, y[robust])
            verdicts.append(robust)
    return torch.cat(verdicts).double().mean().item()


def check_model(model: nn.Module, images: Tensor) -> list[str]:
    """What would make this model's robust accuracy not worth believing: a sentence a finding, each also a warning.

    Looks for a model that is not in eval mode, gives random output or probabilities instead of logits, or gives PGD no gradient
    on ``images`` (B, C, H, W), a few dozen, and for pixels outside [0, 1] (Croce and Hein, ICML 2020; Athalye et al., ICML 2018).
    """
    found, images = [], images.detach().float()
    if any(module.training for module in model.modules()):
        found.append(
            "the model is not in eval mode: batch norm and dropout answer differently in training; call model.eval()."
        )
    if not (images.min() >= 0 and images.max() <= 1):
        found.append(
            f"images go from {images.min():.3g} to {images.max():.3g}, outside [0, 1]: epsilon is in units of [0, 1]; "
            "divide bytes by 255 and normalise in the model's first layer."
        )
    with _evaluating(model, images), torch.enable_grad():
        x = images.clone().requires_grad_()
        logits = model(x)
        if not torch.equal(logits, model(x)):
            found.append(
                "the model gives random output: one gradient says little; average the attack over many passes."
            )
        if (logits >= 0).all() and torch.allclose(
            sums := logits.sum(1), torch.ones_like(sums), atol=1e-4
        ):
            found.append(
                "the output looks like probabilities, not logits: a second softmax flattens the gradient; "
                "return what comes before the softmax."
            )
        gradient = (
            None
            if not logits.requires_grad
            else torch.autograd.grad(
                nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum"),
                x,
                allow_unused=True,
            )[0]
        )
        lost = (
            1.0
            if gradient is None
            else (gradient.flatten(1).abs().amax(1) == 0).double().mean().item()
        )
        if lost > 0.05:
            found.append(
                f"the loss has no gradient for {lost:.0%} of the images: PGD is blind there; look for rounding, detach, "
                "saturated logits, and judge by AutoAttack or an attack without gradients."
            )
    for sentence in found:
        warnings.warn(sentence, stacklevel=2)
    return found

"""What keeps a training whole: its arguments and states are checked first, its buffers put back."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .attacks import PGD, check_logits, check_pixels
from .checks import kind_of
from .data.augmentation import MovingAugmentation
from .memory import PerturbationMemory


class BufferCopy:
    """A copy of a model's buffers, such as the statistics of batch norm, that a forward changes.

    Only buffers that the model has now are copied. Nothing here waits for a GPU.
    """

    def __init__(self, model: nn.Module):
        self._places: list[tuple[nn.Module, str]] = []  # of every buffer: its module, its name
        for module in model.modules():
            for name, _ in module.named_buffers(recurse=False):
                self._places.append((module, name))
        self._copies: list[Tensor] = []

    def take(self) -> None:
        """Copy the buffers as they are now."""
        current = [module.get_buffer(name) for module, name in self._places]
        if not self._fits(current):
            self._copies = [buffer.clone() for buffer in current]
        elif current:
            torch._foreach_copy_(self._copies, current)

    def _fits(self, current: list[Tensor]) -> bool:
        if len(self._copies) != len(current):
            return False
        pairs = zip(self._copies, current, strict=True)
        return all(kept.shape == now.shape and kept.dtype == now.dtype for kept, now in pairs)

    def put_back(self) -> None:
        """Give the buffers the values that they had at the last ``take()``."""
        for (module, name), kept in zip(self._places, self._copies, strict=True):
            buffer = module.get_buffer(name)
            if buffer.shape == kept.shape and buffer.dtype == kept.dtype:
                with torch.no_grad():
                    buffer.copy_(kept)
            else:
                setattr(module, name, kept.clone())


def check_sampler(sampler: Any, labels: Tensor) -> None:
    """Raise TypeError or ValueError if a sampler cannot draw from examples (n,) of these labels.

    A warning says so if it balances the same classes, but by other labels of the examples. Groups
    of one's own, such as two super-classes, have other names and are left alone.
    """
    n = len(labels)
    if not hasattr(sampler, "update"):
        raise TypeError(
            f"sampler is a {type(sampler).__name__} without update(indices, gain); see CaseSampler."
        )
    if getattr(sampler, "n", n) != n:
        raise ValueError(f"the sampler draws from {sampler.n} examples; the data have {n}.")

    balanced = getattr(sampler, "balanced_by", None)
    if balanced is None:
        return
    balanced = balanced.to(labels.device)
    if torch.equal(balanced, labels) or not torch.equal(balanced.unique(), labels.unique()):
        return
    warnings.warn(
        f"the sampler has another label than the data for {int((balanced != labels).sum())} of "
        f"{n} examples, so it does not balance their classes; build it from data.y_train.",
        stacklevel=3,
    )


def check_optimizer(
    optimizer: torch.optim.Optimizer | None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
    model: nn.Module,
) -> None:
    """Raise TypeError or ValueError if these cannot train the model once an iteration."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise TypeError(
            "scheduler is a ReduceLROnPlateau, which steps by a metric; "
            "use one that steps without arguments."
        )
    if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("the scheduler is of another optimizer than the one that is given.")
    if optimizer is None:
        return
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError("optimizer is LBFGS, which needs a closure; use one that steps without.")
    ours = {id(parameter) for parameter in model.parameters()}
    theirs = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    foreign = [parameter for parameter in theirs if parameter not in ours]
    if foreign:
        raise ValueError(
            f"{len(foreign)} of the optimizer's {len(theirs)} parameters are not the model's; "
            "build it from model.parameters()."
        )


def check_loss(result: Any, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Refuse what a loss returned for ``count`` images of so many classes, if it is unusable.

    Returns: the loss, and the adversarial logits (B, K) in float32 or float64.
    """
    wanted = "a loss returns (loss, adversarial_logits), see adversarial_cross_entropy"
    if not isinstance(result, tuple) or len(result) != 2:
        what = type(result).__name__
        if isinstance(result, tuple):
            what = f"tuple of {len(result)}"
        raise TypeError(f"the loss returned a {what}; {wanted}.")
    loss, logits = result
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise TypeError(f"the loss returned {what} as its value, which must be a scalar; {wanted}.")
    if not loss.requires_grad:
        raise ValueError(
            f"the loss returned {loss.item():.4g} without a gradient; compute it from the model's "
            "logits, without detach() and torch.no_grad()."
        )
    return loss, check_logits(logits, count, classes - 1)


def check_augmented(augmented: Any, images: Tensor, *, look: bool) -> None:
    """Raise TypeError or ValueError if an augmentation did not return such images (B, C, H, W).

    Args:
        images: what it was given.
        look: look at the pixels, too.
    """
    is_alike = isinstance(augmented, Tensor) and augmented.dtype == images.dtype
    if not is_alike or augmented.shape != images.shape:
        raise TypeError(
            f"augment returned {kind_of(augmented)}; for these images it must return "
            f"{kind_of(images)}."
        )
    if look:
        check_pixels("augment returned pixels", augmented)


def check_memory(memory: Any, images: Tensor, attack: Any, augment: Any) -> None:
    """Raise TypeError or ValueError if attacks on these training images cannot begin there."""
    if not isinstance(memory, PerturbationMemory):
        raise TypeError(f"memory is a {type(memory).__name__}; it must be a PerturbationMemory.")
    if (memory.n, *memory.shape) != tuple(images.shape):
        raise ValueError(
            f"the memory is of {memory.n} images {memory.shape}; the data have {len(images)} "
            f"training images {tuple(images.shape[1:])}."
        )
    memory.check_attack(attack)
    if augment is not None and not isinstance(augment, MovingAugmentation):
        raise TypeError(
            "augment cannot be undone, so a memory cannot follow it: use CropAndFlip(padding) "
            "instead of crop_and_flip, or an object with draw(images, generator) like it."
        )


def check_budget(sampler: Any, attack: Any, compile: bool) -> None:
    """Raise TypeError or ValueError if examples cannot get their steps by their weights."""
    if not hasattr(sampler, "weights"):
        raise TypeError(
            f"budget is given, but the sampler, a {type(sampler).__name__}, has no weights. For "
            f"uniform draws with weights use CaseSampler(temperature=1e12, class_balanced=False)."
        )
    if not isinstance(attack, PGD):
        raise TypeError(
            f"budget is given, but the attack is a {type(attack).__name__}; only a PGD can give "
            f"each example its own number of steps."
        )
    if compile or attack.early_stop:
        name = "compile" if compile else "early_stop"
        raise ValueError(
            f"budget is given with {name}=True, whose batches it would change; use {name}=False."
        )


def check_weights(state: dict[str, Any], model: nn.Module) -> None:
    """Raise ValueError if this is no ``state_dict()`` of such a model, or not finite."""
    expected = model.state_dict()
    for name in expected:
        if name not in state:
            raise ValueError(f"the state is of another model: it has no {name}.")
    for name, given in state.items():
        if name not in expected:
            raise ValueError(f"the state is of another model: this one has no {name}.")
        if _form(given) != _form(expected[name]):
            raise ValueError(
                f"the state is of another model: its {name} is {_form(given)}; "
                f"here it is {_form(expected[name])}."
            )
    for name, _ in model.named_parameters():
        if not state[name].isfinite().all():
            raise ValueError(
                f"the state's weights {name} are not finite: the training had diverged, or the "
                "state is damaged. Use an earlier one."
            )


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__

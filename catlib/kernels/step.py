"""A step of PGD as one graph: forward, gradient, ascent and projection, compiled by torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compiled(function: Callable, device: torch.device) -> Callable:
    """torch.compile for shapes that stay the same.

    On a GPU what it makes is captured once and replayed as a CUDA graph.
    """
    mode = "reduce-overhead" if device.type == "cuda" else None
    return torch.compile(function, dynamic=False, mode=mode)


def _step(
    model: nn.Module, move: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    def loss(x: Tensor) -> Tensor:
        logits = model(x)
        if logits.dtype != torch.float64:
            logits = logits.float()
        return F.cross_entropy(logits, labels, reduction="sum")

    return move(images, torch.func.grad(loss)(images))


def compiled_step(
    model: nn.Module, move: Callable[[Tensor, Tensor], Tensor], labels: Tensor
) -> Callable[[Tensor], Tensor]:
    """The step from adversarial images to better ones, as a compiled function of the images.

    Args:
        move: ``move(images, slope)`` goes up the slope of the loss and projects back.
    """
    step = compiled(_step, labels.device)
    if not labels.is_cuda:
        return lambda images: step(model, move, images, labels)

    def replay(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        moved = step(model, move, images, labels)
        return moved.clone()  # the next replay writes over what this one returned

    return replay

"""A step of PGD as one graph: forward, gradient on the image, move and projection, compiled by torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compiled(function: Callable, device: torch.device) -> Callable:
    """torch.compile for shapes that stay; on a GPU what it makes is captured once and replayed as a CUDA graph."""
    return torch.compile(
        function, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None
    )


def _step(
    model: nn.Module, move: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    def loss(x):
        logits = model(x)
        return F.cross_entropy(
            logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="sum"
        )

    return move(images, torch.func.grad(loss)(images))


def compiled_step(
    model: nn.Module, move: Callable[[Tensor, Tensor], Tensor], labels: Tensor
) -> Callable[[Tensor], Tensor]:
    """The step from adversarial images to better ones; ``move(images, slope)`` is the rule and its projection."""
    step = compiled(_step, labels.device)
    if not labels.is_cuda:
        return lambda images: step(model, move, images, labels)

    def replay(images):
        torch.compiler.cudagraph_mark_step_begin()
        return step(
            model, move, images, labels
        ).clone()  # the next replay writes over what this one returned

    return replay

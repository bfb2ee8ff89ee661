"""The gradient with respect to the images through a first convolution, as one matrix product.

torch's own, which is oneDNN's, is made for many channels. For the one or three channels of an image
it reaches about 1 % of a CPU's peak, and takes a third of a small network's whole backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 4  # input channels; from about 8 on, torch's own gradient is faster


class _InputGradient(torch.autograd.Function):
    """F.conv2d with a gradient for its input alone."""

    @staticmethod
    def forward(
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
    ) -> Tensor:
        return F.conv2d(images, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, weight, _, stride, padding, dilation = inputs
        ctx.size = images.shape[2:]
        ctx.stride = stride
        ctx.padding = padding
        ctx.dilation = dilation
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        # detached: torch then multiplies batch by batch, without copies
        patches = weight.detach().flatten(1).t() @ slope.flatten(2)
        images_gradient = F.fold(
            patches, ctx.size, weight.shape[2:], ctx.dilation, ctx.padding, ctx.stride
        )
        return images_gradient, None, None, None, None, None


def _conv_forward(layer: nn.Conv2d, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What stands in for ``nn.Conv2d._conv_forward`` while a first layer is fast."""
    if not _is_plain(images, weight, bias):
        return nn.Conv2d._conv_forward(layer, images, weight, bias)
    return _InputGradient.apply(images, weight, bias, layer.stride, layer.padding, layer.dilation)


def _is_plain(images: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the gradient on the images is all that can be asked of this call."""
    if images.ndim != 4 or torch.is_autocast_enabled(images.device.type):
        return False
    if not weight.is_leaf or (bias is not None and not bias.is_leaf):
        return False  # computed, perhaps from the images: a second path for their gradient
    if torch.compiler.is_compiling():
        return True  # the graph of a whole step is torch.func.grad of the model, and no more
    # vmap, jvp and the like inside the model
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _has_fast_form(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and "_conv_forward" not in vars(layer)
        and layer.in_channels <= FEW
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


@contextmanager
def fast_first_layers(model: nn.Module, device: torch.device) -> Iterator[None]:
    """On a CPU, the model's convolutions of few channels compute no gradient but their input's.

    Each such layer has a ``_conv_forward`` of its own while this lasts, and loses it afterwards.
    """
    layers = [layer for layer in model.modules() if device.type == "cpu" and _has_fast_form(layer)]
    try:
        for layer in layers:
            vars(layer)["_conv_forward"] = MethodType(_conv_forward, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("_conv_forward", None)

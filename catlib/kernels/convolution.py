"""The gradient on the image through a first layer, by one matrix product.

torch's own (oneDNN's) is made for many channels: for the one or three of an image it runs at some hundredth of
a CPU's speed, and takes a third of a small network's whole backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 4  # input channels; from about 8 on, torch is faster


class _InputGradient(torch.autograd.Function):
    """F.conv2d with a gradient for its input alone."""

    @staticmethod
    def forward(images, weight, bias, stride, padding, dilation):
        return F.conv2d(images, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        images, weight, _, ctx.stride, ctx.padding, ctx.dilation = inputs
        ctx.size = images.shape[2:]
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx, slope):
        (weight,) = ctx.saved_tensors
        patches = weight.flatten(1).t() @ slope.flatten(2)
        return (
            F.fold(patches, ctx.size, weight.shape[2:], ctx.dilation, ctx.padding, ctx.stride),
            None,
            None,
            None,
            None,
            None,
        )


class _FirstConv2d(nn.Conv2d):
    def _conv_forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_autocast_enabled(images.device.type) or images.ndim != 4:
            return super()._conv_forward(images, weight, bias)
        return _InputGradient.apply(images, weight, bias, self.stride, self.padding, self.dilation)


@contextmanager
def first_layers(model: nn.Module, device: torch.device) -> Iterator[None]:
    """While it lasts, the model's convolutions of few channels compute no gradient but their input's, if on a CPU."""
    layers = [
        m
        for m in model.modules()
        if device.type == "cpu"
        and type(m) is nn.Conv2d
        and m.in_channels <= FEW
        and m.groups == 1
        and m.padding_mode == "zeros"
        and not isinstance(m.padding, str)
    ]
    for layer in layers:
        layer.__class__ = _FirstConv2d
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nn.Conv2d

"""What a GPU is set to do for training and for verdicts, and weights that are cast once."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# the layers whose weights autocast casts, and that read them from their own parameters
_CAST_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# the cast weights of a model: the same memory in every attack, as a CUDA graph needs
_casts: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


@contextmanager
def tuned_convolutions(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """On a GPU, let cuDNN try out its algorithms for every new shape, and keep the fastest.

    For training, where shapes stay the same. Someone who asks for deterministic algorithms keeps
    them: an algorithm that is tried out may change from run to run. ``enabled=False`` lets it
    choose by rule of thumb.
    """
    before = torch.backends.cudnn.benchmark
    try:
        if device.type == "cuda" and not torch.backends.cudnn.deterministic:
            torch.backends.cudnn.benchmark = enabled
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """On a GPU, compute float32 in float32.

    Otherwise torch lets convolutions round their inputs to the 10 bits of TF32, although tensors
    say that they are float32.
    """
    if device.type != "cuda":
        yield
        return
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@contextmanager
def weights_cast_once(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Under autocast on a GPU, cast the weights of convolutions and linear layers here, once.

    Autocast itself keeps a cast weight only if the weight requires a gradient and no graph is
    compiled; in a compiled step of an attack it casts all of them, in every step. The layers hold
    the cast weights, which get no gradient, while this lasts. The results are the same.
    """
    if device.type != "cuda" or not torch.is_autocast_enabled(device.type):
        yield
        return
    with cast_weights(model, torch.get_autocast_dtype(device.type)):
        yield


@contextmanager
def cast_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The weights of convolutions and linear layers as ``dtype`` while this lasts."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper shares the modules
    replaced = []
    for name, layer in model.named_modules():
        if type(layer) in _CAST_LAYERS:
            for part in ("weight", "bias"):
                parameter = layer._parameters.get(part)
                if parameter is not None and parameter.dtype == torch.float32:
                    replaced.append((layer._parameters, part, parameter, f"{name}.{part}"))
    kept = _casts.setdefault(model, {})
    try:
        for parameters, part, parameter, name in replaced:
            parameters[part] = _cast_into(kept, name, parameter.detach(), dtype)
        yield
    finally:
        for parameters, part, parameter, _ in replaced:
            parameters[part] = parameter


def _cast_into(kept: dict[str, Tensor], name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as ``dtype``, in the memory of the last time if that fits."""
    old = kept.get(name)
    fits = (
        old is not None
        and old.dtype == dtype
        and old.device == weight.device
        and old.shape == weight.shape
        and old.stride() == weight.stride()
    )
    if old is not None and fits:
        old.copy_(weight)
        return old
    kept[name] = weight.to(dtype)
    return kept[name]

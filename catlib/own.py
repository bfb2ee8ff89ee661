"""A model of one's own: found by its name ``module:function``, and checked before it is used."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .data import Data


def own_model(name: str, data: Data, seed: int) -> nn.Module:
    """The model that the user's function returns for these data, built under the seed, checked."""
    with _current_folder_importable():
        function = _own_function(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = function(data)
            if not isinstance(model, nn.Module):
                raise ValueError(
                    f"{name} returned {_kind(model)}; it must return a torch.nn.Module."
                )
            check_classifier(model, data, name)
    return model


def _own_function(name: str) -> Callable[[Data], object]:
    """The function that ``name`` ("module:function") stands for, if it takes the data."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(
            f"model is {name!r}; a model of your own is named module:function, "
            "as in my_models:small_net."
        )
    try:
        importlib.invalidate_caches()  # the file may have been written a moment ago
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code runs here, and may raise anything
        raise ValueError(_why_not_imported(module_name, error)) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ValueError(f"the module {module_name} has no function {function_name!r}.")
    if isinstance(function, nn.Module):
        raise ValueError(
            f"{name} is a model, {_kind(function)}; it must be a function that returns one, such "
            f"as `def build(data): return {function_name}`, named {module_name}:build."
        )
    if not callable(function):
        raise ValueError(
            f"{name} is {_kind(function)}; it must be a function that returns a model."
        )
    if not _takes_one_argument(function):
        raise ValueError(
            f"{name} is called with one argument, the data; define it as {function_name}(data)."
        )
    return function


def _why_not_imported(module_name: str, error: Exception) -> str:
    """One sentence: there is no such module, or there is one and importing it failed."""
    looked_for = [module_name, *module_name.split(".")]
    if isinstance(error, ModuleNotFoundError) and error.name in looked_for:
        return (
            f"there is no module {module_name!r} in {os.getcwd()} or among the installed packages; "
            "give the name of a Python file without its .py, with dots between folders."
        )
    return f"the module {module_name} could not be imported: {type(error).__name__}: {error}"


def _takes_one_argument(function: Callable) -> bool:
    try:
        inspect.signature(function).bind(None)
    except ValueError:  # some functions written in C have no signature to look at
        return True
    except TypeError:
        return False
    return True


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Modules of the current folder can be imported, as under ``python -m`` but not on a server."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def check_classifier(model: nn.Module, data: Data, name: str = "the model") -> None:
    """Make sure that a model can be attacked on these data: logits, with a gradient to the images.

    A few training images are sent through it in eval mode, on its own device. Its modes are then
    as they were.

    Raises: ValueError: one sentence, beginning with ``name``, about the first thing that is wrong.
    """
    first_parameter = next(model.parameters(), torch.empty(0))
    images = data.train(slice(4))[0].to(first_parameter.device).requires_grad_()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
            logits = model(images)
    except Exception as error:  # a model may raise anything
        raise ValueError(
            f"{name} fails on images {tuple(images.shape)} of {data.name}, float32 in [0, 1]: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    _check_logits(logits, len(images), len(data.classes), name)
    gradient = None
    if logits.requires_grad:
        gradient = torch.autograd.grad(logits.sum(), images, allow_unused=True)[0]
    if gradient is None:
        raise ValueError(
            f"{name} lets no gradient reach the images, so no attack can follow it; "
            "look for detach(), .data, numpy or torch.no_grad() on the way from images to logits."
        )


def _check_logits(logits: object, count: int, classes: int, name: str) -> None:
    wanted = f"it must return logits (B, K), here ({count}, {classes})"
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name} returns {_kind(logits)} for a batch of images; {wanted}.")
    shape = tuple(logits.shape)
    if logits.ndim != 2 or len(logits) != count:
        raise ValueError(f"{name} returns {shape} for {count} images; {wanted}.")
    if logits.shape[1] < classes:
        raise ValueError(
            f"{name} returns {logits.shape[1]} logits an image, "
            f"and the data have {classes} classes; {wanted}."
        )
    if not logits.is_floating_point():
        raise ValueError(f"{name} returns {logits.dtype}; logits must be floating point numbers.")
    if not logits.isfinite().all():
        raise ValueError(f"{name} returns logits that are not finite for images in [0, 1].")


def _kind(value: object) -> str:
    """What a value is, for a message: "None", "a str", "an int"."""
    if value is None:
        return "None"
    kind = type(value).__name__
    article = "an" if kind[0] in "aeiou" else "a"
    return f"{article} {kind}"

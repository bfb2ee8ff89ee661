"""Checks of arguments that several modules take, and words for what was given instead."""

from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def kind_of(value: object) -> str:
    """What something is, for a message."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def check_count(name: str, value: Any, *, at_least: int) -> None:
    """Raise ValueError if a value is no integer, or too small."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < at_least:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {at_least}.")


def check_evaluations(every: Any, first: Any) -> None:
    """Raise ValueError for a rhythm of evaluations that cannot be.

    Args:
        every: iterations from one evaluation to the next; 0 is never.
        first: after each of the first so many iterations there is one, too.
    """
    check_count("evaluate_every", every, at_least=0)
    check_count("evaluate_first", first, at_least=0)
    if first and not every:
        raise ValueError(
            f"evaluate_first is {first} and evaluate_every is 0, which is never; "
            "give an evaluate_every of at least 1."
        )


def checked_indices(indices: Any, n: int, device: torch.device) -> Tensor:
    """Indices of examples, (B,) int64 on this device.

    On a GPU a wrong index is left to torch, since a look at the numbers would wait for the device.

    Raises: ValueError: they are no integers (B,). IndexError: one is not among the n examples.
    """
    indices = torch.as_tensor(indices, device=device).detach()
    is_whole = not indices.is_floating_point() and indices.dtype != torch.bool
    if indices.ndim != 1 or not (is_whole or len(indices) == 0):
        raise ValueError(f"indices are {kind_of(indices)}; they must be (B,) integers.")
    indices = indices.long()
    if device.type == "cpu" and len(indices):
        low, high = (int(value) for value in indices.aminmax())
        if not 0 <= low <= high < n:
            raise IndexError(f"indices go from {low} to {high}; they must lie in 0..{n - 1}.")
    return indices

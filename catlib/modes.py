"""The mode in which a model is attacked and judged, and its way back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from .interrupts import Interrupts, deferred_interrupts

# whose mode is changed belongs to one thread at a time; others wait for it
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


@contextmanager
def attack_mode(model: nn.Module, batch_norm: str = "eval") -> Iterator[Interrupts]:
    """Put a model in the mode in which it is attacked, and restore its own mode afterwards.

    Every submodule is in eval mode. With ``batch_norm="train"`` batch norms use the statistics of
    the batch instead, and store none. Another thread that wants the mode of the same model changed
    waits until this one has restored it. Ctrl-C waits for a poll of the interrupts, or for the end.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model is a {type(model).__name__}; it must be a torch.nn.Module, whose modes an "
            "attack can set."
        )
    with deferred_interrupts() as interrupts, _alone_with(model, interrupts):
        modules = list(model.modules())
        norms = []
        if batch_norm == "train":
            norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        training = [module.training for module in modules]
        tracking = [norm.track_running_stats for norm in norms]
        batch_statistics = set(norms)
        try:
            for module in modules:
                _set(module, "training", module in batch_statistics)
            for norm in norms:
                _set(norm, "track_running_stats", False)
            yield interrupts
        finally:
            for module, mode in zip(modules, training, strict=True):
                _set(module, "training", mode)
            for norm, track in zip(norms, tracking, strict=True):
                _set(norm, "track_running_stats", track)


def _set(module: nn.Module, name: str, value: bool) -> None:
    if getattr(module, name) != value:
        setattr(module, name, value)


@contextmanager
def _alone_with(model: nn.Module, interrupts: Interrupts) -> Iterator[None]:
    """No other thread is in this block with the same model; the same thread may be, again."""
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper shares the module's modes
    with _locks_lock:
        lock = _locks.setdefault(model, threading.RLock())
    while not lock.acquire(timeout=0.1):
        interrupts.poll()
    try:
        yield
    finally:
        lock.release()

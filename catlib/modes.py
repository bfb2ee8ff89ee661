"""The mode in which a model is attacked and judged, and its way back."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def attack_mode(model: nn.Module, batch_norm: str = "eval") -> Iterator[None]:
    """Put a model in the mode in which it is attacked, and restore its own mode afterwards.

    Every submodule is in eval mode. With ``batch_norm="train"`` batch norms use the statistics of
    the batch instead, and store none.
    """
    modules = list(model.modules())
    norms = []
    if batch_norm == "train":
        norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    training = [module.training for module in modules]
    tracking = [norm.track_running_stats for norm in norms]
    try:
        for module in modules:
            module.training = False
        for norm in norms:
            norm.training = True
            norm.track_running_stats = False
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode
        for norm, track in zip(norms, tracking, strict=True):
            norm.track_running_stats = track

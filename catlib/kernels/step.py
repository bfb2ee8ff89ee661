"""A step of PGD as one graph: forward, gradient, ascent and projection, compiled by torch."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.torch_version import TorchVersion

# How many graphs torch may make of one function. By itself it makes 8, and then runs the function
# uncompiled, several times more slowly, without a word.
MOST_GRAPHS = 64

# Before this version a thread that Python starts could capture no CUDA graph.
CAPTURES_IN_ANY_THREAD = TorchVersion("2.13")

# A model of a known shape needs no new graph, but a new capture of it as a CUDA graph. After 128
# captures torch makes no more, which is silent too.
RUNS_BETWEEN_RESETS = 32


def compiled(function: Callable, device: torch.device) -> Any:
    """torch.compile for shapes that stay the same.

    On a GPU what it makes is captured once and replayed as a CUDA graph. A compiled module makes
    as many graphs as there are shapes; a compiled function does within :func:`a_graph_a_shape`.
    """
    replays = device.type == "cuda" and _can_capture()
    fast = torch.compile(function, dynamic=False, mode="reduce-overhead" if replays else None)
    if isinstance(fast, nn.Module) and fast is not function:  # it is, where compiling is disabled
        fast.forward = a_graph_a_shape()(fast.forward)
    return fast


def _can_capture() -> bool:
    """Whether torch can capture a CUDA graph in this thread."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread or TorchVersion(torch.__version__) >= CAPTURES_IN_ANY_THREAD


@contextmanager
def a_graph_a_shape() -> Iterator[None]:
    """Within it, torch compiles a function for every new shape, and never silently stops doing so.

    Raises: RuntimeError: a function has more than ``MOST_GRAPHS`` graphs.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    with config.patch(recompile_limit=MOST_GRAPHS, fail_on_recompile_limit_hit=True):
        try:
            yield
        except FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"torch has compiled {MOST_GRAPHS} graphs of one function, one for every shape of "
                "a batch, model and precision, and would run it uncompiled from here on. Use "
                "batches of fewer shapes, call torch.compiler.reset() when the old shapes are "
                "over, or set compile=False."
            ) from error


_compiled_runs = itertools.count(1)


def begin_compiled_run() -> bool:
    """Call it before a model is made that will be compiled, when many follow in one process.

    Now and then it forgets all graphs, before torch silently stops capturing them. It then returns
    True.
    """
    forgets = next(_compiled_runs) % RUNS_BETWEEN_RESETS == 0
    if forgets:
        torch.compiler.reset()
    return forgets


def _step(
    model: nn.Module, move: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    def loss(x: Tensor) -> Tensor:
        logits = model(x)
        if logits.dtype != torch.float64:
            logits = logits.float()
        return F.cross_entropy(logits, labels, reduction="sum")

    return move(images, torch.func.grad(loss)(images))


@contextmanager
def compiled_step(
    model: nn.Module, move: Callable[[Tensor, Tensor], Tensor], labels: Tensor
) -> Iterator[Callable[[Tensor], Tensor]]:
    """The step from adversarial images to better ones, as a compiled function of the images.

    Args:
        move: ``move(images, slope)`` goes up the slope of the loss and projects back. A number that
            it uses must be a tensor if it may change; any other value is a part of the graph.
    """
    step = compiled(_step, labels.device)

    def replay(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        moved = step(model, move, images, labels)
        return moved.clone()  # the next replay writes over what this one returned

    with a_graph_a_shape():
        yield replay if labels.is_cuda else lambda images: step(model, move, images, labels)

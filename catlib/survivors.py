"""Which images survive PGD, on a GPU: crafted in bfloat16, judged in float32.

The readable form is :meth:`catlib.PGD.attack_until_broken`, which does all in float32.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks import (
    PGD,
    Network,
    ascend,
    ball_around,
    check_batch,
    gradient_and_logits,
    has_finite_gradient,
    is_right,
    project,
)
from .interrupts import Interrupts
from .kernels.gpu import weights_cast_once
from .kernels.step import a_graph_a_shape
from .modes import attack_mode

JUDGED_AT_ONCE = 512  # images in a forward pass in float32


def survivors(
    attack: PGD,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    precision: str = "bfloat16",
    compile: bool = False,
) -> Tensor:
    """Which images PGD does not break, (B,) bool.

    The steps of the attack are computed in ``precision``. No verdict is: an image is broken only if
    the model in float32 misclassifies one of its iterates, and it survives only if the model in
    float32 is right on the image itself and on the last iterate of every restart. The iterates on
    the way are looked at in float32 where the attack's own pass finds them misclassified.

    Args:
        attack: with ``batch_norm="eval"``, as images share batches with others.
        generator: of the random starts, which are those of the readable form.
        batch_size: images in one pass of the attack.
        precision: "bfloat16" or "float32", in which it is the readable form's verdict.
        compile: take the gradient by one compiled graph. All batches then have ``batch_size``
            images, of which the last are fillers, so that no other graph is needed.

    Raises: ValueError, TypeError: an argument, or what the model returns, is outside what is
        written here. KeyboardInterrupt: Ctrl-C, between two batches.
    """
    if attack.batch_norm != "eval":
        raise ValueError(
            f"the attack's batch_norm is {attack.batch_norm!r}; images that share batches with "
            "others need 'eval'."
        )
    network = Network(model, check_batch(images, labels))
    labels = labels.long()
    mode = attack_mode(model)
    with torch.inference_mode(False), torch.no_grad(), mode as interrupts:
        slope_of = _Slope(network, precision, batch_size, compile, interrupts)
        alive = _is_right_in_float32(network, images, labels, interrupts)
        for _ in range(attack.restarts):
            start = attack._start(images, None, generator)
            ids = alive.nonzero().squeeze(1)
            x = start[ids]
            for _ in range(attack.steps):
                slope, suspect = slope_of(x, labels[ids])
                suspects = suspect.nonzero().squeeze(1)
                if len(suspects):
                    right = _stands(network, x[suspects], labels[ids[suspects]], interrupts)
                    alive[ids[suspects]] = right
                    left = alive[ids].nonzero().squeeze(1)
                    ids = ids[left]
                    x = x[left]
                    slope = slope[left]
                ball = ball_around(images[ids], attack.epsilon, attack.norm)
                x = project(ascend(x, slope, ball, attack._eta), ball)
            alive[ids] = _is_right_in_float32(network, x, labels[ids], interrupts)
        return alive


class _Slope:
    """The gradient of Eq. 2 for any number of images, and which of them the model misclassifies.

    Called with images (B, C, H, W) and labels (B,). Returns the gradient (B, C, H, W), and (B,)
    bool: True where the logits are of another class, or logits or gradient are not finite.
    """

    def __init__(
        self,
        network: Network,
        precision: str,
        batch_size: int,
        compile: bool,
        interrupts: Interrupts,
    ):
        self._network = network
        self._in_bfloat16 = precision == "bfloat16"
        self._batch_size = batch_size
        self._compile = compile
        self._interrupts = interrupts

    def __call__(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        count = len(x)
        if self._compile:
            fillers = -count % self._batch_size
            x = torch.cat([x, x.new_zeros(fillers, *x.shape[1:])])
            labels = F.pad(labels, (0, fillers))
        slope = torch.empty_like(x)
        suspect = torch.empty(len(x), dtype=torch.bool, device=x.device)
        device = x.device
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=self._in_bfloat16)
        guard = a_graph_a_shape() if self._compile else nullcontext()
        with autocast, guard, weights_cast_once(self._network.model, device):
            for part in self._interrupts.polled(_parts(len(x), self._batch_size)):
                gradient, logits = self._of_batch(x[part], labels[part])
                slope[part] = gradient
                suspect[part] = ~(is_right(logits, labels[part]) & has_finite_gradient(gradient))
        return slope[:count], suspect[:count]

    def _of_batch(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self._compile:
            return gradient_and_logits(self._network, x, labels)
        # no CUDA graph: one belongs to one model's memory, and evaluations may judge copies of it
        graph = torch.compile(_gradient_and_logits, dynamic=False)
        return graph(self._network.model, x, labels)


def _gradient_and_logits(
    model: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`catlib.attacks.gradient_and_logits` in a form that can be compiled."""

    def loss(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        if logits.dtype != torch.float64:
            logits = logits.float()
        return F.cross_entropy(logits, labels, reduction="sum"), logits

    slope, logits = torch.func.grad(loss, has_aux=True)(x)
    return slope, logits


def _stands(network: Network, x: Tensor, labels: Tensor, interrupts: Interrupts) -> Tensor:
    """Where the model in float32 is right, with a finite gradient, (B,)."""
    verdicts = []
    for part in interrupts.polled(_parts(len(x), JUDGED_AT_ONCE)):
        slope, logits = gradient_and_logits(network, x[part], labels[part])
        verdicts.append(is_right(logits, labels[part]) & has_finite_gradient(slope))
    return torch.cat(verdicts)


def _is_right_in_float32(
    network: Network, x: Tensor, labels: Tensor, interrupts: Interrupts
) -> Tensor:
    """Where the model in float32 is right, (B,)."""
    verdicts = [torch.zeros(0, dtype=torch.bool, device=x.device)]
    for part in interrupts.polled(_parts(len(x), JUDGED_AT_ONCE)):
        verdicts.append(is_right(network(x[part]), labels[part]))
    return torch.cat(verdicts)


def _parts(count: int, size: int) -> Iterator[slice]:
    for begin in range(0, count, size):
        yield slice(begin, begin + size)

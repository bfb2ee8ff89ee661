"""Cheap ways of adversarial training that a claim of speed must beat as well, and Eq. 2 misread.

PGD-2 and FGSM with a random start are :class:`catlib.PGD` with few steps. N-FGSM and free
adversarial training are not. :class:`BatchMean` is one reading of the printed Eq. 2, for the audit.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlib import PGD, Training
from catlib.memory import Recall
from catlib.modes import attack_mode


@dataclass(frozen=True)
class NFGSM:
    """N-FGSM (de Jorge et al., NeurIPS 2022): one signed step from a noisy start.

    The start is noisier than the ball is large, and the result is not projected back onto the ball.

    Args:
        epsilon: of the threat model, in units of images in [0, 1].
        step_size: None is epsilon.
        noise: the start is uniform in the ball of radius ``noise * epsilon``.
    """

    epsilon: float = 8 / 255
    step_size: float | None = None
    noise: float = 2.0

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        start = images + torch.empty_like(images).uniform_(-1, 1) * self.noise * self.epsilon
        with torch.enable_grad():
            loss = F.cross_entropy(model(start.requires_grad_()), labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, start)
        step = self.epsilon if self.step_size is None else self.step_size
        return (start.detach() + step * slope.sign()).clamp(0, 1)


@dataclass(frozen=True)
class BatchMean:
    """Eq. 2 exactly as printed, with the loss averaged over the batch, as losses are by default.

    It has no sign, no step size and no random start. An example's gradient is divided by the size
    of the batch, so the attack hardly moves. Only the audit of the paper's numbers asks for it.
    """

    epsilon: float = 8 / 255
    steps: int = 20

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        adversarial = images
        with attack_mode(model):
            for _ in range(self.steps):
                with torch.enable_grad():
                    adversarial = adversarial.detach().requires_grad_()
                    loss = F.cross_entropy(model(adversarial), labels)
                    (slope,) = torch.autograd.grad(loss, adversarial)
                moved = adversarial.detach() + slope
                adversarial = moved.clamp(images - self.epsilon, images + self.epsilon).clamp(0, 1)
        return adversarial


class FreeTraining(Training):
    """Free adversarial training (Shafahi et al., NeurIPS 2019).

    A batch is replayed ``attack.steps`` times in a row. The backward pass of an update gives the
    gradient of the images too, and the noise takes its next step by it. An iteration is one replay,
    and so costs one pass an image. The noise outlives the batch.

    Args:
        arguments: as of :class:`Training`; of the attack, a PGD, only ``epsilon``, ``steps`` and
            ``step_size`` are used. The published method steps by epsilon.
        augment: as of :class:`Training`; done once for all replays of a batch.
        options: as of :class:`Training`.

    Raises: ValueError: a memory or a budget, for which there is no use here.
    """

    attack: PGD

    def __init__(
        self,
        *arguments: Any,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        **options: Any,
    ) -> None:
        for name in ("memory", "budget"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{name} is given; free training carries its noise from batch to batch, and "
                    f"every replay is one step of it. Use {name}=None."
                )
        super().__init__(*arguments, **options)
        if self.ranks.count > 1:
            raise ValueError(
                f"free adversarial training runs in one process; here are {self.ranks.count} ranks."
            )
        self._augment_once = augment
        self._replayed: tuple[Tensor, Tensor, Tensor] | None = None
        self._replays = 0  # of the batch so far; 0 once all of them are made
        self._noise: Tensor | None = None

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._replayed is None or self._replays == 0:
            indices, images, labels = super()._draw()
            if self._augment_once:
                # here, not in every replay: the noise belongs to these very images
                self._generator.manual_seed(self._random_stream())
                images = self._augment_once(images, self._generator)
            self._replayed = indices, images, labels
        return self._replayed

    def _craft(
        self,
        images: Tensor,
        labels: Tensor,
        recall: Recall | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        if self._noise is None or len(self._noise) != len(images):
            # the first batch, or the sampling number was changed
            self._noise = torch.zeros_like(images)
        return (images + self._noise).clamp_(0, 1)

    def _update(
        self, images: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        result = super()._update(images, adversarial.requires_grad_(), labels)
        assert self._noise is not None and adversarial.grad is not None  # made by _craft, backward
        assert self.attack.step_size is not None, "a PGD has a step size"
        moved = self._noise + self.attack.step_size * adversarial.grad.sign()
        self._noise = moved.clamp_(-self.attack.epsilon, self.attack.epsilon)
        self._replays += 1
        if self._replays >= self.attack.steps:
            self._replays = 0
        adversarial.requires_grad_(False)
        adversarial.grad = None
        return result

    def state_dict(self) -> dict:
        own = {"replayed": self._replayed, "replays": self._replays, "noise": self._noise}
        return super().state_dict() | copy.deepcopy(own)

    def _load(self, state: dict) -> None:
        super()._load(state)
        self._replays = state["replays"]
        self._replayed = None
        if state["replayed"] is not None:
            indices, images, labels = state["replayed"]
            self._replayed = (
                indices.to(self.device),
                images.to(self.device),
                labels.to(self.device),
            )
        self._noise = None
        if state["noise"] is not None:
            self._noise = state["noise"].to(self.device)

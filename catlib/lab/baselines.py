"""Cheap adversarial training to hold CAT against: a claim of speed must beat these too. And one attack that is none.

PGD-2 and FGSM with random start are :class:`catlib.PGD` with few steps. These are not.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlib import Training


@dataclass(frozen=True)
class NFGSM:
    """N-FGSM (de Jorge et al., NeurIPS 2022): one signed step from a start with more noise than the ball, not projected back.

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
            slope = torch.autograd.grad(loss, start)[0]
        step = self.epsilon if self.step_size is None else self.step_size
        return (start.detach() + step * slope.sign()).clamp(0, 1)


@dataclass(frozen=True)
class BatchMean:
    """Eq. 2 exactly as printed, with the loss averaged over the batch, as losses are by default: no sign, no step size, no start.

    An example's gradient is then divided by the size of the batch, and the attack hardly moves. Only the audit asks for it.
    """

    epsilon: float = 8 / 255
    steps: int = 20

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        mode, adversarial = model.training, images
        model.eval()
        for _ in range(self.steps):
            with torch.enable_grad():
                adversarial = adversarial.detach().requires_grad_()
                slope = torch.autograd.grad(
                    F.cross_entropy(model(adversarial), labels), adversarial
                )[0]
            adversarial = (
                (adversarial.detach() + slope)
                .clamp(images - self.epsilon, images + self.epsilon)
                .clamp(0, 1)
            )
        model.train(mode)
        return adversarial


class FreeTraining(Training):
    """Free adversarial training (Shafahi et al., NeurIPS 2019): a batch is replayed ``attack.steps`` times in a row.

    The backward pass of an update gives the gradient of the images too, and the noise takes its next step by it.
    An iteration, one replay, thus costs one pass an image. The noise outlives the batch. ``attack`` is a PGD, of
    which only ``epsilon`` and ``steps`` are used.
    """

    def __init__(self, *arguments, augment=None, **options):
        super().__init__(*arguments, **options)
        self._augment_once, self._replayed, self._noise = augment, None, None

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.iteration % self.attack.steps == 0:
            indices, images, labels = super()._draw()
            if (
                self._augment_once
            ):  # here, not in every replay: the noise belongs to these very images
                self._generator.manual_seed(
                    int(np.random.SeedSequence((self.seed, self.iteration)).generate_state(1)[0])
                )
                images = self._augment_once(images, self._generator)
            self._replayed = indices, images, labels
        return self._replayed

    def _craft(self, images: Tensor, labels: Tensor) -> Tensor:
        if self._noise is None:
            self._noise = torch.zeros_like(images)
        return (images + self._noise).clamp_(0, 1)

    def _update(self, adversarial: Tensor, labels: Tensor, host: bool) -> tuple[Tensor, Tensor]:
        result = super()._update(adversarial.requires_grad_(), labels, host)
        epsilon = self.attack.epsilon
        self._noise = (self._noise + epsilon * adversarial.grad.sign()).clamp_(-epsilon, epsilon)
        adversarial.requires_grad_(False).grad = None
        return result

    def state_dict(self) -> dict:
        return super().state_dict() | {"replayed": self._replayed, "noise": self._noise}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._replayed = state["replayed"] and tuple(
            part.to(self.device) for part in state["replayed"]
        )
        self._noise = None if state["noise"] is None else state["noise"].to(self.device)

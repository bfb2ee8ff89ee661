"""What is measured of a model at the end of a long run: numbers by name, each a job of its own."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from catlib import Training, accuracy, robust_accuracy

from ..runs import Trial

Measurement = tuple[str, Callable[[], float]]
LOGIT_FACTORS = (0.1, 1, 10, 100)


class Rescaled(nn.Module):
    """A model with its logits multiplied by a factor.

    It decides as the model does. If PGD finds it much more or less robust, the gradients of one of
    the two under- or overflow, and its robust accuracy cannot be believed.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


def measurements(training: Training, trial: Trial, options: dict) -> Iterator[Measurement]:
    """Names, and functions that measure them on the model of ``training``.

    Args:
        options: of the piece; "tiny" measures on a few images, "autoattack_size" is the number of
            images that AutoAttack is given, in parts.

    Raises: ValueError: AutoAttack's images cannot be cut into parts of one size.
    """
    tiny = options["tiny"]
    model = training.model.eval()
    images, labels = training.data.test(slice(32 if tiny else None))
    restarts = 2 if tiny else 10
    judge = trial.judge(restarts)
    once = trial.judge(restarts=1)

    def robust_when_rescaled(factor: float) -> float:
        scaled = Rescaled(model, factor).eval()
        return robust_accuracy(scaled, images[:1000], labels[:1000], once)

    yield "accuracy", partial(accuracy, model, images, labels)
    yield f"pgd_20_{restarts}", partial(robust_accuracy, model, images, labels, judge)
    yield "worst_class_pgd_20", partial(worst_class, model, images, labels, once)
    yield "calibration_error", partial(calibration_error, model, images, labels)
    for factor in LOGIT_FACTORS:
        yield f"pgd_20_logits_x{factor:g}", partial(robust_when_rescaled, factor)
    size, part = (8, 4) if tiny else (options["autoattack_size"], 250)
    if size % part:
        raise ValueError(
            f"autoattack_size is {size}; it must be a multiple of {part}, "
            "so that AutoAttack's parts count alike."
        )
    for start in range(0, size, part):
        chosen = slice(start, start + part)
        attacked = partial(
            autoattack, model, images[chosen], labels[chosen], trial.epsilon, weak=tiny
        )
        yield f"autoattack_{start}", attacked


def worst_class(model: nn.Module, images: Tensor, labels: Tensor, attack: Callable) -> float:
    """The robust accuracy of the class in which it is lowest."""
    return min(
        robust_accuracy(model, images[labels == c], labels[labels == c], attack)
        for c in labels.unique()
    )


def autoattack(
    model: nn.Module, images: Tensor, labels: Tensor, epsilon: float, *, weak: bool = False
) -> float:
    """Accuracy under AutoAttack (Croce and Hein, ICML 2020).

    Args:
        weak: run only the first of its four attacks.
    """
    from pyautoattack import AutoAttack

    attack = AutoAttack(
        model,
        norm="Linf",
        eps=epsilon,
        device=images.device,
        seed=0,
        version="custom" if weak else "standard",
        attacks=["apgd-ce"] if weak else None,
    )
    adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=500)
    return accuracy(model, adversarial, labels)


def together(measured: dict[str, float]) -> dict[str, float]:
    """The measurements with AutoAttack's parts, which are of one size, as one number."""
    parts = [name for name in measured if name.startswith("autoattack_")]
    rest = {name: value for name, value in measured.items() if name not in parts}
    return rest | {"autoattack": sum(measured[name] for name in parts) / len(parts)}


@torch.no_grad()
def calibration_error(model: nn.Module, images: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: the gap between confidence and accuracy on clean images.

    Args:
        bins: examples are put into so many bins by their confidence; a bin's gap counts by its
            size.
    """
    predictions = torch.cat([model(part).softmax(1) for part in images.split(1000)])
    confidence, predicted = predictions.max(1)
    right = (predicted == labels).double()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    error = 0.0
    for number in bin_of.unique():
        inside = bin_of == number
        gap = abs(right[inside].mean() - confidence[inside].double().mean())
        error += gap.item() * inside.double().mean().item()
    return error

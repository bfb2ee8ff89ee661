"""Readings of an example's weight w (Eq. 4): how often it is drawn, how many steps it is worth.

The weight is negative where the model has been right on the adversarial examples, positive where
it has been wrong, and near 0 at the boundary between the two.

How often: an argument ``log_weight`` of :class:`catlib.CaseSampler`; without one a draw is in
proportion to exp(w / temperature), hopeless examples first. How many steps: an argument ``budget``
of :class:`catlib.Training`.
"""

import torch
from torch import Tensor

from .checks import check_count
from .gain import FIRST_WEIGHT


def standardised(weights: Tensor) -> Tensor:
    """The weights (n,) with mean 0 and standard deviation 1, whatever the scale of the logits."""
    return (weights - weights.mean()) / weights.std().clamp(min=1e-6)


def near_boundary(weights: Tensor) -> Tensor:
    """Log weights (n,) that favour a small |w|: examples neither long robust nor hopeless."""
    return -standardised(weights.abs())


def by_rank(weights: Tensor) -> Tensor:
    """Log weights (n,) of draws in proportion to the rank of w: 1 for the smallest, n at most."""
    ranks = weights.argsort().argsort() + 1.0
    return ranks.log()


def steps_near_boundary(weights: Tensor, most: int = 2) -> Tensor:
    """Steps of the attack for each example of a batch, (B,) int64, by its weight (B,).

    The batch is cut into ``most`` + 1 equal parts by |w|: the part nearest to the boundary gets
    ``most`` steps, the next one less, and the last none: examples that have long been robust or
    hopeless. That is ``most`` / 2 steps on average. An example that was never drawn gets so many
    itself, rounded up.

    Args:
        weights: (B,), w of Eq. 4, of the examples of a batch.
        most: steps of those nearest to the boundary.

    Raises: ValueError: ``most`` is no integer of at least 1.
    """
    check_count("most", most, at_least=1)
    place = weights.abs().argsort(stable=True).argsort()  # 0 is nearest to the boundary
    part = place * (most + 1) // max(len(weights), 1)
    return torch.where(weights == FIRST_WEIGHT, (most + 1) // 2, most - part)

"""The information gain (Eq. 3) and its exponential moving average (Eq. 4)."""

import torch
from torch import Tensor

from .checks import kind_of

FIRST_WEIGHT = 1.0  # w_0, of an example that was never drawn (Protocol 1, line 1)


def information_gain(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Eq. 3: $w = \max_{k \ne y} \log F(x+\delta)[k] - \log F(x+\delta)[y]$.

    F is the softmax of the logits. Its normaliser is the same in both terms, so the difference of
    the log-likelihoods is exactly that of the logits, and nothing can overflow. The gain is
    negative where the model is right; the larger it is, the less likely the true class.

    Args:
        logits: (B, K) with K > 1, on the adversarial examples. Half precision is raised to float32.
        labels: (B,), integers in 0..K-1.
    Returns: (B,), detached.
    Raises: TypeError, ValueError: what is no such logits or labels.
    """
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {kind_of(value)}; it must be a tensor.")
    fits = logits.ndim == 2 and logits.shape[1] > 1 and labels.shape == logits.shape[:1]
    if not fits or labels.is_floating_point():
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} {labels.dtype} "
            f"must be (B, K), K > 1, and (B,) integers."
        )
    classes = logits.shape[1]
    labels = labels.long()  # torch computes little with uint16, uint32 and uint64
    # On a GPU this check would wait for the device; there torch's own check of indices raises.
    check = labels.numel() > 0 and not labels.is_cuda
    if check and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels go from {labels.min()} to {labels.max()}; they must lie in 0..{classes - 1}."
        )
    logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    true_class = labels.unsqueeze(1)
    strongest_wrong = logits.scatter(1, true_class, -torch.inf).amax(1)
    true_logit = logits.gather(1, true_class).squeeze(1)
    return strongest_wrong - true_logit


def smooth(previous: Tensor, gain: Tensor, alpha: float) -> Tensor:
    r"""Eq. 4: $w_t = \alpha\,w_{t-1} + (1-\alpha)\,w$, for the examples that iteration t drew.

    Args:
        previous: $w_{t-1}$, any shape; half precision is raised to float32.
        gain: w of Eq. 3, of the same shape.
        alpha: in [0, 1]; 0 keeps the last gain alone, 1 never changes the weight.
    Raises: ValueError: alpha outside [0, 1], or shapes that differ.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie in [0, 1] (Eq. 4).")
    if previous.shape != gain.shape:
        raise ValueError(
            f"previous {tuple(previous.shape)} and gain {tuple(gain.shape)} "
            f"must have the same shape."
        )
    dtype = torch.promote_types(torch.promote_types(previous.dtype, gain.dtype), torch.float32)
    return alpha * previous.to(dtype) + (1 - alpha) * gain.to(dtype)

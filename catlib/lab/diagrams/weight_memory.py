"""The memory of Eq. 4: of what a weight is made after each draw, for two values of alpha."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIRST = "#c8c8c8"  # the part of w_0


def weight_memory(alphas: Sequence[float] = (0.5, 0.9), draws: int = 5) -> Figure:
    """One bar a draw, from 0 to 1: the shares of w_0 and of each gain in the weight.

    Args:
        alphas: of Eq. 4, one picture each.
        draws: the last draw that is shown.
    """
    figure, axes = plt.subplots(1, len(alphas), figsize=(9, 3.1), sharey=True, squeeze=False)
    for axis, alpha in zip(axes[0], alphas, strict=True):
        _draw(axis, alpha, draws)
    axes[0, 0].set_ylabel("after draw")
    return figure


def parts(alpha: float, draws: int) -> list[float]:
    """The shares of w_0 and of the gains of draws 1, 2, ... in a weight; they add up to 1."""
    first = alpha**draws
    gains = [(1 - alpha) * alpha ** (draws - number) for number in range(1, draws + 1)]
    return [first, *gains]


def _draw(axis: Axes, alpha: float, draws: int) -> None:
    shades = plt.get_cmap("Greens")
    for draw in range(draws + 1):
        left = 0.0
        for number, share in enumerate(parts(alpha, draw)):
            colour = FIRST if number == 0 else shades(0.25 + 0.7 * number / draws)
            axis.barh(draw, share, left=left, color=colour, edgecolor="white", height=0.8)
            if share > 0.05:
                name = "$w_0$" if number == 0 else f"gain {number}"
                _label(axis, left + share / 2, draw, name, share, dark=number > draws / 2)
            left += share
    axis.set(xlim=(0, 1), ylim=(draws + 0.5, -0.5), yticks=range(draws + 1))
    axis.set(title=f"α = {alpha}", xlabel="share of the weight")
    axis.grid(False)


def _label(axis: Axes, x: float, y: float, name: str, share: float, *, dark: bool) -> None:
    text = name if share > 0.11 else name.removeprefix("gain ")
    colour = "white" if dark else "black"
    axis.text(x, y, text, ha="center", va="center", fontsize=9, color=colour)

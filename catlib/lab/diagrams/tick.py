"""What a tick is: where a crossing is printed, and what may lie between two evaluations."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import PALETTE

GREEN = PALETTE[2]
PINK = PALETTE[3]


def tick() -> Figure:
    """Left: a crossing between two evaluations is printed at the later one. Right: two readings."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, 3), gridspec_kw={"width_ratios": [1, 1.25]}
    )
    _crossing(left)
    _readings(right)
    return figure


def _crossing(axis: Axes) -> None:
    """A curve that crosses a level between the evaluations 12 and 13."""
    ticks = np.arange(10, 16)
    across = np.linspace(9.6, 15.4, 200)
    level = 0.6

    def height(t):
        return 0.75 - 0.62 * np.exp(-(t - 9) / 2.4)

    axis.plot(across, height(across), color="#999999", linewidth=1.4)
    axis.plot(ticks, height(ticks), "o", color="black", markersize=5)
    axis.axhline(level, color=GREEN, linestyle="--", linewidth=1.2)
    axis.text(9.6, level + 0.015, "the level", color=GREEN, fontsize=9.5)
    first = ticks[height(ticks) >= level][0]
    axis.axvspan(first - 1, first, color=GREEN, alpha=0.15, linewidth=0)
    axis.annotate(
        f"crossed somewhere here,\nprinted as {first} ticks",
        (first, level),
        (first - 0.6, 0.3),
        fontsize=9.5,
        arrowprops={"arrowstyle": "-|>", "color": "black"},
    )
    axis.set(title="a crossing is known to one tick", xlabel="ticks", yticks=[], xticks=ticks)
    axis.set_ylabel("accuracy when evaluated")
    axis.grid(False)


def _readings(axis: Axes) -> None:
    """One tick of 342 seconds, filled with ten iterations or with an epoch of 391."""
    axis.set(xlim=(-0.2, 10.2), ylim=(-1.0, 4.4), title="CIFAR-10: what fills one tick of 342 s?")
    axis.axis("off")
    for bottom, colour, count, words in (
        (2.5, PINK, 10, "ten iterations, as section 3.2 says: 34 s each"),
        (0.3, GREEN, 391, "one epoch of 391 iterations: 0.9 s each"),
    ):
        edges = np.linspace(0, 10, count + 1)
        axis.fill_between([0, 10], bottom, bottom + 0.9, color=colour, alpha=0.25, linewidth=0)
        width = 1.2 if count < 50 else 0.25
        axis.vlines(edges, bottom, bottom + 0.9, color=colour, linewidth=width)
        axis.text(0, bottom + 1.05, words, fontsize=10)
        for end in (0, 10):
            axis.plot([end, end], [bottom - 0.25, bottom + 0.9], color="black", linewidth=1.6)
    axis.text(0, -0.55, "evaluation", ha="left", fontsize=9.5)
    axis.text(10, -0.55, "next evaluation", ha="right", fontsize=9.5)

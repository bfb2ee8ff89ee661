"""How old a weight is: what Fig. 1 compares, and what the sampler relies on."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import PALETTE

MEMORY = PALETTE[2]
NEIGHBOURS = "#555555"


def weight_age(first: int = 3, again: int = 25) -> Figure:
    """The iterations as a line, two of which draw the example; in between its weight stands still.

    Args:
        first: the iteration that drew the example before.
        again: the iteration that draws it now.
    """
    figure, axis = plt.subplots(figsize=(9, 2.4))
    axis.set(xlim=(-0.4, again + 2.4), ylim=(-1.6, 1.3))
    axis.axis("off")
    axis.plot([0, again + 2], [0, 0], color="#bbbbbb", linewidth=1.2)
    between = [t for t in range(again + 3) if t not in (first, again)]
    axis.plot(between, [0] * len(between), "|", color="#888888", markersize=9)
    axis.plot([first, again], [0, 0], "o", color=MEMORY, markersize=13)
    axis.text(first, 0.45, f"iteration {first}\ndraws the example", ha="center", va="bottom")
    axis.text(again, 0.45, f"iteration {again}\ndraws it again", ha="center", va="bottom")
    old = "the weight is not touched, while the model changes in every iteration"
    axis.text((first + again) / 2, 0.3, old, ha="center", va="bottom", fontsize=9, color="#555555")
    _span(axis, first, again, -0.55, MEMORY, f"the age of the weight: {again - first} iterations")
    _span(axis, again - 1, again, -0.55 - 0.75, NEIGHBOURS, "what Fig. 1 compares: 1 iteration")
    return figure


def _span(axis: Axes, start: float, end: float, height: float, colour: str, text: str) -> None:
    """A double arrow from one iteration to another; what it means stands below or left of it."""
    arrow = {"arrowstyle": "<|-|>", "color": colour, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (end, height), (start, height), arrowprops=arrow)
    if end - start > 5:
        middle = (start + end) / 2
        axis.text(middle, height - 0.08, text, ha="center", va="top", color=colour)
    else:
        axis.text(start - 0.4, height, text, ha="right", va="center", color=colour)

"""Protocol 1 of the paper as a loop around a memory: one weight for each training image."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from ..figures import PALETTE

TRAINING = "#555555"
MEMORY = PALETTE[2]
WIDTH = 2.5
HEIGHT = 1.3


def protocol() -> Figure:
    """Draw, attack, update the model, and below them the weights that line 6 changes, 3 reads."""
    figure, axis = plt.subplots(figsize=(9, 3.9))
    axis.set(xlim=(0, 10.9), ylim=(-3.1, 1.75))
    axis.set_aspect("equal")
    axis.axis("off")
    _box(axis, (0.2, 0), "line 3: draw", "a batch of images,\nby weight", TRAINING)
    _box(axis, (4.2, 0), "line 4: attack", "adversarial examples\nof the batch (Eq. 2)", TRAINING)
    _box(axis, (8.2, 0), "line 5: update", "one step of the model;\nits logits remain", TRAINING)
    _box(axis, (8.2, -2.9), "line 6: remember", "gain (Eq. 3), then\nnew weight (Eq. 4)", MEMORY)
    _arrow(axis, (0.2 + WIDTH, 0.65), (4.2, 0.65))
    _arrow(axis, (4.2 + WIDTH, 0.65), (8.2, 0.65))
    _arrow(axis, (9.45, 0), (9.45, -2.9 + HEIGHT))
    _weights(axis)
    _arrow(axis, (8.2, -2.25), (7.2, -2.25), MEMORY)
    axis.text(7.72, -2.05, "the drawn\nonly", ha="center", va="bottom", fontsize=9)
    _arrow(axis, (1.45, -1.75), (1.45, 0), MEMORY)
    axis.text(1.62, -0.85, "all weights decide", va="center", fontsize=9)
    return figure


def _weights(axis: Axes) -> None:
    """The memory: a row of cells, some of them renewed by this iteration."""
    values = ["-3.1", "1.0", "0.4", "-5.2", "1.0", "-1.7", "2.3", "…"]
    renewed = {2, 5}
    left = 0.4
    side = 0.85
    for place, value in enumerate(values):
        cell = Rectangle(
            (left + place * side, -2.65),
            side,
            0.85,
            facecolor="#cfe9df" if place in renewed else "white",
            edgecolor=MEMORY,
            linewidth=1.6,
        )
        axis.add_patch(cell)
        axis.text(
            left + (place + 0.5) * side,
            -2.225,
            value.replace("-", "\N{MINUS SIGN}"),
            ha="center",
            va="center",
            fontsize=10,
        )
    axis.text(
        left,
        -2.78,
        "the weights $w_t^1, w_t^2, …, w_t^n$, one for each image; line 1 sets all of them to 1",
        va="top",
        fontsize=9.5,
    )


def _box(axis: Axes, corner: tuple[float, float], title: str, text: str, colour: str) -> None:
    left, bottom = corner
    shape = FancyBboxPatch(
        corner,
        WIDTH,
        HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.15",
        facecolor="white",
        edgecolor=colour,
        linewidth=1.8,
    )
    axis.add_patch(shape)
    centre = left + WIDTH / 2
    axis.text(centre, bottom + 0.98, title, ha="center", va="center", fontsize=11, weight="bold")
    axis.text(centre, bottom + 0.44, text, ha="center", va="center", fontsize=9.5)


def _arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = TRAINING
) -> None:
    arrow = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=16,
        linewidth=1.8,
        color=colour,
        shrinkA=2,
        shrinkB=2,
    )
    axis.add_patch(arrow)

"""Adversarial training as a loop inside a loop, with what each turn of it costs."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ..figures import COLOURS

WIDTH = 2.6
HEIGHT = 1.5


def training_loop() -> Figure:
    """Three boxes: draw a batch, attack it (an inner loop), update the weights; and back again."""
    figure, axis = plt.subplots(figsize=(8.6, 3.2))
    axis.set(xlim=(0.1, 10.5), ylim=(-1.25, 2.75))
    axis.set_aspect("equal")
    axis.axis("off")
    boxes = {
        0.2: ("draw a batch", "images $x$ and classes $y$", "no pass"),
        4.0: ("attack it", "change δ so that\nthe loss grows", "$m$ passes an image"),
        7.8: ("update the model", "change θ so that\nthe loss shrinks", "1 pass an image"),
    }
    for left, texts in boxes.items():
        _box(axis, left, *texts)
    middle = HEIGHT / 2
    _arrow(axis, (0.2 + WIDTH, middle), (4.0, middle))
    _arrow(axis, (4.0 + WIDTH, middle), (7.8, middle))
    axis.text(7.2, middle + 0.15, "$x + δ$", ha="center", fontsize=11)
    # the inner loop stands above its box, the outer one runs below all three
    _arrow(axis, (5.9, HEIGHT), (4.7, HEIGHT), bend=1.1)
    axis.text(5.3, 2.25, "inner loop: $m$ steps,\nθ stands still", ha="center", fontsize=10)
    _arrow(axis, (7.8 + WIDTH / 2, 0), (0.2 + WIDTH / 2, 0), bend=-0.16)
    axis.text(
        5.3, -1.15, "outer loop: once an iteration, δ is thrown away", ha="center", fontsize=10
    )
    return figure


def _box(axis: Axes, left: float, title: str, text: str, cost: str) -> None:
    shape = FancyBboxPatch(
        (left, 0),
        WIDTH,
        HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.15",
        facecolor="white",
        edgecolor=COLOURS["AT"],
        linewidth=1.8,
    )
    axis.add_patch(shape)
    centre = left + WIDTH / 2
    axis.text(centre, HEIGHT - 0.3, title, ha="center", va="center", fontsize=11, weight="bold")
    axis.text(centre, HEIGHT - 0.78, text, ha="center", va="center", fontsize=9.5)
    axis.text(centre, 0.2, cost, ha="center", va="center", fontsize=9.5, style="italic")


def _arrow(axis: Axes, start, end, bend: float = 0.0) -> None:
    arrow = FancyArrowPatch(
        start,
        end,
        connectionstyle=f"arc3,rad={bend}",
        arrowstyle="-|>",
        mutation_scale=16,
        linewidth=1.6,
        color="black",
        shrinkA=2,
        shrinkB=2,
    )
    axis.add_patch(arrow)

"""The ball of allowed changes, and the projection back into it, in two dimensions."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from ..figures import PALETTE

STEP = PALETTE[3]
EPSILON = 1.0


def ball_and_projection() -> Figure:
    """Three drawings: the square ball, the round ball, and the square cut by the border of [0, 1].

    Each shows steps that leave the ball and where the projection puts them.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.7))
    _draw_square(axes[0])
    _draw_disc(axes[1])
    _draw_square_at_the_border(axes[2])
    for axis in axes:
        axis.set_aspect("equal")
        axis.set(xlim=(-1.75, 1.95), ylim=(-1.75, 1.95), xticks=[], yticks=[])
        axis.set(xlabel="pixel 1", ylabel="pixel 2")
        axis.grid(False)
    return figure


def _draw_square(axis: Axes) -> None:
    axis.set_title("$\\ell_\\infty$: each pixel is clipped")
    axis.add_patch(Rectangle((-1, -1), 2, 2, color="#eeeeee", ec="black", lw=2))
    _centre(axis, "$x$")
    _step(axis, (0.35, 0.5), (1.6, 0.9), (1.0, 0.9))
    _step(axis, (-0.45, 0.35), (-1.2, 1.7), (-1.0, 1.0))
    _step(axis, (-0.3, -0.45), (0.6, -0.75), (0.6, -0.75))
    axis.annotate("", (0, -1.25), (1, -1.25), arrowprops={"arrowstyle": "<->", "lw": 1.2})
    axis.text(0.5, -1.55, "ε", ha="center", fontsize=11)


def _draw_disc(axis: Axes) -> None:
    axis.set_title("$\\ell_2$: the change is shortened")
    axis.add_patch(Circle((0, 0), EPSILON, color="#eeeeee", ec="black", lw=2))
    _centre(axis, "$x$")
    for start, end in (((0.35, 0.3), (1.6, 0.9)), ((-0.35, 0.3), (-0.9, 1.6))):
        length = np.hypot(*end)
        _step(axis, start, end, (end[0] / length, end[1] / length))
    _step(axis, (-0.2, -0.35), (0.5, -0.7), (0.5, -0.7))
    axis.annotate("", (0, 0), (-0.8, -0.6), arrowprops={"arrowstyle": "<->", "lw": 1.2})
    axis.text(-0.52, -0.2, "ε", ha="center", fontsize=11)


def _draw_square_at_the_border(axis: Axes) -> None:
    axis.set_title("and the result stays an image")
    axis.add_patch(Rectangle((-1, -1), 2, 2, fill=False, ec="black", lw=1.2, ls=":"))
    axis.add_patch(Rectangle((-1, -1), 1.6, 2, color="#eeeeee", ec="black", lw=2))
    axis.axvspan(0.6, 1.95, color="#cccccc", alpha=0.55, lw=0)
    axis.text(1.28, -1.5, "above 1:\nno image", ha="center", va="center", fontsize=9)
    _centre(axis, "$x$")
    _step(axis, (0.2, 0.4), (1.5, 0.75), (0.6, 0.75))
    _step(axis, (-0.3, -0.3), (1.3, -1.25), (0.6, -1.0))


def _centre(axis: Axes, name: str) -> None:
    axis.plot(0, 0, "o", color="black", ms=7)
    axis.text(0.08, 0.08, name, fontsize=12)


def _step(axis: Axes, start, end, back) -> None:
    """A step from start to end, and the dashed way back into the ball where there is one."""
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": STEP})
    axis.plot(*start, "o", color=STEP, ms=5)
    if end != back:
        way = {"arrowstyle": "-|>", "lw": 1.6, "color": "black", "ls": "--"}
        axis.annotate("", back, end, arrowprops=way)
    axis.plot(*back, "s", color="black", ms=6)

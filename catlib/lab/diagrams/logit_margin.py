"""The information gain (Eq. 3) as the distance between two bars, for one image read rightly
and one misread.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import PALETTE

TRUE = PALETTE[2]
RIVAL = PALETTE[3]
OTHERS = "#c8c8c8"


def logit_margin() -> Figure:
    """Logits of two examples of class 1 as bars, and the gain as the way from one bar to another.

    On the left the model is right and the gain is negative, on the right the other way round.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    _draw(axes[0], [1.1, 4.2, 0.6, 2.0, -0.7])
    axes[0].set_title("read rightly: down to the rival, $w$ is negative")
    _draw(axes[1], [0.4, 1.2, 3.8, -0.5, 1.8])
    axes[1].set_title("misread: up to the rival, $w$ is positive")
    axes[0].set_ylabel("logit $z_k$")
    return figure


def _draw(axis: Axes, logits: list[float], true: int = 1) -> None:
    values = np.array(logits)
    rivals = np.where(np.arange(len(values)) == true, -np.inf, values)
    rival = int(rivals.argmax())
    colours = [OTHERS] * len(values)
    colours[true] = TRUE
    colours[rival] = RIVAL
    axis.bar(range(len(values)), values, color=colours, width=0.62)
    for place, name in ((true, "true\nclass"), (rival, "rival")):
        axis.text(place, 0.12, name, ha="center", va="bottom", fontsize=9, color="white")
    end = len(values) - 0.1
    for place in (true, rival):
        axis.hlines(values[place], place, end, color="black", linestyle=":", linewidth=1)
    way = {"arrowstyle": "-|>", "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (end, values[rival]), (end, values[true]), arrowprops=way)
    gain = values[rival] - values[true]
    height = (values[rival] + values[true]) / 2
    axis.text(end + 0.12, height, f"$w$ = {gain:+.1f}".replace("-", "\N{MINUS SIGN}"), va="center")
    axis.axhline(0, color="black", linewidth=1)
    axis.set(xlim=(-0.6, end + 1.1), xlabel="class $k$", xticks=range(len(values)))
    axis.grid(False)

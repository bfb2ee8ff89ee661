"""Gumbel-top-k with class balance: in each class, the largest of log weight plus noise win."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..figures import PALETTE

WINNER = PALETTE[2]
LOSER = "#999999"
CLASS_A = ((-0.4, 0.3), (0.8, -0.5), (1.9, 0.7), (0.1, 2.1), (-1.2, -0.3))
CLASS_B = ((-2.6, 1.2), (-3.4, 0.4), (-1.4, -0.8), (-2.0, 0.9), (-4.1, 1.6))


def gumbel_top_k(k: int = 2) -> Figure:
    """Two classes of five images: bars are log weights, arrows are noise, dots are the keys.

    Args:
        k: how many of each class are drawn.
    """
    figure, axis = plt.subplots(figsize=(9, 3.5))
    _draw_class(axis, 0, CLASS_A, k, "class A")
    _draw_class(axis, len(CLASS_A) + 1, CLASS_B, k, "class B")
    axis.axhline(0, color="black", linewidth=1)
    images = len(CLASS_A) + len(CLASS_B)
    places = [*range(len(CLASS_A)), *range(len(CLASS_A) + 1, images + 1)]
    axis.set(xticks=places, xticklabels=range(1, images + 1), xlim=(-0.7, images + 0.7))
    axis.set(xlabel="image", ylabel="log weight and key", ylim=(-4.9, 4.1))
    axis.legend(loc="upper right", fontsize=9)
    return figure


def _draw_class(axis: Axes, begin: int, pairs, k: int, name: str) -> None:
    log_weights, noise = np.array(pairs).T
    keys = log_weights + noise
    wins = keys >= np.sort(keys)[-k]
    places = begin + np.arange(len(keys))
    first = begin == 0
    bars = "$w / T$, the log weight" if first else None
    axis.bar(places, log_weights, color="#dddddd", width=0.55, label=bars)
    for place, low, key, wins_here in zip(places, log_weights, keys, wins, strict=True):
        colour = WINNER if wins_here else LOSER
        noisy = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 3}
        axis.annotate("", (place, key), (place, low), arrowprops=noisy)
    for mark, colour, text in ((wins, WINNER, "drawn"), (~wins, LOSER, "not drawn")):
        label = f"key = log weight + noise, {text}" if first else None
        axis.plot(places[mark], keys[mark], "o", color=colour, markersize=8, label=label)
    border = (np.sort(keys)[-k] + np.sort(keys)[-k - 1]) / 2
    axis.hlines(border, begin - 0.45, places[-1] + 0.45, color="black", linestyle="--", linewidth=1)
    middle = begin + (len(keys) - 1) / 2
    axis.text(middle, -4.75, f"{name}: the {k} largest keys", ha="center", fontsize=10)

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


def gumbel_top_k(k: int = 2, *, classes: int = 2) -> Figure:
    """Five images a class: bars are log weights, arrows are noise, dots are the keys.

    Args:
        k: how many of each class are drawn.
        classes: 1 or 2.
    """
    shown = (CLASS_A, CLASS_B)[:classes]
    figure, axis = plt.subplots(figsize=(2.4 + 3.3 * classes, 3.5))
    places: list[int] = []
    for number, pairs in enumerate(shown):
        begin = number * (len(pairs) + 1)  # a gap between the classes
        name = f"class {'AB'[number]}: " if classes > 1 else ""
        _draw_class(axis, begin, pairs, k, f"{name}the {k} largest keys are drawn")
        places += range(begin, begin + len(pairs))
    axis.axhline(0, color="black", linewidth=1)
    axis.set(xticks=places, xticklabels=range(1, len(places) + 1), xlim=(-0.7, places[-1] + 0.7))
    axis.set(xlabel="image", ylabel="log weight and key", ylim=(-5 if classes > 1 else -2.9, 5.3))
    axis.legend(loc="upper left", ncols=1 + classes, fontsize=9)
    return figure


def _draw_class(axis: Axes, begin: int, pairs, k: int, name: str) -> None:
    log_weights, noise = np.array(pairs).T
    keys = log_weights + noise
    wins = keys >= np.sort(keys)[-k]
    places = begin + np.arange(len(keys))
    first = begin == 0
    bars = "log weight $w / T$" if first else None
    axis.bar(places, log_weights, color="#dddddd", width=0.55, label=bars)
    for place, low, key, wins_here in zip(places, log_weights, keys, wins, strict=True):
        colour = WINNER if wins_here else LOSER
        noisy = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 3}
        axis.annotate("", (place, key), (place, low), arrowprops=noisy)
    for mark, colour, text in ((wins, WINNER, "drawn"), (~wins, LOSER, "not drawn")):
        label = f"key, {text}" if first else None
        axis.plot(places[mark], keys[mark], "o", color=colour, markersize=8, label=label)
    border = (np.sort(keys)[-k] + np.sort(keys)[-k - 1]) / 2
    axis.hlines(border, begin - 0.45, places[-1] + 0.45, color="black", linestyle="--", linewidth=1)
    middle = begin + (len(keys) - 1) / 2
    bottom = min(log_weights.min(), keys.min()) - 0.25
    axis.text(middle, bottom, name, ha="center", va="top", fontsize=10)

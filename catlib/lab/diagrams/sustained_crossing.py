"""What a sustained crossing of a level is, on a few evaluations of one run."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ..compare import reach
from ..figures import PALETTE

REACHED = PALETTE[2]
NOT_REACHED = "#666666"


def sustained_crossing(
    values: Sequence[float] = (0.83, 0.73, 0.82, 0.86), level: float = 0.8, tick: int = 5
) -> Figure:
    """The evaluations as points, and the mean of each with the next as a short bar between them.

    Under each point stands whether the level is reached there, and why.

    Args:
        values: robust accuracies, one an evaluation.
        level: that is to be reached, in [0, 1].
        tick: iterations between two evaluations.
    """
    iterations = [tick * (number + 1) for number in range(len(values))]
    run = pd.DataFrame({"iteration": iterations, "robust_accuracy": values})
    crossing = reach(run, level)
    when = None if crossing is None else crossing.iteration
    figure, axis = plt.subplots(figsize=(9, 3.6))
    low = min(*values, level) - 0.025
    high = max(*values, level) + 0.03
    axis.set(xlim=(iterations[0] - tick / 2, iterations[-1] + tick / 2), ylim=(low, high))
    axis.axhline(level, color="black", linewidth=1.2, linestyle="--")
    axis.text(iterations[0] - 0.48 * tick, level + 0.002, f"the level, {level:.0%}", va="bottom")
    axis.plot(iterations, values, color="#cccccc", linewidth=1.2, zorder=1)
    for number, (at, value) in enumerate(zip(iterations, values, strict=True)):
        colour = REACHED if at == when else NOT_REACHED
        axis.plot(at, value, "o", color=colour, markersize=10, zorder=3)
        axis.annotate(f"{value:.2f}", (at, value), (0, 10), textcoords="offset points", ha="center")
        if number + 1 < len(values):
            mean = (value + values[number + 1]) / 2
            ends = [at + 0.25 * tick, at + 0.75 * tick]
            axis.plot(ends, [mean, mean], color=colour, linewidth=3, zorder=2)
            place = (at + tick / 2, mean)
            text = f"mean {mean:.3f}"
            axis.annotate(text, place, (0, -14), textcoords="offset points", ha="center")
    labels = [
        f"{at}\n{_because(values, number, level, at == when)}"
        for number, at in enumerate(iterations)
    ]
    axis.set_xticks(iterations, labels)
    axis.set(xlabel="iteration of the evaluation", ylabel="robust accuracy")
    return figure


def _because(values: Sequence[float], number: int, level: float, first: bool) -> str:
    """Why the level is reached at this evaluation, or why not."""
    if first:
        return "reached here: it and\nits mean with the next\nare at the level or above"
    if values[number] < level:
        return "not reached:\nbelow the level"
    if number + 1 == len(values):
        return "the last one:\nit has no next"
    if (values[number] + values[number + 1]) / 2 < level:
        return "not reached: its mean\nwith the next is below"
    return "still at the level"

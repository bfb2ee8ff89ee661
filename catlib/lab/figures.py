"""One visual language: the colours, and how curves and tables are drawn. Nothing is computed here.

Records are tables with one row an evaluation, as :mod:`catlib.lab.compare` describes them.
"""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.ticker import EngFormatter

from .compare import COSTS, METRICS

# Okabe and Ito's palette, which colour-blind readers can tell apart; AT and CAT keep theirs
COLOURS = {"AT": "#0072B2", "CAT": "#D55E00"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def use_style() -> None:
    """Set matplotlib up for the notebooks: sizes for reading on a page, light grid, the palette."""
    plt.rcParams.update(
        {
            "figure.figsize": (7, 3.4),
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "image.cmap": "gray",
            "axes.prop_cycle": cycler(color=PALETTE),
        }
    )


def curves(
    records: pd.DataFrame,
    x: str = "iteration",
    metrics=tuple(METRICS),
    *,
    by: str = "arm",
    band: bool = True,
    colours=None,
    axes=None,
):
    """Mean over seeds as a line, least to most as a band, one axis a metric.

    Args:
        x: "iteration", "passes" or "seconds"; the last two are means over seeds at an iteration.
        by: the column that tells lines apart.
        band: whether the range over the seeds is drawn too.
        colours: value of ``by`` to colour; None takes :func:`colours_of`.
        axes: where to draw; None makes a figure.

    Returns: the axes.
    """
    if axes is None:
        _, axes = plt.subplots(1, len(metrics), figsize=(7.6, 3), sharey=True)
    axes = np.atleast_1d(axes)
    names = list(dict.fromkeys(records.sort_values(by)[by]))
    if colours is None:
        colours = colours_of(names)
    for axis, metric in zip(axes, metrics, strict=True):
        for name in names:
            runs = records[records[by] == name].dropna(subset=[metric]).groupby("iteration")
            at = runs[x].mean()
            value = runs[metric]
            axis.plot(at, value.mean(), color=colours[name], label=str(name))
            if band:
                low, high = value.min(), value.max()
                axis.fill_between(at, low, high, color=colours[name], alpha=0.18, linewidth=0)
        axis.set(xlabel=COSTS.get(x, x), title=METRICS.get(metric, metric), ylim=(0, 1))
        if x == "passes":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    title = None if by in ("arm", "method") else by.replace("_", " ")
    axes[0].legend(title=title, fontsize=9)
    return axes


def colours_of(names: list) -> dict:
    """A colour for every name: AT's and CAT's own, others from the palette; shades for numbers."""
    if pd.api.types.is_numeric_dtype(pd.Series(names)):
        shades = plt.get_cmap("viridis_r")(np.linspace(0.08, 0.95, len(names)))
        return dict(zip(names, shades, strict=True))
    spare = iter(PALETTE[2:] + PALETTE)
    return {name: COLOURS.get(name) or next(spare) for name in names}


def heat_map(table: pd.DataFrame, title: str = "", axis=None):
    """A table of numbers as colours with the number in each field: index downwards, columns across.

    Returns: the axis.
    """
    if axis is None:
        size = (1.6 + 0.8 * table.shape[1], 1.4 + 0.45 * table.shape[0])
        _, axis = plt.subplots(figsize=size)
    values = table.to_numpy(float)
    largest = np.nanmax(np.abs(values)) or 1
    decimals = max(0, 2 - math.floor(math.log10(largest)))  # three digits of the largest
    picture = axis.imshow(values, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "" if math.isnan(value) else f"{value:.{decimals}f}"
        colour = "white" if picture.norm(value) < 0.6 else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour)
    axis.set(
        xticks=range(table.shape[1]),
        xticklabels=table.columns,
        yticks=range(table.shape[0]),
        yticklabels=table.index,
        xlabel=table.columns.name or "",
        ylabel=table.index.name or "",
        title=title,
    )
    axis.grid(False)
    return axis

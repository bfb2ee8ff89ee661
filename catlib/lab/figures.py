"""One visual language: the colours, and how curves and tables are drawn. Nothing is computed here.

Records are tables with one row an evaluation, as :mod:`catlib.lab.compare` describes them.
"""

import io
import math
import sys
from weakref import WeakKeyDictionary

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from .compare import COSTS, METRICS

# Okabe and Ito's palette, which colour-blind readers can tell apart; AT and CAT keep theirs
COLOURS = {"AT": "#0072B2", "CAT": "#D55E00"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")

DPI = 144  # pixels that are stored for an inch of a figure
SHOWN_DPI = 72  # pixels of the page that an inch takes: half, so that fine screens show it sharply
_PALETTE_SIZES = (32, 64, 128)  # colours of a stored picture
# errors of a pixel that fewer colours may cost, on the mean and at worst, in steps of 256
_INVISIBLE = 0.5
_VISIBLE = 24
_DESCRIPTIONS: WeakKeyDictionary[Figure, str] = WeakKeyDictionary()  # figure to text alternative


def use_style() -> None:
    """Set matplotlib up for the notebooks: sizes for reading on a page, light grid, the palette.

    In IPython, figures are from then on stored as small PNG pictures; see :func:`picture`.
    """
    plt.rcParams.update(
        {
            "figure.figsize": (7, 3.4),
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
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
    _store_small_pictures()


def describe(text: str, figure: Figure | None = None) -> None:
    """Give a figure its text alternative: what is seen, for those who cannot see the picture.

    Call it in the cell that draws. The text is kept in the notebook beside the picture, and pages
    made from the notebook read it out (the ``alt`` of HTML); JupyterLab does not show it.

    Args:
        text: one sentence that says what is seen.
        figure: None is the current figure.
    """
    if figure is None:
        figure = plt.gcf()
    _DESCRIPTIONS[figure] = " ".join(text.split())


def picture(figure: Figure) -> tuple[bytes, dict] | None:
    """A figure as a notebook stores it: a PNG of few colours, and how it is to be shown.

    Returns: the PNG; and the width and height on the page with the text alternative of
        :func:`describe`, if it has one. None: the figure is empty.
    """
    from IPython.core.pylabtools import print_figure

    drawn = print_figure(figure)
    if drawn is None:
        return None
    image = Image.open(io.BytesIO(drawn))
    shown: dict[str, int | str] = {
        "width": round(image.width * SHOWN_DPI / figure.dpi),
        "height": round(image.height * SHOWN_DPI / figure.dpi),
    }
    if figure in _DESCRIPTIONS:
        shown["alt"] = _DESCRIPTIONS[figure]
    return small_png(image), shown


def small_png(image: Image.Image) -> bytes:
    """A picture as PNG with a palette of at most 128 colours: a third of the bytes or less.

    Every pixel takes the nearest colour of the palette. Half of the palette covers all colours
    that occur, so that a thin line keeps its colour; the other half follows how often they occur,
    so that gradients stay smooth. A drawing that looks the same with 32 or 64 colours gets no more.
    A picture with so few colours stays as it is, and so does one with transparent parts.
    """
    file = io.BytesIO()
    if image.mode == "RGBA" and np.asarray(image)[..., 3].min() < 255:
        image.save(file, "PNG", optimize=True)
        return file.getvalue()
    opaque = image.convert("RGB")
    pixels = np.asarray(opaque).reshape(-1, 3).astype(int)
    # one number for each colour: np.unique sorts numbers much faster than rows
    codes, colour_of_pixel, counts = np.unique(
        pixels @ [256 * 256, 256, 1], return_inverse=True, return_counts=True
    )
    colours = np.stack([codes // 256**2, codes // 256 % 256, codes % 256], axis=1)
    for size in _PALETTE_SIZES:
        palette = _palette(opaque, colours, size)
        nearest = _nearest(colours, palette)
        errors = np.sqrt(np.square(colours - palette[nearest]).mean(axis=1))
        if np.average(errors, weights=counts) < _INVISIBLE and errors.max() < _VISIBLE:
            break
    indices = nearest[colour_of_pixel]
    small = Image.fromarray(indices.reshape(opaque.height, opaque.width).astype(np.uint8), "P")
    small.putpalette(palette.astype(np.uint8).tobytes())
    small.save(file, "PNG", optimize=True)
    return file.getvalue()


def _palette(image: Image.Image, colours: np.ndarray, size: int) -> np.ndarray:
    """At most so many colours, rows of red, green and blue, that stand for those of the image."""
    if len(colours) <= size:
        return colours
    half = size // 2
    all_kinds = image.quantize(half, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    frequent = image.quantize(half, method=Image.Quantize.MEDIANCUT)
    both = (all_kinds.getpalette() or []) + (frequent.getpalette() or [])
    return np.array(both).reshape(-1, 3)


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """For each colour the row of the palette that is nearest to it."""
    rows = []
    for part in np.array_split(colours, len(colours) // 1000 + 1):  # little memory at a time
        distances = np.square(part[:, None] - palette).sum(axis=2)
        rows.append(distances.argmin(axis=1))
    return np.concatenate(rows)


def _store_small_pictures() -> None:
    """Have IPython, where it runs, store figures by :func:`picture`."""
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    # Loading the backend makes IPython register its own way, which would replace a way given before
    plt.switch_backend(plt.get_backend())
    shell.display_formatter.formatters["image/png"].for_type(Figure, picture)


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
                low = value.min()
                high = value.max()
                axis.fill_between(at, low, high, color=colours[name], alpha=0.18, linewidth=0)
        axis.set(xlabel=COSTS.get(x, x), title=METRICS.get(metric, metric), ylim=(0, 1))
        if x == "passes":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    title = None if by in ("arm", "method") else by.replace("_", " ")
    axes[0].legend(title=title, fontsize=9)
    return axes


def frontier(rows: pd.DataFrame, *, colours=None, axis=None):
    """Robust accuracy against passes, one line an arm, its t interval at each budget.

    Args:
        rows: of :func:`catlib.lab.frontier.by_budget`.
        colours: arm to colour; None takes :func:`colours_of`.
        axis: where to draw; None makes a figure.

    Returns: the axis.
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(7.6, 4))
    names = list(dict.fromkeys(rows.arm))
    if colours is None:
        colours = colours_of(names)
    markers = "osD^vP*Xhd"  # there are more arms than colours
    for place, name in enumerate(names):
        arm = rows[rows.arm == name].sort_values("passes")
        below = arm["mean"] - arm.low
        above = arm.high - arm["mean"]
        axis.errorbar(
            arm.passes,
            arm["mean"],
            yerr=[below.fillna(0), above.fillna(0)],
            color=colours[name],
            marker=markers[place % len(markers)],
            capsize=3,
            label=str(name),
        )
    axis.set(xscale="log", xlabel=COSTS["passes"], title=METRICS["robust_accuracy"])
    for which in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        which(EngFormatter(sep=""))
    axis.legend(fontsize=8)
    return axis


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

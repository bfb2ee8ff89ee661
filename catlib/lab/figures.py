"""One visual language: the colours, the curves and the tables of the paper, drawn from records.

Records are tables as :func:`catlib.lab.runs.read_records` gives them: one row an evaluation, with the columns
``method``, ``seed`` and whatever else tells runs apart. AT and CAT are paired by seed throughout.
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

from ..data import ROOT

# Okabe and Ito's palette, told apart by colour-blind readers too; AT and CAT look the same everywhere
COLOURS = {"AT": "#0072B2", "CAT": "#D55E00"}
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
COSTS = {
    "iteration": "iterations",
    "passes": "forward-backward passes",
    "seconds": "seconds of training",
}
METRICS = {"accuracy": "accuracy", "robust_accuracy": "robust accuracy"}

# Tables 1 and 2 as printed: percent reached -> what AT and CAT took; MNIST in seconds, CIFAR-10 in hours
PAPER = {
    "mnist": {
        "accuracy": {
            80: (166.4, 141.9),
            85: (192.0, 167.7),
            90: (243.2, 219.3),
            95: (396.8, 296.7),
        },
        "robust_accuracy": {
            60: (179.2, 167.7),
            70: (230.4, 219.3),
            80: (371.2, 335.5),
            90: (1075.2, 941.8),
        },
    },
    "cifar10": {
        "accuracy": {65: (1.33, 0.57), 70: (3.51, 0.76), 75: (7.31, 1.52), 80: (11.87, 4.66)},
        "robust_accuracy": {50: (0.85, 0.67), 55: (2.09, 1.33), 60: (7.50, 2.37)},
    },
}
PRINTED_TO = {"mnist": 0.1, "cifar10": 0.01}  # the last digit of those times


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
            "axes.prop_cycle": plt.cycler(color=PALETTE),
        }
    )


def reach(run: pd.DataFrame, level: float, metric: str = "robust_accuracy") -> pd.Series | None:
    """The first *sustained* crossing of a level by one run: the row of ``run``, or None where there is none.

    It is the first evaluation at or above the level from which the mean of it and the next evaluation is at or
    above it too, so one lucky evaluation does not count, and the last one, which has no next, never does.

    Args:
        run: the records of one run; rows that were not evaluated are left out.
        level: in [0, 1].
        metric: "accuracy" or "robust_accuracy".
    """
    run = run.dropna(subset=[metric]).sort_values("iteration")
    value = run[metric].to_numpy()
    crossed = (value[:-1] >= level) & ((value[:-1] + value[1:]) / 2 >= level)
    return run.iloc[crossed.argmax()] if crossed.any() else None


def costs(
    records: pd.DataFrame, level: float, metric: str = "robust_accuracy", by: str = "method"
) -> pd.DataFrame:
    """What every run took to reach a level: a row a run with ``by``, seed, iteration, passes, seconds; NaN if it did not."""
    rows = []
    for (name, seed), run in records.groupby([by, "seed"]):
        row = reach(run, level, metric)
        rows.append(
            {
                by: name,
                "seed": seed,
                **{cost: math.nan if row is None else row[cost] for cost in COSTS},
            }
        )
    return pd.DataFrame(rows)


def ratio_interval(
    first, second, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The geometric mean of first / second, pair by pair, and its bootstrap interval: (ratio, low, high).

    Pairs, that is seeds, are drawn with replacement, and the interval cuts equal tails off the resampled means.
    Pairs with a NaN or below zero are left out; NaN where none is left, and an interval of NaN where one is.
    With n pairs it lies beyond 1 by luck alone whenever all ratios fall on one side: at n = 3, one time in four.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"first {first.shape} and second {second.shape} must be pairs: two lists of the same length."
        )
    whole = (first > 0) & (second > 0)  # False for a NaN
    logs = np.log(first[whole]) - np.log(second[whole])
    if len(logs) < 2:
        return (math.exp(logs[0]) if len(logs) else math.nan), math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(len(logs), size=(resamples, len(logs)))
    tail = (1 - confidence) / 2
    # observed values as quantiles: on equal pairs the interval is exactly their ratio, without interpolation's rounding
    low, high = np.quantile(logs[drawn].mean(1), [tail, 1 - tail], method="nearest")
    return math.exp(logs.mean()), math.exp(low), math.exp(high)


def speed_table(
    records: pd.DataFrame,
    levels,
    metric: str = "robust_accuracy",
    cost: str = "iteration",
    *,
    by: str = "method",
    baseline: str = "AT",
    method: str = "CAT",
) -> pd.DataFrame:
    """Tables 1 and 2 of the paper from records: a row a level, what ``baseline`` and ``method`` took, and the ratio.

    Args:
        levels: in [0, 1].
        cost: "iteration", "passes" or "seconds", totals since the start of training.

    Returns: columns ``metric``, ``level`` (percent), ``cost``; for each of the two methods the mean over the seeds
        that reached the level, and ``<method> reached`` as "2/3"; ``ratio`` baseline / method with its ``low`` and
        ``high`` (:func:`ratio_interval`) over the ``pairs`` of seeds where both reached it. NaN where there is none.
    """
    rows = []
    for level in levels:
        table = (
            costs(records, level, metric, by)
            .pivot(index="seed", columns=by, values=cost)
            .reindex(columns=[baseline, method])
        )
        seeds = {
            name: records.loc[records[by] == name, "seed"].nunique() for name in (baseline, method)
        }
        ratio, low, high = ratio_interval(table[baseline], table[method])
        rows.append(
            {
                "metric": metric,
                "level": round(100 * level, 6),
                "cost": cost,
                baseline: table[baseline].mean(),
                method: table[method].mean(),
                **{
                    f"{name} reached": f"{table[name].notna().sum()}/{seeds[name]}"
                    for name in (baseline, method)
                },
                "ratio": ratio,
                "low": low,
                "high": high,
                "pairs": int(table.notna().all(axis=1).sum()),
            }
        )
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame, baseline: str = "AT", method: str = "CAT") -> pd.DataFrame:
    """A :func:`speed_table` for reading: rounded, ratio and interval in one column, "—" where a level was not reached."""

    def cell(value, reached):
        number = "—" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        whole = reached.split("/")[0] == reached.split("/")[1]
        return number if whole else f"{number} ({reached} seeds)"

    def ratio(row):
        if math.isnan(row.ratio):
            return "—"
        return f"{row.ratio:.2f}" + (
            "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
        )

    shown = pd.DataFrame({"level %": [f"{level:g}" for level in table.level]})
    for name in (baseline, method):
        shown[name] = [
            cell(*pair) for pair in zip(table[name], table[f"{name} reached"], strict=True)
        ]
    shown[f"{baseline}/{method}"] = [ratio(row) for row in table.itertuples()]
    return shown.set_index("level %")


def verdict(table: pd.DataFrame, baseline: str = "AT", method: str = "CAT") -> str:
    """Who was ahead in a :func:`speed_table`, and at how many levels the interval excludes 1: a computed sentence."""
    compared = table[table.ratio.notna()]
    if compared.empty:
        return f"No level was reached by both {baseline} and {method} on one seed, so nothing can be compared."
    ahead, behind, median = (
        (compared.ratio > 1).sum(),
        (compared.ratio < 1).sum(),
        compared.ratio.median(),
    )
    sure = compared[(compared.low > 1) | (compared.high < 1)]
    doubt = (
        "at no level does the 95 % interval exclude 1"
        if sure.empty
        else (
            f"the 95 % interval excludes 1 at {len(sure)}, in favour of {method} at {(sure.low > 1).sum()}"
        )
    )
    return (
        f"{method} was ahead of {baseline} at {ahead} of {len(compared)} levels, behind at {behind}, level at "
        f"{len(compared) - ahead - behind}; {doubt}; median ratio {baseline}/{method} {median:.2f}."
    )


def measured(name: str, folder: Path | None = None) -> pd.DataFrame | None:
    """The study's table ``data/results/<name>.csv``, its ``arm`` as ``method``; None where it is not measured yet.

    The lines above the table, which say where it is from, are in ``attrs["about"]``.
    """
    path = (folder or ROOT / "data" / "results") / f"{name}.csv"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("#")]
    table = pd.read_csv(path, skiprows=len(lines))
    table = table.drop(columns="method", errors="ignore").rename(
        columns={"arm": "method"}
    )  # an arm says more
    table.attrs["about"] = "\n".join(line.removeprefix("# ") for line in lines)
    return table


def paper_table(dataset: str, metric: str = "robust_accuracy") -> pd.DataFrame:
    """The paper's Table 1 (mnist) or 2 (cifar10), with each time also as a multiple of its column's tick."""
    printed = PAPER[dataset][metric]
    table = pd.DataFrame(printed, index=["AT", "CAT"]).T.rename_axis("level %")
    for column, name in enumerate(("AT", "CAT")):
        every = [times[column] for part in PAPER[dataset].values() for times in part.values()]
        table[f"{name} ticks"] = (
            (table[name] / common_tick(every, PRINTED_TO[dataset])).round().astype(int)
        )
    table["AT/CAT"] = (table.AT / table.CAT).round(2)
    return table


def common_tick(times, printed_to: float) -> float:
    """The largest unit of which every printed time is a whole multiple, to the rounding of its last digit.

    A unit of a few roundings would fit anything: below eight there is none, and NaN comes back.
    """
    times, rounding = np.asarray(times, float), printed_to / 2 * (1 + 1e-6)
    for multiple in range(1, int(times.min() / (8 * printed_to)) + 1):
        # the units for which the smallest time is this multiple; every other time narrows them
        low, high = (times.min() - rounding) / multiple, (times.min() + rounding) / multiple
        for time in np.sort(times):
            whole = round(time / ((low + high) / 2))
            low, high = max(low, (time - rounding) / whole), min(high, (time + rounding) / whole)
        if low <= high:
            return float((low + high) / 2)
    return math.nan


def curves(
    records: pd.DataFrame,
    x: str = "iteration",
    metrics=tuple(METRICS),
    *,
    by: str = "method",
    band: bool = True,
    colours=None,
    axes=None,
):
    """Mean over seeds as a line, least to most as a band (unless not ``band``), one axis a metric; the axes.

    Args:
        x: "iteration", "passes" or "seconds"; the last two are means over the seeds at each iteration.
        by: the column that tells lines apart.
        colours: value of ``by`` to colour; None takes AT's and CAT's, and a sequence of shades for numbers.
        axes: where to draw; None makes a figure.
    """
    axes = np.atleast_1d(
        plt.subplots(1, len(metrics), figsize=(7.6, 3), sharey=True)[1] if axes is None else axes
    )
    names = list(dict.fromkeys(records.sort_values(by)[by]))
    if colours is None:
        numbers = pd.api.types.is_numeric_dtype(records[by])
        shades = plt.get_cmap("viridis_r")(np.linspace(0.08, 0.95, len(names)))
        spare = iter(PALETTE[2:] + PALETTE)
        colours = (
            dict(zip(names, shades, strict=True))
            if numbers
            else {name: COLOURS.get(name) or next(spare) for name in names}
        )
    for axis, metric in zip(axes, metrics, strict=True):
        for name in names:
            runs = records[records[by] == name].dropna(subset=[metric]).groupby("iteration")
            at, value = runs[x].mean(), runs[metric]
            axis.plot(at, value.mean(), color=colours[name], label=str(name))
            if band:
                axis.fill_between(
                    at, value.min(), value.max(), color=colours[name], alpha=0.18, linewidth=0
                )
        axis.set(xlabel=COSTS.get(x, x), title=METRICS.get(metric, metric), ylim=(0, 1))
        if x == "passes":
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0].legend(title=None if by == "method" else by.replace("_", " "), fontsize=9)
    return axes


def heat_map(table: pd.DataFrame, title: str = "", axis=None):
    """A table of numbers as colours with the number in each field; index downwards, columns across; the axis."""
    axis = (
        axis or plt.subplots(figsize=(1.6 + 0.8 * table.shape[1], 1.4 + 0.45 * table.shape[0]))[1]
    )
    values = table.to_numpy(float)
    decimals = max(
        0, 2 - math.floor(math.log10(np.nanmax(np.abs(values)) or 1))
    )  # three digits of the largest
    picture = axis.imshow(values, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if picture.norm(value) < 0.6 else "black"
        axis.text(
            column,
            row,
            "" if math.isnan(value) else f"{value:.{decimals}f}",
            ha="center",
            va="center",
            color=colour,
        )
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

"""Pictures of the sampling number; live figures of what was recorded: grid, race, draws, frontier.

A live figure is made by plotly and needs no kernel: its slider and buttons work wherever the
script of plotly is loaded, as on a page of the course. Beside it in the same output stands a still
picture, for places that show no script.
"""

import base64
import itertools
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, ScalarFormatter

from . import frontier
from .compare import COSTS, METRICS, costs
from .figures import COLOURS, PALETTE, colours_of, curves, picture
from .figures import frontier as frontier_lines

PLOTLY = "application/vnd.plotly.v1+json"
ARMS = ("AT", "CAT")
TENTHS = list(range(1, 11))
TENTHS_OF = "tenth of the class, by weight"
PLACES = "% of the places"
MEDIAN = "all, median"
MEAN = "drawn, mean"


def small_multiples(
    records: pd.DataFrame, metrics: Sequence[str] = ("robust_accuracy",), title: str = ""
) -> Figure:
    """AT and CAT against iterations in a panel for every sampling number, a row for every metric.

    A line is the mean over seeds, its band reaches from the least to the most.

    Args:
        records: with the columns arm, seed, sampling_number, iteration and the metrics.
    """
    numbers = sorted(records.sampling_number.unique())
    figure, axes = plt.subplots(
        len(metrics),
        len(numbers),
        figsize=(min(7.6, 1.6 + 2.2 * len(numbers)), 0.7 + 1.4 * len(metrics)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, metric in zip(axes, metrics, strict=True):
        for axis, number in zip(row, numbers, strict=True):
            own = records[records.sampling_number == number]
            curves(own, metrics=(metric,), axes=axis)
            axis.get_legend().remove()
            axis.set(title="", xlabel="")
        row[0].set_ylabel(METRICS[metric])
    for axis, number in zip(axes[0], numbers, strict=True):
        axis.set_title(f"k = {number}")
    highest = records[list(metrics)].max(axis=None)
    axes[0, 0].set_ylim(0, _round_above(highest))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=9, loc="outside right upper")
    figure.supxlabel("iterations", fontsize=10)
    figure.suptitle(textwrap.fill(title, 55), fontsize=11)  # beside the legend
    return figure


def cost_of_level(
    records: pd.DataFrame, level: float, measures: Sequence[str] = tuple(COSTS)
) -> Figure:
    """What a robust accuracy cost at each sampling number, a panel for each measure of cost.

    A dot is a run. The line joins the means; it leaves out a sampling number at which a run did
    not reach the level, because the mean of the others would hide the slow ones.

    Args:
        level: in [0, 1].
        measures: "iteration", "passes" or "seconds".
    """
    numbers = sorted(records.sampling_number.unique())
    figure, axes = plt.subplots(1, len(measures), figsize=(2.45 * len(measures), 2.5))
    for arm, shift in zip(ARMS, (0.94, 1.06), strict=True):  # side by side, so that none is hidden
        own = records[records.arm == arm]
        took = costs(own, level, by="sampling_number").set_index("sampling_number")
        places = shift * took.index.to_numpy(float)
        for axis, cost in zip(axes, measures, strict=True):
            means = took[cost].groupby(level=0).apply(lambda each: each.mean(skipna=False))
            axis.plot(places, took[cost], "o", color=COLOURS[arm], alpha=0.45, markersize=4)
            axis.plot(shift * means.index, means, "-s", markersize=5, color=COLOURS[arm], label=arm)
    for axis, cost in zip(axes, measures, strict=True):
        axis.set_title(COSTS[cost].removeprefix("forward-backward "))
        axis.set(xlabel="sampling number k", ylim=(0, None))
        _numbers_across(axis, numbers)
        if cost == "passes":
            axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    if not any(np.isfinite(line.get_ydata()).any() for line in axes[0].get_lines()):
        axes[0].text(0.5, 0.5, "no run reached it", ha="center", transform=axes[0].transAxes)
    axes[0].legend()
    figure.suptitle(f"to reach {100 * level:g} % robust accuracy", fontsize=11)
    return figure


def _numbers_across(axis: Axes, numbers: Sequence[int]) -> None:
    """A logarithmic axis on which exactly the sampling numbers are marked."""
    axis.set_xscale("log", base=2)
    axis.set_xlim(0.8 * min(numbers), 1.25 * max(numbers))  # also where there is nothing to draw
    axis.set_xticks(numbers)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())


# ------------------------------------------------------------------ alpha and k, live


def explore_grid(grid: pd.DataFrame, alpha: float = 0.5) -> None:
    """Show the grid of alpha and sampling number: a live figure, and a still one in its place.

    Args:
        grid: records with the columns alpha, sampling_number, seed, iteration, passes and
            robust_accuracy.
        alpha: which one is shown at first, and in the still picture.
    """
    alt = f"Robust accuracy at alpha = {alpha:g}, a curve for each sampling number."
    alphas = sorted(grid.alpha.unique())
    _show(live_grid(grid, alpha), still_grid(grid, alpha), alt, _values("alpha", alphas))


def still_grid(grid: pd.DataFrame, alpha: float) -> Figure:
    """Robust accuracy at one alpha, a curve a sampling number, against iterations and passes.

    Only means over the seeds: five bands on top of each other could not be told apart.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.9), sharey=True)
    own = grid[grid.alpha == alpha]
    for axis, cost in ((left, "iteration"), (right, "passes")):
        curves(own, cost, ("robust_accuracy",), by="sampling_number", band=False, axes=axis)
        axis.set(title="", ylim=(0, _round_above(grid.robust_accuracy.max())))
        axis.get_legend().remove()
    right.set_xscale("log")
    left.set_ylabel(METRICS["robust_accuracy"])
    right.legend(title="k", fontsize=9, loc="upper left", bbox_to_anchor=(1, 1.05))
    figure.suptitle(f"CAT with alpha = {alpha:g}", fontsize=11)
    return figure


def live_grid(grid: pd.DataFrame, alpha: float = 0.5) -> go.Figure:
    """The same by plotly: a slider moves alpha, and buttons choose iterations or passes.

    A line is the mean over seeds, its band reaches from the least to the most.

    Raises: ValueError: the evaluations do not lie at equal distances.
    """
    shown = {value: grid[grid.alpha == value] for value in sorted(grid.alpha.unique())}
    return _live(shown, "sampling_number", alpha, "sampling number k")


# ------------------------------------------------------------------ a recorded race, live


def explore_race(race: pd.DataFrame, alpha: float = 0.5) -> None:
    """Show a recorded race of AT and CAT: a live figure, and a still one in its place.

    Args:
        race: records of AT, and of CAT at several alphas, with the columns method, alpha, seed,
            iteration, passes and robust_accuracy.
        alpha: of CAT, which one is shown at first, and in the still picture.
    """
    alt = f"Robust accuracy of AT and of CAT with alpha = {alpha:g} rises, recorded over seeds."
    _show(live_race(race, alpha), still_race(race, alpha), alt, _values("alpha", _alphas_of(race)))


def still_race(race: pd.DataFrame, alpha: float) -> Figure:
    """Robust accuracy of AT and of CAT at one alpha, against iterations."""
    figure, axis = plt.subplots(figsize=(5.6, 2.9))
    curves(_race_at(race, alpha), "iteration", ("robust_accuracy",), axes=axis)
    title = f"recorded, {race.seed.nunique()} seeds: alpha = {alpha:g}"
    axis.set(title=title, ylabel=METRICS["robust_accuracy"])
    axis.set_ylim(0, _round_above(race.robust_accuracy.max()))
    return figure


def live_race(race: pd.DataFrame, alpha: float = 0.5) -> go.Figure:
    """The same by plotly: a slider moves the alpha of CAT, and AT, which has none, stays.

    Raises: ValueError: the evaluations do not lie at equal distances.
    """
    shown = {value: _race_at(race, value) for value in _alphas_of(race)}
    of_at = 3  # lines
    return _live(shown, "arm", alpha, f"recorded, {race.seed.nunique()} seeds", unmoved=of_at)


def _alphas_of(race: pd.DataFrame) -> list[float]:
    return sorted(race[race.method == "CAT"].alpha.unique())


def _race_at(race: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """The records of AT and of CAT at one alpha, as the arms "AT" and "CAT"."""
    chosen = (race.method == "AT") | (race.alpha == alpha)
    return race[chosen].assign(arm=race.method)


# ------------------------------------------------------------------ recorded draws, live


def explore_draws(draws: pd.DataFrame, alpha: float = 0.5) -> None:
    """Show recorded draws of CAT: a live figure, and a still one in its place.

    Args:
        draws: a row for each drawn image, with the columns alpha, seed, image, label, weight, below
            (the share of its class's images that weigh less) and class_median (the median weight of
            its class).
        alpha: which one is shown at first, and in the still picture.
    """
    alt = (
        f"The recorded draws at alpha = {alpha:g}: how many places each tenth of a class gets, the "
        "lightest tenth first."
    )
    alphas = sorted(draws.alpha.unique())
    _show(live_draws(draws, alpha), still_draws(draws, alpha), alt, _values("alpha", alphas))


def still_draws(draws: pd.DataFrame, alpha: float) -> Figure:
    """Who is drawn at one alpha: how many places each tenth of a class gets, by weight."""
    who = _who_is_drawn(draws[draws.alpha == alpha])
    figure, axis = plt.subplots(figsize=(4.4, 2.2))  # small, as the lesson has many pictures
    axis.bar(TENTHS, who.places, color=COLOURS["CAT"])
    title = f"recorded, {draws.seed.nunique()} seeds: alpha = {alpha:g}"
    axis.set(xlabel=TENTHS_OF, ylabel=PLACES, xticks=TENTHS, title=title)
    return figure


def live_draws(draws: pd.DataFrame, alpha: float = 0.5) -> go.Figure:
    """The same by plotly: a slider moves alpha; a dot says which image of its class weighs most."""
    shown = {value: _who_is_drawn(own) for value, own in draws.groupby("alpha")}
    first = shown[alpha]
    figure = go.Figure(layout={"template": "none"})
    grey = "#808080"
    orange = to_hex(COLOURS["CAT"])
    bars = {"type": "bar", "x": TENTHS, "y": first.places, "showlegend": False}
    figure.add_trace(bars | {"marker": {"color": orange}, "hoverinfo": "y"})
    dots = {"type": "scatter", "mode": "markers", "x": first.classes, "xaxis": "x2", "yaxis": "y2"}
    median = {"name": MEDIAN, "marker": {"color": grey, "symbol": "diamond"}, "hoverinfo": "y"}
    figure.add_trace(dots | median | {"y": first.medians})
    mean = {"name": MEAN, "marker": {"color": orange, "size": 9}, "hoverinfo": "y+text"}
    figure.add_trace(dots | mean | {"y": first.means, "hovertext": first.heaviest})
    steps = []
    for value, who in shown.items():
        changed = {
            "y": [who.places, who.medians, who.means],
            "hovertext": [None, None, who.heaviest],
        }
        steps.append({"label": f"{value:g}", "method": "restyle", "args": [changed]})
    slider = {
        "active": list(shown).index(alpha),
        "currentvalue": {"prefix": "alpha = "},
        "pad": {"t": 55},
        "steps": steps,
    }
    every = list(shown.values())
    weights = [weight for who in every for weight in (*who.medians, *who.means)]
    most = max(max(who.places) for who in every)
    figure.update_layout(
        height=620,  # one panel below the other, which fits a phone as well
        margin={"l": 60, "r": 20, "t": 40, "b": 40},
        xaxis={"title": {"text": TENTHS_OF}, "dtick": 1},
        yaxis={"title": {"text": PLACES}, "domain": [0.6, 1], "range": [0, 1.05 * most]},
        xaxis2={"title": {"text": "class"}, "dtick": 1, "anchor": "y2", "zeroline": False},
        yaxis2={
            "title": {"text": "weight"},
            "domain": [0, 0.4],
            "range": [min(weights) - 1, max(weights) + 1],
            "zeroline": False,
        },
        legend={"title": {"text": f"recorded, {draws.seed.nunique()} seeds"}},
        sliders=[slider],
    )
    return figure


@dataclass(frozen=True)
class _WhoIsDrawn:
    """What the pictures of the draws at one alpha show."""

    places: list[float]  # in percent, of each tenth of the weights within a class, lightest first
    classes: list[int]
    medians: list[float]  # weight of all images of a class
    means: list[float]  # weight of the drawn images of a class
    heaviest: list[str]  # of each class, the drawn image that weighs most


def _who_is_drawn(own: pd.DataFrame) -> _WhoIsDrawn:
    tenth = (10 * own.below).astype(int).clip(upper=9)
    places = 100 * tenth.value_counts(normalize=True).reindex(range(10), fill_value=0)
    classes = own.groupby("label")
    heaviest = own.loc[classes.weight.idxmax()].image
    return _WhoIsDrawn(
        places=places.round(1).tolist(),
        classes=[int(label) for label in classes.groups],
        medians=classes.class_median.mean().round(2).tolist(),
        means=classes.weight.mean().round(2).tolist(),
        heaviest=[f"heaviest: image {image}" for image in heaviest],
    )


# ------------------------------------------------------------------ a frontier, live


def explore_frontier(table: pd.DataFrame) -> None:
    """Show a frontier: a live figure, whose slider asks for a level, and a still one in its place.

    Args:
        table: of a piece of kind "frontier", as :func:`catlib.lab.frontier.by_budget` takes it.
    """
    alt = "Robust accuracy of each way of training against its budget in passes, with intervals."
    levels = [100 * level for level in _levels_of(frontier.by_budget(table))]
    _show(live_frontier(table), still_frontier(table), alt, _values("level in %", levels))


def still_frontier(table: pd.DataFrame) -> Figure:
    """Robust accuracy against passes, a line an arm."""
    axis = frontier_lines(frontier.by_budget(table), colours=_frontier_colours(table))
    axis.set_title(f"robust accuracy at the end, {table.seed.nunique()} seeds")
    return axis.figure


def live_frontier(table: pd.DataFrame) -> go.Figure:
    """The same by plotly: a slider moves a level, and a mark says what each arm pays for it."""
    rows = frontier.by_budget(table)
    colours = _frontier_colours(table)
    figure = go.Figure(layout={"template": "none"})
    for arm, own in rows.groupby("arm", sort=False):
        above = own.high - own["mean"]
        below = own["mean"] - own.low
        figure.add_scatter(
            x=own.passes.round().tolist(),
            y=_three_digits(own["mean"]),
            error_y={"array": _three_digits(above), "arrayminus": _three_digits(below)},
            name=arm,
            line={"color": colours[arm], "width": 2.5},
            hoverinfo="x+y+name",
        )
    levels = _levels_of(rows)
    ends = [rows.passes.min(), rows.passes.max()]
    prices = {level: _prices(table, level, colours) for level in levels}
    first = len(levels) // 2
    line = {"color": "black", "width": 1, "dash": "dot"}
    figure.add_scatter(
        x=ends, y=2 * [levels[first]], mode="lines", line=line, hoverinfo="skip", showlegend=False
    )
    figure.add_scatter(**prices[levels[first]], mode="markers", hoverinfo="text", showlegend=False)
    moved = [len(figure.data) - 2, len(figure.data) - 1]
    steps = []
    for level, marks in prices.items():
        change = {name: [2 * [level] if name == "y" else ends, marks[name]] for name in ("x", "y")}
        change |= {"hovertext": ["", marks["hovertext"]], "marker": [{}, marks["marker"]]}
        step = {"label": f"{100 * level:.0f} %", "method": "restyle", "args": [change, moved]}
        steps.append(step)
    figure.update_layout(
        height=460,
        margin={"l": 60, "r": 20, "t": 30, "b": 40},
        xaxis={"title": {"text": COSTS["passes"]}, "type": "log", "gridcolor": "#dddddd"},
        yaxis={"title": {"text": METRICS["robust_accuracy"]}, "gridcolor": "#dddddd"},
        legend={"title": {"text": f"{table.seed.nunique()} seeds"}},
        sliders=[
            {
                "active": first,
                "currentvalue": {"prefix": "what does it cost to reach ", "suffix": "?"},
                "pad": {"t": 55},
                "steps": steps,
            }
        ],
    )
    return figure


def _levels_of(rows: pd.DataFrame) -> list[float]:
    """Every second percent between the lowest and the highest mean of a frontier."""
    lowest = math.ceil(50 * rows["mean"].min())
    highest = math.floor(50 * rows["mean"].max())
    return [level / 50 for level in range(lowest, highest + 1)]


def _prices(table: pd.DataFrame, level: float, colours: dict) -> dict:
    """Marks for the passes of the arms of which every seed reaches a level."""
    found = frontier.passes_for(table, level)
    marks: dict = {"x": [], "y": [], "hovertext": [], "marker": {"color": [], "symbol": []}}
    for arm, runs in found.groupby("arm", sort=False):
        if runs.passes.isna().any():
            continue
        passes = float(np.exp(np.log(runs.passes).mean()))
        bound = "at most " if runs.at_most.any() else ""
        marks["x"].append(round(passes))
        marks["y"].append(level)
        marks["hovertext"].append(f"{arm}: {bound}{passes:,.0f} passes")
        marks["marker"]["color"].append(colours[arm])
        marks["marker"]["symbol"].append("diamond-open" if bound else "diamond")
    marks["marker"]["size"] = 12
    return marks


def _frontier_colours(table: pd.DataFrame) -> dict[str, str]:
    """PGD-10 is plain AT and keeps its colour, the memory is pink; the others take what is left."""
    own = {frontier.STRONGEST: COLOURS["AT"], frontier.OURS: PALETTE[3]}
    spare = itertools.cycle([PALETTE[2], *PALETTE[4:]])
    return {name: own.get(name) or next(spare) for name in dict.fromkeys(table.arm)}


# ------------------------------------------------------------------ what they are made of


def _show(live: go.Figure, still: Figure, alt: str, slider: str) -> None:
    """Display a live figure and its still picture as one output, with the text for both.

    Args:
        slider: what its slider sets, and to which values.
    """
    stored = picture(still)
    plt.close(still)
    assert stored is not None, "a figure with axes is never empty"
    png, shown = stored
    shown["alt"] = alt
    bundle = {
        PLOTLY: json.loads(live.to_json()),
        "image/png": base64.b64encode(png).decode(),
        "text/plain": f"a figure with a slider: {slider}",
    }
    display(bundle, raw=True, metadata={"image/png": shown})


def _values(name: str, values: Sequence[float]) -> str:
    return f"{name} {', '.join(f'{value:g}' for value in values)}"


def _live(
    shown: dict[float, pd.DataFrame], by: str, alpha: float, legend: str, unmoved: int = 0
) -> go.Figure:
    """Robust accuracy by plotly, with a slider for alpha and buttons for the cost.

    Args:
        shown: the records to draw at each alpha.
        by: the column that tells the curves apart.
        alpha: the one that is shown at first.
        legend: its title.
        unmoved: so many of the first lines are the same at every alpha.
    """
    figure = go.Figure(layout={"template": "none"})  # the usual template is larger than the data
    for trace in _traces(shown[alpha], by):
        figure.add_trace(trace)
    steps = []
    for value, records in shown.items():
        heights = [trace["y"] for trace in _traces(records, by)]
        args: list = [{"y": heights[unmoved:]}]
        if unmoved:
            args.append(list(range(unmoved, len(heights))))
        steps.append({"label": f"{value:g}", "method": "restyle", "args": args})
    slider = {
        "active": list(shown).index(alpha),
        "currentvalue": {"prefix": "alpha = "},
        "pad": {"t": 55},
        "steps": steps,
    }
    highest = max(records.robust_accuracy.max() for records in shown.values())
    figure.update_layout(
        height=460,
        margin={"l": 60, "r": 20, "t": 60, "b": 40},
        xaxis={"title": {"text": COSTS["iteration"]}, "gridcolor": "#dddddd"},
        yaxis={
            "title": {"text": METRICS["robust_accuracy"]},
            "range": [0, _round_above(highest)],
            "gridcolor": "#dddddd",
        },
        legend={"title": {"text": legend}},
        sliders=[slider],
        updatemenus=[_cost_buttons(shown[alpha], by)],
    )
    return figure


def _traces(own: pd.DataFrame, by: str) -> list[dict]:
    """For each value of ``by`` three lines: the least over seeds, the most, and the mean."""
    names = sorted(own[by].unique())
    colours = colours_of(names)
    traces = []
    for name in names:
        runs = own[own[by] == name].groupby("iteration")
        colour = to_hex(colours[name])
        line = {
            "type": "scatter",
            "mode": "lines",
            **_places(runs.iteration.first()),
            "legendgroup": str(name),
            "hoverinfo": "skip",
            "showlegend": False,
        }
        edge = line | {"line": {"width": 0}}
        band = {"fill": "tonexty", "fillcolor": _see_through(colour)}
        shown = {
            "name": str(name),
            "line": {"color": colour, "width": 2.5},
            "hoverinfo": "x+y+name",
            "showlegend": True,
        }
        value = runs.robust_accuracy
        traces.append(edge | {"y": _three_digits(value.min())})
        traces.append(edge | band | {"y": _three_digits(value.max())})
        traces.append(line | shown | {"y": _three_digits(value.mean())})
    return traces


def _cost_buttons(own: pd.DataFrame, by: str) -> dict:
    """Two buttons that put iterations or passes on the axis below."""
    buttons = []
    for cost, scale in (("iteration", "linear"), ("passes", "log")):
        places: dict[str, list[float]] = {"x0": [], "dx": []}
        for _, part in own.groupby(by):
            across = _places(part.groupby("iteration")[cost].mean())
            for name in places:
                places[name] += 3 * [across[name]]  # of the least, the most and the mean
        axis = {
            "xaxis.title.text": COSTS[cost],
            "xaxis.type": scale,
            "xaxis.autorange": True,
        }
        label = f"against {COSTS[cost].removeprefix('forward-backward ')}"
        buttons.append({"label": label, "method": "update", "args": [places, axis]})
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "x": 0,
        "xanchor": "left",
        "y": 1.16,
        "yanchor": "top",
    }


def _places(values: pd.Series) -> dict[str, float]:
    """Evenly spaced values as the first one and a distance, which takes less room than a list."""
    distances = np.diff(values)
    if len(distances) == 0 or not np.allclose(distances, distances[0]):
        raise ValueError(
            f"the evaluations lie at {values.tolist()}; the live figure needs two or more of them "
            "at equal distances: train with one evaluate_every."
        )
    return {"x0": float(values.iloc[0]), "dx": float(distances[0])}


def _three_digits(values: pd.Series) -> list[float]:
    return values.round(3).tolist()


def _see_through(colour: str) -> str:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return f"rgba({red},{green},{blue},0.13)"


def _round_above(share: float) -> float:
    """A round height above an accuracy."""
    return float(np.ceil(10 * share + 0.2) / 10)

"""Every number that compares: what a level cost, ratios and differences with their intervals.

Records are tables with one row an evaluation. A column says which arm of a comparison a run belongs
to: ``arm`` in the tables of the study, ``method`` in those of :func:`catlib.lab.runs.read_records`;
functions take its name as ``by``. The runs of two arms are paired by the column ``seed``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .paper import EVALUATED_EVERY, paper_table
from .paths import RESULTS

COSTS = {
    "iteration": "iterations",
    "passes": "forward-backward passes",
    "seconds": "seconds of training",
}
METRICS = {
    "accuracy": "accuracy",
    "robust_accuracy": "robust accuracy",
}


# ------------------------------------------------------------------ reading


def measured(name: str, folder: Path | None = None) -> pd.DataFrame | None:
    """The study's table ``data/results/<name>.csv``; None where it is not measured yet.

    The lines above the table, which say where it is from, are in ``attrs["about"]``.
    """
    path = (folder or RESULTS) / f"{name}.csv"
    if not path.exists():
        return None
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    table = pd.read_csv(path, skiprows=len(lines))
    table.attrs["about"] = "\n".join(line.removeprefix("# ") for line in lines)
    return table


# ------------------------------------------------------------------ pairs of seeds


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs of seeds, and its 95 % interval; NaN where the pairs are too few for it."""

    value: float
    low: float
    high: float
    pairs: int

    def as_ratio(self, digits: int = 2) -> str:
        """For reading, as "1.05 [1.02, 1.07]"."""
        if math.isnan(self.value):
            return "not reached by both"
        if math.isnan(self.low):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def as_points(self) -> str:
        """A difference of accuracies in percentage points, as "-1.8 [-2.9, -0.7]"."""
        if math.isnan(self.low):
            return _points(self.value)
        return f"{_points(self.value)} [{_points(self.low)}, {_points(self.high)}]"


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: never "-0.0"


def ratio(first: ArrayLike, second: ArrayLike) -> Estimate:
    """The geometric mean of first / second, pair by pair, and its interval.

    Args:
        first, second: of the same length. Pairs with a NaN or without a positive value are left
            out; the value is NaN where no pair is left, and the interval where one is.

    Raises: ValueError: the two are not pairs.
    """
    above = np.asarray(first, float)
    below = np.asarray(second, float)
    if above.shape != below.shape or above.ndim != 1:
        raise ValueError(
            f"first {above.shape} and second {below.shape} must be pairs: "
            "two lists of the same length."
        )
    whole = (above > 0) & (below > 0)  # False for a NaN
    logarithms = mean_interval(np.log(above[whole]) - np.log(below[whole]))
    return Estimate(
        math.exp(logarithms.value),
        math.exp(logarithms.low),
        math.exp(logarithms.high),
        logarithms.pairs,
    )


def difference(first: pd.Series, second: pd.Series) -> Estimate:
    """The mean of first - second over the seeds that are in the index of both, and its interval."""
    first, second = first.align(second, join="inner")
    return mean_interval((first - second).dropna())


def mean_interval(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """The mean of values, one a pair, and its percentile bootstrap interval.

    Values are drawn with replacement, and the interval cuts equal tails off the resampled means.
    With n pairs it lies beyond 0 by luck alone whenever all values fall on one side: at n = 3, one
    time in four.
    """
    each = np.asarray(values, float)
    count = len(each)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if count == 1:
        return Estimate(float(each[0]), math.nan, math.nan, 1)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    tail = (1 - confidence) / 2
    # Observed values as quantiles: equal values give an interval without interpolation's rounding.
    low, high = np.quantile(each[drawn].mean(axis=1), [tail, 1 - tail], method="nearest")
    return Estimate(float(each.mean()), float(low), float(high), count)


# ------------------------------------------------------------------ what a level cost


def reach(run: pd.DataFrame, level: float, metric: str = "robust_accuracy") -> pd.Series | None:
    """The first *sustained* crossing of a level by one run: the row of ``run``, or None.

    It is the first evaluation at or above the level from which the mean of it and the next
    evaluation is at or above it too. So one lucky evaluation does not count, and the last one,
    which has no next, never does.

    Args:
        run: the records of one run; rows that were not evaluated are left out.
        level: in [0, 1].
        metric: "accuracy" or "robust_accuracy".
    """
    run = run.dropna(subset=[metric]).sort_values("iteration")
    value = run[metric].to_numpy()
    crossed = (value[:-1] >= level) & ((value[:-1] + value[1:]) / 2 >= level)
    if not crossed.any():
        return None
    return run.iloc[crossed.argmax()]


def costs(
    records: pd.DataFrame, level: float, metric: str = "robust_accuracy", by: str = "arm"
) -> pd.DataFrame:
    """What every run took to reach a level: a row a run with ``by``, seed and the three costs.

    The costs are NaN where the run did not reach the level.
    """
    rows = []
    for (name, seed), run in records.groupby([by, "seed"]):
        row = reach(run, level, metric)
        took = dict.fromkeys(COSTS, math.nan) if row is None else row[list(COSTS)].to_dict()
        rows.append({by: name, "seed": seed, **took})
    return pd.DataFrame(rows)


def speed_table(
    records: pd.DataFrame,
    levels: Sequence[float],
    metric: str = "robust_accuracy",
    cost: str = "iteration",
    *,
    by: str = "arm",
    baseline: str = "AT",
    arm: str = "CAT",
) -> pd.DataFrame:
    """Tables 1 and 2 of the paper from records: a row a level, what two arms took, and the ratio.

    Args:
        levels: in [0, 1].
        cost: "iteration", "passes" or "seconds", totals since the start of training.

    Returns: columns ``metric``, ``level`` (percent), ``cost``; for each of the two arms the mean
        over the seeds that reached the level, and ``<arm> reached`` as "2/3"; ``ratio`` baseline /
        arm with its ``low`` and ``high`` over the ``pairs`` of seeds where both reached it. NaN
        where there is none.
    """
    rows = []
    for level in levels:
        table = costs(records, level, metric, by).pivot(index="seed", columns=by, values=cost)
        table = table.reindex(columns=[baseline, arm])
        row = {"metric": metric, "level": round(100 * level, 6), "cost": cost}
        row |= {name: table[name].mean() for name in (baseline, arm)}
        for name in (baseline, arm):
            seeds = records.loc[records[by] == name, "seed"].nunique()
            row[f"{name} reached"] = f"{table[name].notna().sum()}/{seeds}"
        estimate = ratio(table[baseline], table[arm])
        row |= {"ratio": estimate.value, "low": estimate.low, "high": estimate.high}
        row["pairs"] = estimate.pairs
        rows.append(row)
    return pd.DataFrame(rows)


def readable(table: pd.DataFrame, baseline: str = "AT", arm: str = "CAT") -> pd.DataFrame:
    """A :func:`speed_table` for reading: rounded, ratio and interval in one column.

    A dash stands where a level was not reached.
    """
    shown = pd.DataFrame({"level %": [f"{level:g}" for level in table.level]})
    for name in (baseline, arm):
        cells = zip(table[name], table[f"{name} reached"], strict=True)
        shown[name] = [_cost(value, reached) for value, reached in cells]
    shown[f"{baseline}/{arm}"] = [
        "—" if math.isnan(row.ratio) else estimate_of(row).as_ratio() for row in table.itertuples()
    ]
    return shown.set_index("level %")


def _cost(value: float, reached: str) -> str:
    """A mean cost, and how many seeds reached the level where not all of them did."""
    if math.isnan(value):
        number = "—"
    elif value >= 100:
        number = f"{value:,.0f}"
    else:
        number = f"{value:.3g}"
    some, all_seeds = reached.split("/")
    if some == all_seeds:
        return number
    return f"{number} ({reached} seeds)"


def estimate_of(row) -> Estimate:
    """The ratio of one row of a :func:`speed_table`."""
    return Estimate(row.ratio, row.low, row.high, int(row.pairs))


def who_was_ahead(table: pd.DataFrame, baseline: str = "AT", arm: str = "CAT") -> str:
    """Who was ahead in a :func:`speed_table`, and at how many levels the interval excludes 1."""
    compared = table[table.ratio.notna()]
    if compared.empty:
        return (
            f"No level was reached by both {baseline} and {arm} on one seed, "
            "so nothing can be compared."
        )
    ahead = (compared.ratio > 1).sum()
    behind = (compared.ratio < 1).sum()
    level = len(compared) - ahead - behind
    favours = (compared.low > 1).sum()
    sure = favours + (compared.high < 1).sum()
    doubt = "at no level does the 95 % interval exclude 1"
    if sure:
        doubt = f"the 95 % interval excludes 1 at {sure}, in favour of {arm} at {favours}"
    return (
        f"{arm} was ahead of {baseline} at {ahead} of {len(compared)} levels, behind at {behind}, "
        f"level at {level}; {doubt}; median ratio {baseline}/{arm} {compared.ratio.median():.2f}."
    )


def overall(
    records: pd.DataFrame,
    levels: Sequence[float],
    metric: str = "robust_accuracy",
    cost: str = "iteration",
    baseline: str = "AT",
    arm: str = "CAT",
    *,
    by: str = "arm",
) -> Estimate:
    """One ratio baseline / arm for several levels.

    For each seed it is the geometric mean over the levels that both arms reached; then the mean
    over seeds and its interval as ever.

    Args:
        levels: in [0, 1].
    """
    of_levels = []
    for level in levels:
        table = costs(records, level, metric, by).pivot(index="seed", columns=by, values=cost)
        of_levels.append(np.log(table[baseline]) - np.log(table[arm]))
    of_seeds = pd.concat(of_levels, axis=1).mean(axis=1).dropna()
    return ratio(np.exp(of_seeds), np.ones(len(of_seeds)))


# ------------------------------------------------------------------ where runs ended


def ends(records: pd.DataFrame, by: str = "arm") -> pd.DataFrame:
    """The last row of every run, by arm and seed."""
    return records.sort_values("iteration").groupby([by, "seed"]).last()


def percent(values: pd.Series) -> str:
    """Mean and standard deviation over seeds, as "83.5 % ± 1.0"."""
    return f"{100 * values.mean():.1f} % ± {100 * values.std():.1f}"


# ------------------------------------------------------------------ what an interval says


def judged(estimate: Estimate, above: str, below: str, *, null: float = 0) -> str:
    """What an interval says: above the null, below it, or nothing.

    With few seeds all of them fall on one side by luck easily, and the words say so.
    """
    if estimate.pairs < 3 or math.isnan(estimate.low):
        return "too few seeds to say"
    if estimate.low <= null <= estimate.high:
        return "no difference shown"
    word = above if estimate.low > null else below
    if estimate.pairs < 5:
        return f"{word} ({estimate.pairs} seeds: a lead, no proof)"
    return word


def faster(estimate: Estimate) -> str:
    """What the interval of a ratio AT / CAT says."""
    return judged(estimate, "CAT faster", "CAT slower", null=1)


# ------------------------------------------------------------------ the audit


def audit(records: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Which robust accuracies of the paper are reached within the iterations that it prints?

    One statistic decides: the median over seeds of the best robust accuracy that a run had within
    the printed iterations. It is at the level or above it where at least half of the seeds were.

    Args:
        records: with the column ``arm``; the name of an arm begins with the method, "AT" or "CAT",
            which says whose printed iterations count.
        dataset: "mnist" or "cifar10".

    Returns: a row an arm and printed level: arm, level (percent), iterations; the statistic on test
        images and on training batches as ``test`` and ``training``; ``reached on test`` and
        ``reached in training``.
    """
    printed = paper_table(dataset)
    rows = []
    for arm, runs in records.groupby("arm", sort=False):
        method = arm.split(",")[0]
        for level, row in printed.iterrows():
            within = int(row[f"{method} ticks"]) * EVALUATED_EVERY[dataset]
            allowed = runs[runs.iteration <= within]
            best = allowed.groupby("seed")[["robust_accuracy", "batch_accuracy"]].max().median()
            rows.append(
                {
                    "arm": arm,
                    "level": level,
                    "iterations": within,
                    "test": best.robust_accuracy,
                    "training": best.batch_accuracy,
                    "reached on test": best.robust_accuracy >= level / 100,
                    "reached in training": best.batch_accuracy >= level / 100,
                }
            )
    return pd.DataFrame(rows)

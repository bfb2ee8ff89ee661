"""The frontier: how robust a method gets for a budget of passes, and what a level costs each.

A table of a piece of kind "frontier" has a row an arm, budget and seed (catlib.lab.study). Two arms
are compared by the passes that each needs for the same robust accuracy, seed by seed.
"""

import math

import numpy as np
import pandas as pd

from .compare import mean_interval, ratio

METRIC = "final_robust_accuracy"


def by_budget(table: pd.DataFrame, metric: str = METRIC) -> pd.DataFrame:
    """Where each arm stands at each budget: the mean over seeds and its t interval.

    Args:
        table: of a frontier, with the columns arm, seed, budget, passes and the metric.
        metric: a column of accuracies in [0, 1].

    Returns: a row an arm and budget, arms in the order of the table: arm, budget, passes (the mean
        of what was spent), mean, low, high, seeds (how many have the metric). NaN where no seed
        has it, and of the interval where one alone has.
    """
    rows = []
    for (arm, budget), runs in table.groupby(["arm", "budget"], sort=False):
        values = runs[metric].dropna()
        estimate = mean_interval(values)
        rows.append(
            {
                "arm": arm,
                "budget": budget,
                "passes": runs.passes.mean(),
                "mean": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "seeds": len(values),
            }
        )
    order = {arm: place for place, arm in enumerate(dict.fromkeys(table.arm))}
    return pd.DataFrame(rows).sort_values(
        ["arm", "budget"], key=lambda one: one.map(order) if one.name == "arm" else one
    )


def passes_for(table: pd.DataFrame, level: float, metric: str = METRIC) -> pd.DataFrame:
    """The passes after which each arm and seed has a robust accuracy: a row an arm and seed.

    Between two budgets the accuracy is taken to grow evenly with the logarithm of the passes. The
    first crossing counts.

    Args:
        table: as of :func:`by_budget`.
        level: in [0, 1].
        metric: a column of accuracies in [0, 1].

    Returns: arm, seed, passes, and at_most: True where the smallest budget has reached the level
        already, so that these passes are an upper bound. NaN where no budget reaches the level.
    """
    rows = []
    for (arm, seed), runs in table.groupby(["arm", "seed"], sort=False):
        runs = runs.dropna(subset=[metric]).sort_values("passes")
        passes = runs.passes.to_numpy(float)
        values = runs[metric].to_numpy(float)
        at_most = len(values) > 0 and values[0] >= level
        needed = passes[0] if at_most else _crossing(passes, values, level)
        rows.append({"arm": arm, "seed": seed, "passes": needed, "at_most": at_most})
    return pd.DataFrame(rows)


def _crossing(passes: np.ndarray, values: np.ndarray, level: float) -> float:
    for place in range(1, len(values)):
        before = values[place - 1]
        after = values[place]
        if before < level <= after:
            low, high = np.log(passes[place - 1 : place + 1])
            share = (level - before) / (after - before)
            return math.exp(low + share * (high - low))
    return math.nan


def ratios(table: pd.DataFrame, level: float, baseline: str, metric: str = METRIC) -> pd.DataFrame:
    """How many times as many passes the baseline needs as each arm, for the same robust accuracy.

    Args:
        table: as of :func:`by_budget`.
        level: of robust accuracy, in [0, 1].
        baseline: the arm whose passes are divided.
        metric: a column of accuracies in [0, 1].

    Returns: a row an arm but the baseline: arm; passes, the geometric mean over the seeds that
        reached the level; reached, as "7/8", and at_most, how many of these had it at the smallest
        budget already; ratio baseline / arm with low, high and p over the pairs of seeds (t
        interval of the logarithm). A pair is left out where one of the two did not reach the
        level, or had it at the smallest budget, since its passes are not known then.
    """
    found = passes_for(table, level, metric)
    known = found.passes.where(~found.at_most)
    by_seed = found.assign(known=known).pivot(index="seed", columns="arm", values="known")
    rows = []
    for arm in dict.fromkeys(table.arm):
        if arm == baseline:
            continue
        mine = found[found.arm == arm]
        got = mine.passes.dropna()
        estimate = ratio(by_seed[baseline], by_seed[arm])
        rows.append(
            {
                "arm": arm,
                "passes": math.exp(np.log(got).mean()) if len(got) else math.nan,
                "reached": f"{len(got)}/{len(mine)}",
                "at_most": int(mine.at_most.sum()),
                "ratio": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "p": estimate.p,
                "pairs": estimate.pairs,
            }
        )
    return pd.DataFrame(rows)

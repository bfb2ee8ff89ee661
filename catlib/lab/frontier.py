"""The frontier: how robust a method gets for a budget of passes, and what a level costs each.

A table of a piece of kind "frontier" has a row an arm, budget and seed (catlib.lab.study). Two arms
are compared by the passes that each needs for the same robust accuracy, seed by seed.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .compare import (
    NOT_SHOWN,
    Estimate,
    Verdict,
    difference,
    how_much_better,
    how_much_faster,
    judged,
    mean_interval,
    ratio,
)

METRIC = "final_robust_accuracy"
OURS = "remembered"  # the arm with a memory of perturbations; additions to it begin with its name
STRONGEST = "PGD-10"  # plain adversarial training


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


def level_of(table: pd.DataFrame, arm: str, metric: str = METRIC) -> float:
    """The robust accuracy, in whole percent, that every seed of an arm has with its largest budget.

    A higher level would be one that some of its seeds do not reach, and to compare only those that
    do would flatter it.

    Returns: in [0, 1].
    """
    runs = table[table.arm == arm]
    ends = runs[runs.budget == runs.budget.max()]
    return math.floor(100 * ends[metric].min() + 1e-9) / 100


def compared_budget(table: pd.DataFrame) -> int:
    """At which budget arms are compared: the largest of those that the most arms were given.

    A larger one that only some were given would leave out the others, however good they are.
    """
    arms = table.groupby("budget").arm.nunique()
    return int(arms.index[arms == arms.max()].max())


def best_rival(table: pd.DataFrame, metric: str = METRIC) -> str:
    """Of the arms without a memory the one with the highest mean at :func:`compared_budget`."""
    at_it = table[(table.budget == compared_budget(table)) & ~table.arm.str.startswith(OURS)]
    return at_it.groupby("arm", sort=False)[metric].mean().idxmax()


def at_the_end(table: pd.DataFrame, arm: str, other: str, metric: str = METRIC) -> Estimate:
    """The robust accuracy of an arm less that of another, at :func:`compared_budget`.

    If one of the two was not given that budget, it is the largest of both.
    """
    mine = table[table.arm == arm].set_index(["budget", "seed"])[metric]
    theirs = table[table.arm == other].set_index(["budget", "seed"])[metric]
    shared = set(mine.index.unique("budget")) & set(theirs.index.unique("budget"))
    budget = compared_budget(table)
    if budget not in shared:
        budget = max(shared)
    return difference(mine[budget], theirs[budget])


@dataclass(frozen=True)
class Saving:
    """What an arm needs beside another, to the robust accuracy that all seeds of that have.

    Attributes:
        arm, other: their names.
        level: the robust accuracy, as of :func:`level_of` the other.
        ratio: of the passes, other / arm, over pairs of seeds.
        is_bound: whether a seed of the arm has the level with the smallest budget already. That
            budget counts as its passes; it may need fewer, so the ratio is a lower bound.
        verdict: on the claim that the arm needs fewer.
    """

    arm: str
    other: str
    level: float
    ratio: Estimate
    is_bound: bool
    verdict: Verdict

    @property
    def in_words(self) -> str:
        bound = "at least " if self.is_bound else ""
        return f"{bound}{self.ratio.as_ratio()} times as many passes"


def saved(table: pd.DataFrame, arm: str, other: str, metric: str = METRIC) -> Saving:
    """Whether an arm needs fewer passes than another, to the level that all seeds of that reach."""
    level = level_of(table, other, metric)
    found = passes_for(table, level, metric)
    mine = found[found.arm == arm].set_index("seed")
    theirs = found[(found.arm == other) & ~found.at_most].set_index("seed")
    seeds = mine.index.intersection(theirs.index)
    estimate = ratio(theirs.passes[seeds], mine.passes[seeds])
    reached = mine.passes.notna().sum()
    if reached < len(mine) or not estimate.pairs:
        verdict = Verdict(NOT_SHOWN, f"{reached} of {len(mine)} seeds of {arm} reached it")
    else:
        verdict = judged(estimate, how_much_faster(estimate, arm, "passes"), null=1)
    return Saving(arm, other, level, estimate, bool(mine.at_most[seeds].any()), verdict)


def sentences(table: pd.DataFrame, arm: str = OURS, metric: str = METRIC) -> list[str]:
    """What a frontier says: an arm beside the best rival and beside PGD-10, in three sentences.

    The arm is named beforehand, and the rival is the best of all by the table itself, where most of
    them were run, so that the choice can only be in the rival's favour.

    Args:
        table: as of :func:`by_budget`.
        arm: the one that the sentences are about.
        metric: a column of accuracies in [0, 1].
    """
    rival = best_rival(table, metric)
    budget = compared_budget(table)
    given = "" if budget == table.budget.max() else ", the most that nearly all were given,"
    ends = table[table.budget == budget].groupby("arm")[metric].mean()
    gap = at_the_end(table, arm, rival, metric)
    more = judged(gap, how_much_better(gap, arm))
    found = [
        f"With {budget:,} passes{given} `{arm}` ends at {100 * ends[arm]:.1f} % robust accuracy, "
        f"and the best of its rivals, `{rival}`, at {100 * ends[rival]:.1f} %: "
        f"{gap.as_points()} points; that `{arm}` is more robust: {more}."
    ]
    for other in dict.fromkeys([rival, STRONGEST]):
        if other in set(table.arm):
            one = saved(table, arm, other, metric)
            most = table[table.arm == other].budget.max()
            found.append(
                f"To {100 * one.level:.0f} % robust accuracy, which every seed of `{other}` has "
                f"with {most:,} passes, `{other}` takes {one.in_words} as `{arm}`; that `{arm}` "
                f"needs fewer: {one.verdict}."
            )
    return found


def ablation(table: pd.DataFrame, baseline: str = OURS, metric: str = METRIC) -> pd.DataFrame:
    """What each addition to an arm brings: those whose name begins with it, less the arm itself.

    Returns: a row an addition: arm, gap (an :class:`Estimate` of :func:`at_the_end`),
        verdict (whether it is more robust than the baseline).
    """
    rows = []
    for arm in dict.fromkeys(table.arm):
        if arm != baseline and arm.startswith(f"{baseline}, "):
            gap = at_the_end(table, arm, baseline, metric)
            verdict = judged(gap, how_much_better(gap, arm.removeprefix(f"{baseline}, ")))
            rows.append({"arm": arm, "gap": gap, "verdict": verdict})
    return pd.DataFrame(rows)

"""Every number that compares: what a level cost, ratios and differences with their intervals.

Records are tables with one row an evaluation. A column says which arm of a comparison a run belongs
to: ``arm`` in the tables of the study, ``method`` in those of :func:`catlib.lab.runs.read_records`;
functions take its name as ``by``. The runs of two arms are paired by the column ``seed``.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from .paper import EVALUATED_EVERY, paper_table
from .paths import RESULTS

COSTS = {
    "iteration": "iterations",
    "passes": "forward-backward passes",
    "seconds": "seconds of training",
}
SIGNIFICANT = 0.05  # the largest p that is called clear
METRICS = {
    "accuracy": "accuracy",
    "robust_accuracy": "robust accuracy",
}


# ------------------------------------------------------------------ reading


def measured(name: str, folder: Path | None = None) -> pd.DataFrame | None:
    """The study's table ``data/results/<name>.csv``; None where it is not measured yet.

    The lines above the table, which say where it is from, are in ``attrs["about"]``.

    Args:
        name: of the file, without its ending.
        folder: where it is; None is ``data/results``.
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
    """A mean over pairs of seeds.

    ``low`` and ``high`` are the ends of its 95 % interval, and ``p`` is the two-sided p of the
    sign-flip test; NaN where there are fewer than two pairs.
    """

    value: float
    low: float
    high: float
    pairs: int
    p: float = math.nan

    def as_ratio(self, digits: int = 2) -> str:
        """For reading, as "1.05 [1.02, 1.07]"."""
        if math.isnan(self.value):
            return "—"
        if math.isnan(self.low):
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def as_points(self) -> str:
        """A difference of accuracies in percentage points, as "-1.8 [-2.9, -0.7]"."""
        if math.isnan(self.value):
            return "—"
        if math.isnan(self.low):
            return _points(self.value)
        return f"{_points(self.value)} [{_points(self.low)}, {_points(self.high)}]"

    def next_difference(self) -> tuple[float, float]:
        """Between which values one more pair of seeds has its difference, in 95 % of cases.

        By Student's t, as the interval of the mean, and that times the root of pairs + 1: the new
        pair has its own scatter, beside what is not known of the mean. NaN where ``low`` is.
        """
        reach = (self.high - self.value) * math.sqrt(self.pairs + 1)
        return self.value - reach, self.value + reach

    def next_ratio(self) -> tuple[float, float]:
        """The same for a ratio, whose logarithms are averaged."""
        reach = (self.high / self.value) ** math.sqrt(self.pairs + 1)
        return self.value / reach, self.value * reach

    @property
    def p_in_words(self) -> str:
        """The p for reading, with a third digit where two cannot tell it from 0.05."""
        if self.p < 0.01:
            return "< 0.01"
        return f"{self.p:.3f}" if f"{self.p:.2f}" == "0.05" else f"{self.p:.2f}"

    def side(self, null: float = 0) -> str:
        """Where the truth is shown to lie: "above" the null, "below" it, or neither: "across" it.

        Both tests must agree: the interval excludes the null, and the sign-flip p is at most 5 %,
        for which six pairs are needed. The p is of no difference, so it speaks for that null alone.
        """
        if not self.p <= SIGNIFICANT:
            return "across"
        return self._interval_side(null)

    def _interval_side(self, null: float) -> str:
        if self.low > null:
            return "above"
        if self.high < null:
            return "below"
        return "across"

    def is_lead(self, null: float = 0) -> bool:
        """Whether all that is missing is more pairs: all of them agree, but they are too few."""
        all_agree = self.p <= self.smallest_p and self._interval_side(null) != "across"
        return all_agree and not self.has_enough_pairs

    @property
    def smallest_p(self) -> float:
        """The sign-flip p where all pairs fall on one side."""
        return 2.0 ** (1 - self.pairs)

    @property
    def has_enough_pairs(self) -> bool:
        """Whether the sign-flip p can be small enough at all: with six pairs or more."""
        return self.smallest_p <= SIGNIFICANT


NO_PAIR = Estimate(math.nan, math.nan, math.nan, 0)


def _points(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"  # + 0.0: never "-0.0"


def ratio(first: ArrayLike, second: ArrayLike) -> Estimate:
    """The geometric mean of first / second, pair by pair, and the t interval of its logarithm.

    Args:
        first, second: of the same length. Pairs with a NaN or without a positive value are left
            out, so count them first; the value is NaN where no pair is left.

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
        logarithms.p,
    )


def difference(first: pd.Series, second: pd.Series) -> Estimate:
    """The mean of first - second over the seeds that are in the index of both, and its interval."""
    first, second = first.align(second, join="inner")
    return mean_interval((first - second).dropna())


def mean_interval(values: ArrayLike, *, confidence: float = 0.95) -> Estimate:
    """The mean of values, one a pair, its interval by Student's t, and the p of the sign-flip test.

    The interval needs values that are roughly normal. It covers too seldom where a few of them come
    from elsewhere, as from a run that did not learn: see :func:`did_not_learn`.

    Args:
        values: (n,), independent of each other.
        confidence: of the interval.
    """
    each = np.asarray(values, float)
    count = len(each)
    if count == 0:
        return NO_PAIR
    mean = float(each.mean())
    if count == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    error = each.std(ddof=1) / math.sqrt(count)
    reach = float(stats.t.ppf((1 + confidence) / 2, df=count - 1) * error)
    return Estimate(mean, mean - reach, mean + reach, count, sign_flip_p(each))


def sign_flip_p(values: np.ndarray) -> float:
    """The two-sided p of a mean of zero: how often random signs give a mean as far from zero.

    It assumes only that a difference is as likely as its opposite where the two methods are equal.
    All signs are tried up to 16 values, and as many random ones beyond, the same in every run. With
    n values it is at least 2 / 2^n: 0.06 with five, 0.03 with six.
    """
    return _sign_flip_p(tuple(values))


@lru_cache(4096)  # the pages tell the same p in several places, and with 16 values it takes 0.1 s
def _sign_flip_p(values: tuple[float, ...]) -> float:
    test = stats.permutation_test(
        (np.array(values),),
        lambda sample, axis: sample.mean(axis=axis),
        permutation_type="samples",
        n_resamples=2**16,
        vectorized=True,
        random_state=0,
    )
    return float(min(1, test.pvalue))


def corrected(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Estimates that are tested all at once, every p larger by the method of Holm.

    Among many true nulls some p fall below 5 % by luck. Of these ones, any does so in at most 5 %
    of cases. An estimate without a p stays as it is, and is not counted.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics 6 (1979).
    """
    smallest_first = pd.Series([one.p for one in estimates], dtype=float).dropna().sort_values()
    still_tested = np.arange(len(smallest_first), 0, -1)
    larger = (smallest_first * still_tested).cummax().clip(upper=1)
    return [
        replace(one, p=float(larger.get(place, math.nan))) for place, one in enumerate(estimates)
    ]


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
    run = run.sort_values("iteration")
    place = _sustained(run[metric].to_numpy(), level)
    return None if place is None else run.iloc[place]


def _sustained(values: np.ndarray, level: float) -> int | None:
    """The place of the first sustained crossing among the values of one run, in their order."""
    evaluated = np.flatnonzero(~np.isnan(values))
    value = values[evaluated]
    crossed = (value[:-1] >= level) & ((value[:-1] + value[1:]) / 2 >= level)
    return int(evaluated[crossed.argmax()]) if crossed.any() else None


def costs(
    records: pd.DataFrame, level: float, metric: str = "robust_accuracy", by: str = "arm"
) -> pd.DataFrame:
    """What every run took to reach a level: a row a run with ``by``, seed and the three costs.

    The costs are NaN where the run did not reach the level.

    Args:
        records: of all runs, with the columns ``by``, seed, iteration, passes, seconds and the
            metric.
        level: in [0, 1].
        metric: "accuracy" or "robust_accuracy".
        by: the column that tells the arms apart.
    """
    rows = []
    for (name, seed), run in records.sort_values("iteration").groupby([by, "seed"]):
        place = _sustained(run[metric].to_numpy(), level)
        took = {cost: math.nan if place is None else run[cost].to_numpy()[place] for cost in COSTS}
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
        records: of all runs; see :func:`costs`.
        levels: in [0, 1].
        metric: "accuracy" or "robust_accuracy".
        cost: "iteration", "passes" or "seconds", totals since the start of training.
        by: the column that tells the arms apart.
        baseline: the arm whose cost is divided.
        arm: the one that it is divided by.

    Returns: columns ``metric``, ``level`` (percent), ``cost``; for each of the two arms the mean
        over the seeds that reached the level, and ``<arm> reached`` as "2/3"; ``ratio`` baseline /
        arm with its ``low``, ``high`` and ``p`` over the ``pairs`` of seeds where both reached it.
        NaN where there is none. Where a run did not reach the level, the ratio is one of survivors.
    """
    both = records[records[by].isin([baseline, arm])]
    rows = []
    for level in levels:
        took = costs(both, level, metric, by)
        row = {"metric": metric, "level": round(100 * level, 6), "cost": cost}
        rows.append(row | speed_row(took, cost, by=by, baseline=baseline, arm=arm))
    return pd.DataFrame(rows)


def speed_row(
    took: pd.DataFrame, cost: str, *, by: str = "arm", baseline: str = "AT", arm: str = "CAT"
) -> dict:
    """What two arms took, as columns of a :func:`speed_table`, from their :func:`costs`."""
    table = took.pivot(index="seed", columns=by, values=cost).reindex(columns=[baseline, arm])
    row = {name: table[name].mean() for name in (baseline, arm)}
    for name in (baseline, arm):
        runs = took.loc[took[by] == name, cost]
        row[f"{name} reached"] = f"{runs.notna().sum()}/{len(runs)}"
    estimate = ratio(table[baseline], table[arm])
    row |= {"ratio": estimate.value, "low": estimate.low, "high": estimate.high}
    row |= {"p": estimate.p, "pairs": estimate.pairs}
    return row


def estimate_of(row) -> Estimate:
    """The ratio of one row of a :func:`speed_table`."""
    return Estimate(row.ratio, row.low, row.high, int(row.pairs), row.p)


def all_reached(row: pd.Series, baseline: str = "AT", arm: str = "CAT") -> bool:
    """Whether every run of both arms reached the level of this row of a :func:`speed_table`."""
    shares = [row[f"{name} reached"].split("/") for name in (baseline, arm)]
    return all(some == whole for some, whole in shares)


def readable(table: pd.DataFrame, baseline: str = "AT", arm: str = "CAT") -> pd.DataFrame:
    """A :func:`speed_table` for reading: rounded, ratio and interval in one column.

    A dash stands where a level was not reached.
    """
    shown = pd.DataFrame({"level %": [f"{level:g}" for level in table.level]})
    for name in (baseline, arm):
        cells = zip(table[name], table[f"{name} reached"], strict=True)
        shown[name] = [_cost(value, reached) for value, reached in cells]
    shown[f"{baseline}/{arm}"] = [estimate_of(row).as_ratio() for row in table.itertuples()]
    return shown.set_index("level %")


def _cost(value: float, reached: str) -> str:
    """A mean cost, and how many seeds reached the level where not all of them did."""
    if math.isnan(value):
        number = "—"
    elif value >= 100:
        number = f"{value:,.0f}"
    else:
        number = f"{value:.3g}"
    some, whole = reached.split("/")
    if some == whole:
        return number
    return f"{number} ({reached} seeds)"


def who_was_ahead(table: pd.DataFrame, baseline: str = "AT", arm: str = "CAT") -> str:
    """Who was ahead in a :func:`speed_table`, and where a difference is clear.

    Only levels that every run of both arms reached are compared. At the others a ratio would leave
    out the runs that never got there, so the arrivals themselves are said.
    """
    whole = table.apply(all_reached, axis=1, args=(baseline, arm)).astype(bool)
    compared = table[whole]
    sentences = []
    if compared.empty:
        sentences.append("No level was reached by every run, so no ratio is compared.")
    else:
        ahead = (compared.ratio > 1).sum()
        behind = (compared.ratio < 1).sum()
        sentences.append(
            f"Every run reached {len(compared)} of {len(table)} levels: {arm} was ahead of "
            f"{baseline} at {ahead}, behind at {behind}, tied at {len(compared) - ahead - behind}; "
            f"median ratio {baseline}/{arm} {compared.ratio.median():.2f}."
        )
        sides = [estimate_of(row).side(1) for row in compared.itertuples()]
        sentences.append(_clear_differences(sides.count("above"), sides.count("below"), arm))
    for _, row in table[~whole].iterrows():
        arrivals = f"{baseline} {row[f'{baseline} reached']}, {arm} {row[f'{arm} reached']}"
        sentences.append(f"{row.level:g} % was reached by {arrivals} runs.")
    return " ".join(sentences)


def _clear_differences(for_arm: int, against_arm: int, arm: str) -> str:
    """How many differences are shown (:meth:`Estimate.side`), and in whose favour."""
    count = for_arm + against_arm
    if count == 0:
        return "No difference is clear."
    if count == 1:
        return f"One difference is clear, {'in favour of' if for_arm else 'against'} {arm}."
    return f"{count} differences are clear, {for_arm} of them in favour of {arm}."


@dataclass(frozen=True)
class Overall:
    """One ratio for several levels, over those that every run of both arms reached."""

    ratio: Estimate
    levels: tuple[float, ...]
    left_out: tuple[float, ...]


def overall(
    records: pd.DataFrame,
    levels: Sequence[float],
    metric: str = "robust_accuracy",
    cost: str = "iteration",
    baseline: str = "AT",
    arm: str = "CAT",
    *,
    by: str = "arm",
) -> Overall:
    """One ratio baseline / arm for several levels.

    For each seed that both arms have, it is the geometric mean over the levels; then the mean over
    seeds and its interval as ever. A level that some run of these did not reach is left out for all
    seeds: otherwise the mean would favour the arm whose slow runs never arrive.

    Args:
        records: of all runs; see :func:`costs`.
        levels: in [0, 1].
        metric: "accuracy" or "robust_accuracy".
        cost: "iteration", "passes" or "seconds".
        baseline: the arm whose cost is divided.
        arm: the one that it is divided by.
        by: the column that tells the arms apart.
    """
    both = records[records[by].isin([baseline, arm])]
    paired = set(both.seed[both[by] == baseline]) & set(both.seed[both[by] == arm])
    both = both[both.seed.isin(paired)]
    if not paired:
        return Overall(NO_PAIR, (), tuple(levels))
    used = []
    left_out = []
    logarithms = []
    for level in levels:
        table = costs(both, level, metric, by).pivot(index="seed", columns=by, values=cost)
        if table.isna().any(axis=None):
            left_out.append(level)
            continue
        used.append(level)
        logarithms.append(np.log(table[baseline]) - np.log(table[arm]))
    if not used:
        return Overall(NO_PAIR, (), tuple(left_out))
    of_seeds = np.exp(pd.concat(logarithms, axis=1).mean(axis=1))
    return Overall(ratio(of_seeds, np.ones(len(of_seeds))), tuple(used), tuple(left_out))


# ------------------------------------------------------------------ where runs ended


def ends(records: pd.DataFrame, by: str = "arm") -> pd.DataFrame:
    """The last row of every run, by arm and seed."""
    return records.sort_values("iteration").groupby([by, "seed"]).last()


def final_metric(last: pd.DataFrame) -> str:
    """The column with the strongest attack at the end."""
    if "final_robust_accuracy" in last:
        return "final_robust_accuracy"
    return "robust_accuracy"


def drawn_accuracy(records: pd.DataFrame, by: str = "arm") -> pd.Series:
    """How hard the drawn examples were: robust accuracy on the batches of a whole run, its mean.

    It is a manipulation check: if it is not lower in CAT than in an arm with uniform draws, CAT's
    batches were not harder, whatever its results are. A model that is less robust lowers it, too.

    Args:
        records: with the column ``drawn_accuracy``, of which each row speaks for the iterations
            since the row before.

    Returns: a number in [0, 1] for each arm and seed.
    """

    def mean_over_batches(run: pd.DataFrame) -> float:
        run = run.dropna(subset="drawn_accuracy").sort_values("iteration")
        if run.empty:
            return math.nan
        batches = np.diff(run.iteration, prepend=0)
        return float(np.average(run.drawn_accuracy, weights=batches))

    rows = {key: mean_over_batches(run) for key, run in records.groupby([by, "seed"])}
    index = pd.MultiIndex.from_tuples(rows, names=[by, "seed"])
    return pd.Series(list(rows.values()), index, name="drawn_accuracy", dtype=float)


def did_not_learn(last: pd.DataFrame, classes: int = 10) -> pd.Series:
    """How many runs of every arm did not learn: their last accuracy is below twice that of chance.

    With fewer than ten classes it is below ten points above chance. A mean with such a run in it is
    a mean of two different things, and its interval cannot be trusted: so they are counted.

    Args:
        last: :func:`ends`.
        classes: of the data.
    """
    learned = min(2 / classes, 1 / classes + 0.1)
    failed = ~(last.accuracy >= learned)  # a run that diverged has no accuracy at all
    return failed.groupby(level=0, sort=False).sum()


def percent(values: pd.Series) -> str:
    """Mean and standard deviation over seeds, as "83.5 % ± 1.0"."""
    return f"{100 * values.mean():.1f} % ± {100 * values.std():.1f}"


# ------------------------------------------------------------------ verdicts

HOLDS = "holds"
IN_PART = "holds in part"
NOT_SHOWN = "not shown"
CONTRADICTED = "contradicted"
NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Verdict:
    """One of the five words above, and where, why or how large."""

    word: str
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.word} ({self.remark})" if self.remark else self.word


def judged(estimate: Estimate, how_large: str, null: float = 0) -> Verdict:
    """What an estimate says to the claim that the truth lies above the null.

    Args:
        how_large: in words, how far from the null the truth may still lie; said where neither side
            is shown.
    """
    if estimate.pairs < 3:
        return Verdict(NOT_SHOWN, f"{estimate.pairs} pairs of seeds are too few")
    if estimate.is_lead(null):
        return Verdict(NOT_SHOWN, f"a lead: {how_large}; {too_few(estimate)}")
    if estimate.side(null) == "across":
        return Verdict(NOT_SHOWN, how_large)
    return Verdict(HOLDS if estimate.side(null) == "above" else CONTRADICTED)


def too_few(estimate: Estimate) -> str:
    """Why a lead is no more than that."""
    return f"with {estimate.pairs} seeds p cannot fall below {estimate.smallest_p:.2f}"


def how_much_faster(estimate: Estimate, arm: str = "CAT", cost: str = "iterations") -> str:
    """The ends of a ratio's interval, as "CAT needs at most 6 % fewer or 8 % more iterations".

    Args:
        estimate: of baseline / arm.
        arm: the one that the sentence is about.
        cost: what is counted.
    """
    if estimate.low == estimate.high == 1:
        return f"the same number of {cost} on every seed, to one check"
    fewest = 100 * (1 - 1 / estimate.high)
    most = 100 * (1 / estimate.low - 1)
    if most < 0:
        return f"{arm} needs {_span(-most, fewest)} % fewer {cost}{but_p(estimate)}"
    if fewest < 0:
        return f"{arm} needs {_span(-fewest, most)} % more {cost}{but_p(estimate)}"
    return f"{arm} needs at most {fewest:.0f} % fewer or {most:.0f} % more {cost}"


def _span(low: float, high: float) -> str:
    """Two percentages, as "2 to 9", or "up to 9" where the lower one rounds to zero."""
    if round(low) == round(high):
        return f"{high:.0f}"
    return f"{low:.0f} to {high:.0f}" if round(low) else f"up to {high:.0f}"


def how_much_better(
    estimate: Estimate, arm: str = "CAT", better: str = "better", worse: str = "worse"
) -> str:
    """The ends of a difference's interval, as "CAT at most 0.3 points better or 2.1 worse"."""
    low = 100 * estimate.low
    high = 100 * estimate.high
    if low > 0:
        return f"{arm} between {low:.1f} and {high:.1f} points {better}{but_p(estimate)}"
    if high < 0:
        return f"{arm} between {-high:.1f} and {-low:.1f} points {worse}{but_p(estimate)}"
    return f"{arm} at most {high:.1f} points {better} or {-low:.1f} {worse}"


def but_p(estimate: Estimate) -> str:
    """The p of the sign-flip test where it does not agree with the interval."""
    if estimate.p <= max(SIGNIFICANT, estimate.smallest_p):
        return ""
    return f" by the interval, but p is {estimate.p_in_words}"


def faster(row: pd.Series, baseline: str = "AT", arm: str = "CAT") -> Verdict:
    """What one level of a :func:`speed_table` says to the claim that ``arm`` is faster."""
    if not all_reached(row, baseline, arm):
        arrivals = f"{baseline} {row[f'{baseline} reached']}, {arm} {row[f'{arm} reached']}"
        some = any(int(row[f"{name} reached"].split("/")[0]) for name in (baseline, arm))
        who = "not every run" if some else "no run"
        return Verdict(NOT_SHOWN, f"{who} reached it: {arrivals}")
    estimate = estimate_of(row)
    return judged(estimate, how_much_faster(estimate, arm), null=1)


def faster_overall(one: Overall, arm: str = "CAT", cost: str = "iterations") -> Verdict:
    """What one ratio for several levels says to the claim that ``arm`` is faster.

    Args:
        one: of baseline / arm.
        arm: the one that the claim is about.
        cost: what is counted, in words.
    """
    if not one.levels:
        return Verdict(NOT_SHOWN, "no level was reached by every run")
    return judged(one.ratio, how_much_faster(one.ratio, arm, cost), null=1)


def better(last: pd.DataFrame, metric: str, baseline: str, arm: str) -> tuple[Estimate, Verdict]:
    """The difference at the end, and what it says to the claim that ``arm`` is better.

    Args:
        last: :func:`ends`.
    """
    gap = difference(last.loc[arm, metric], last.loc[baseline, metric])
    failed = failures(last, baseline, arm)
    if failed:
        return gap, Verdict(NOT_SHOWN, failed)
    return gap, judged(gap, how_much_better(gap, arm))


def failures(last: pd.DataFrame, *arms: str, classes: int = 10) -> str:
    """How many runs of these arms did not learn, in words; empty where all of them did."""
    counts = did_not_learn(last, classes)
    if not sum(counts[arm] for arm in arms):
        return ""
    words = [f"{arm} {counts[arm]} of {len(last.loc[arm])}" for arm in arms]
    return f"runs that did not learn: {', '.join(words)}"


# ------------------------------------------------------------------ Fig. 1, and old weights


ALIKE = 0.9  # a cosine similarity
ABOVE_CONTROL = 0.05  # of a cosine similarity: what another image of the class has, and more
HARDLY_LEARNED = 0.9  # of ten classes a model that only guesses misreads as many
RANKS_WELL = 0.7  # a rank correlation
RANKS_IN_PART = 0.4


def similar_predictions(rows: pd.DataFrame) -> dict:
    """Fig. 1 as a finding: similarity of predictions one iteration apart, second half of training.

    A similarity that is not shown to be 0.05 above that with another image of the class is no
    evidence: the model may answer alike for every image of the class. Where there are several
    seeds, the whole interval must lie there. Neither is a model that had hardly learned,
    which misreads most images under attack. Otherwise the claim holds from 0.9 on, and in part
    below that.

    Args:
        rows: a table of :func:`catlib.lab.similarity.neighbour_similarity`. Where it has fresh
            starts of the attack, as training has, those count.

    Returns: ``similarity``, ``control``, ``agreement`` and ``success`` (means), ``above`` (an
        :class:`Estimate` of similarity less control over seeds), ``verdict``.
    """
    rows = rows[(rows.gap == 1) & (rows.iteration > rows.iteration.max() / 2)]
    if (rows.start == "fresh").any():
        rows = rows[rows.start == "fresh"]
    means = rows[["mean", "control", "agreement", "success"]].mean()
    of_seeds = rows.assign(seed=rows.get("seed", 0)).groupby("seed")[["mean", "control"]].mean()
    above = difference(of_seeds["mean"], of_seeds.control)
    above_at_least = above.value if above.pairs == 1 else above.low
    if means.success > HARDLY_LEARNED:
        verdict = Verdict(
            NOT_TESTED, f"{100 * means.success:.0f} % misread: the models had hardly learned"
        )
    elif above_at_least < ABOVE_CONTROL:
        interval = f"{above.value:.3f} [{above.low:.3f}, {above.high:.3f}]"
        how_much = interval if above.pairs > 1 else f"{above.value:.3f}"
        verdict = Verdict(NOT_SHOWN, f"{how_much} above another image of the class")
    elif means["mean"] >= ALIKE:
        verdict = Verdict(HOLDS)
    else:
        verdict = Verdict(IN_PART, f"alike, but below {ALIKE}")
    return {
        "similarity": means["mean"],
        "control": means.control,
        "above": above,
        "agreement": means.agreement,
        "success": means.success,
        "verdict": verdict,
    }


def old_weights(rows: pd.DataFrame, one_epoch: float, alpha: float = 0.5) -> dict:
    """Does an old weight still rank the examples of its class? At the age that matters: one epoch.

    A rank correlation of at least 0.7 supports the claim, one of at least 0.4 in part; the whole
    interval must lie there.

    Args:
        rows: a table of :func:`catlib.lab.similarity.staleness`, of one way to draw.
        one_epoch: iterations in which as many examples are drawn as there are.

    Returns: ``age`` (of the group that one epoch falls into, or of the oldest one measured),
        ``correlation`` (an :class:`Estimate` over seeds, or over checks where there is one seed),
        ``by_age`` (by the ages in words, as "10 to 19": the mean over checks, and how many seeds),
        ``verdict``.
    """
    late = rows[(rows.alpha == alpha) & (rows.iteration > rows.iteration.max() / 2)]
    late = late.dropna(subset="within_class")
    measured_ages = sorted(late.age.unique())
    age = max([age for age in measured_ages if age <= one_epoch], default=measured_ages[0])
    at_age = late[late.age == age]
    values = at_age.groupby("seed").within_class.mean()
    if len(values) == 1:
        values = at_age.within_class
    correlation = mean_interval(values)
    if rows.iteration.max() < one_epoch:
        reached = f"weights reach {rows.iteration.max()} iterations, one epoch is {one_epoch:.0f}"
        verdict = Verdict(NOT_TESTED, f"not at the age that matters: {reached}")
    elif correlation.low >= RANKS_WELL:
        verdict = Verdict(HOLDS)
    elif correlation.low >= RANKS_IN_PART:
        between = f"between {RANKS_IN_PART} and {RANKS_WELL}"
        verdict = Verdict(IN_PART, f"a correlation {between} is not ruled out")
    elif correlation.high < RANKS_IN_PART:
        verdict = Verdict(CONTRADICTED)
    else:
        verdict = Verdict(NOT_SHOWN, f"a correlation below {RANKS_IN_PART} is not ruled out")
    return {
        "age": int(age),
        "correlation": correlation,
        "by_age": {
            ages_from(one, rows.age.unique()): (group.within_class.mean(), group.seed.nunique())
            for one, group in late.groupby("age")
        },
        "verdict": verdict,
    }


def ages_from(age: int, ages: Iterable[int]) -> str:
    """The ages of a group in words, as "10 to 19", or "20 and over" of the last one.

    Args:
        age: with which the group begins.
        ages: with which all groups begin.
    """
    later = [one for one in ages if one > age]
    return f"{age} to {min(later) - 1}" if later else f"{age} and over"


# ------------------------------------------------------------------ the audit


def audit(records: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Which robust accuracies of the paper are reached within the iterations that it prints?

    One statistic decides: the median over seeds of the best robust accuracy that a run had within
    the printed iterations. It is at the level or above it where at least half of the seeds were.
    Beside it stands the clean accuracy at the same evaluation: where the two hardly differ, the
    attack of this reading hardly does anything, and the level says little about robustness.

    Args:
        records: with the column ``arm``; the name of an arm begins with the method, "AT" or "CAT",
            which says whose printed iterations count.
        dataset: "mnist" or "cifar10".

    Returns: a row an arm and printed level: arm, level (percent), iterations; the statistic on test
        images and on training batches as ``test`` and ``training``; ``clean``, the median over
        seeds of the clean accuracy at the evaluation with the best robust one; ``reached on test``
        and ``reached in training``. Where the records have them, ``moved`` and ``full_strength``:
        how far the evaluation's attack moves a pixel at the end, in its epsilons, and the robust
        accuracy then under signed PGD-20 at full strength, medians over seeds.
    """
    printed = paper_table(dataset)
    rows = []
    for arm, runs in records.groupby("arm", sort=False):
        at_the_end = {}
        for name in ("moved", "full_strength"):
            if f"final_{name}" in runs:
                at_the_end[name] = runs[f"final_{name}"].dropna().median()
        method = arm.split(",")[0]
        for level, row in printed.iterrows():
            within = int(row[f"{method} ticks"]) * EVALUATED_EVERY[dataset]
            allowed = runs[runs.iteration <= within]
            best = allowed.loc[allowed.groupby("seed").robust_accuracy.idxmax()]
            test = best.robust_accuracy.median()
            training = allowed.groupby("seed").batch_accuracy.max().median()
            rows.append(
                {
                    "arm": arm,
                    "level": level,
                    "iterations": within,
                    "test": test,
                    "training": training,
                    "clean": best.accuracy.median(),
                    "reached on test": test >= level / 100,
                    "reached in training": training >= level / 100,
                    **at_the_end,
                }
            )
    return pd.DataFrame(rows)


def reading_of(arm: str) -> str:
    """What an arm of the audit has in common with the same reading of the other method."""
    _, _, reading = arm.partition(", ")
    return reading


UNTRAINED = 0.2  # a model with less accuracy, twice that of chance, has not learned
HARMLESS = 0.05  # an attack that costs less accuracy than this hardly does anything


def audit_verdict(rows: pd.DataFrame) -> tuple[Verdict, dict]:
    """What an :func:`audit` says to the claim that the highest printed level can be had."""
    top = rows[rows.level == rows.level.max()]
    readings = {reading_of(arm) for arm in top.arm}
    reached = top[top["reached on test"]]
    harmless = reached[reached.clean - reached.test < HARMLESS]
    real = reached.drop(harmless.index)
    numbers = {
        "level": rows.level.max(),
        "readings": len(readings),
        "untrained": len({reading_of(arm) for arm in top.arm[top.clean < UNTRAINED]}),
        "real": list(real.arm),
        "harmless": dict(zip(harmless.arm, harmless.clean, strict=True)),
    }
    if len(real):
        return Verdict(IN_PART, "; ".join(real.arm)), numbers
    remarks = ["only where the attack hardly does anything"] if len(harmless) else []
    nearest = top[top.clean - top.test >= HARMLESS].nlargest(1, "test")
    for row in nearest.itertuples():
        remarks.append(
            f"by an attack that costs accuracy at most {100 * row.test:.1f} %, {row.arm}"
        )
    return Verdict(NOT_SHOWN, "; ".join(remarks) or "by no reading tried"), numbers

"""The claims of the paper beside what was measured: computed from the tables of the study, and written as pages.

    python -m catlib.lab.study page    # data/results/{summary,final}.csv, data/results/README.md, the README's results

Nothing here is typed by hand but the paper's own words and numbers. A claim whose table is missing is open, and
its row names the command that fills it.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from catlib.data import ROOT

from .figures import COSTS, PAPER, costs, paper_table, ratio_interval, speed_table
from .runs import Trial, write_whole
from .study import Piece, pieces_of, profiles

README = ROOT / "README.md"
KEYS = ["table", "sampling_number", "baseline", "arm"]


def load_tables(results: Path) -> dict[str, pd.DataFrame]:
    """Every table of the study in which each arm has two seeds or more, by name."""
    tables = {}
    for piece in (piece for profile in profiles() for piece in pieces_of(profile)):
        for name in (piece.table, f"{piece.table}_staleness"):
            if (path := results / f"{name}.csv").exists():
                table = pd.read_csv(path, comment="#")
                seeds = table.groupby(["arm", *piece.options.get("grid", {})]).seed.nunique()
                if len(seeds) == len({key(piece, *trial) for trial in piece.trials}) and seeds.min() > 1:
                    tables[name] = table
    return tables


def key(piece: Piece, arm: str, trial: Trial) -> tuple:
    """What tells a trial from others of its seed."""
    return arm, *(getattr(trial, name) for name in piece.options.get("grid", {}))


def pairs_of(piece: Piece, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Which arms are compared: those that the configuration pairs, else every arm with the first."""
    arms = list(dict.fromkeys(table.arm))
    pairs = piece.options.get("pairs") or [[arms[0], arm] for arm in arms[1:]]
    return [(first, second) for first, second in pairs if first in arms and second in arms]


def compared(tables: dict[str, pd.DataFrame]):
    """Every comparison of the study: (table, sampling number or NaN, baseline, arm, levels, records)."""
    for piece in (piece for profile in profiles() for piece in pieces_of(profile)):
        if piece.kind == "train" and piece.table in tables:
            table = tables[piece.table]
            groups = table.groupby("sampling_number") if "sampling_number" in table else [(math.nan, table)]
            for number, records in groups:
                for baseline, arm in pairs_of(piece, table):
                    yield piece.table, number, baseline, arm, piece.levels, records


def summary(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a comparison, level and cost: what the two took on the mean, and the ratio baseline / arm, paired by seed."""
    rows = []
    for table, number, baseline, arm, levels, records in compared(tables):
        for metric, values in levels.items():
            for cost in COSTS:
                speed = speed_table(records, [value / 100 for value in values], metric, cost, by="arm", baseline=baseline, method=arm)
                names = {baseline: "baseline_cost", arm: "arm_cost", f"{baseline} reached": "baseline_reached", f"{arm} reached": "arm_reached"}
                rows.append(speed.rename(columns=names).assign(table=table, sampling_number=number, baseline=baseline, arm=arm))
    if not rows:
        return pd.DataFrame()
    whole = pd.concat(rows, ignore_index=True).round(3)
    return whole[KEYS + [name for name in whole if name not in KEYS]]


def final(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a comparison: where the arm stood at the last iteration, and the difference to its baseline, paired by seed.

    Robust accuracies are shares of the images; ``confirmed`` is by PGD with restarts, where the study did that.
    """
    rows = []
    for table, number, baseline, arm, _, records in compared(tables):
        last = records.sort_values("iteration").groupby(["arm", "seed"]).last()
        a, b = last.loc[baseline], last.loc[arm]
        row = dict(zip(KEYS, (table, number, baseline, arm), strict=True)) | {"seeds": len(b), "iteration": b.iteration.max()}
        for name in ("accuracy", "robust_accuracy", "batch_accuracy", "final_robust_accuracy"):
            if name in last:
                row |= {name: b[name].mean(), f"{name}_sd": b[name].std()}
        row |= dict(zip(("difference", "low", "high"), difference_interval(b.robust_accuracy, a.robust_accuracy), strict=True))
        row |= {"coverage": b.coverage.mean(), "seconds_ratio": (b.seconds / b.iteration).mean() / (a.seconds / a.iteration).mean()}
        rows.append(row)
    return pd.DataFrame(rows).round(4)


def difference_interval(first: pd.Series, second: pd.Series) -> tuple[float, float, float]:
    """The mean of first - second over the seeds of both, and its bootstrap interval."""
    first, second = first.align(second, join="inner")
    return tuple(math.log(value) for value in ratio_interval(np.exp(first), np.exp(second)))  # a ratio's logarithm is a difference


def overall(records: pd.DataFrame, levels, metric: str, cost: str, baseline: str, arm: str) -> tuple[float, float, float, int]:
    """One ratio for all levels: a seed's geometric mean over the levels that both reached, then over seeds as ever."""
    logs = []
    for level in levels:
        table = costs(records, level / 100, metric, "arm").pivot(index="seed", columns="arm", values=cost)
        if {baseline, arm} <= set(table):
            logs.append(np.log(table[baseline]) - np.log(table[arm]))
    each = pd.concat(logs, axis=1).mean(axis=1).dropna() if logs else pd.Series(dtype=float)
    return *ratio_interval(np.exp(each), np.ones(len(each))), len(each)


def interval(ratio: float, low: float, high: float, digits: int = 2) -> str:
    if math.isnan(ratio):
        return "not reached by both"
    return f"{ratio:.{digits}f}" + ("" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]")


def judged(low: float, high: float, seeds: int, *, zero: float = 0, above: str, below: str) -> str:
    """What an interval says: above zero, below, or nothing; with few seeds all on one side by luck it says little."""
    if seeds < 3 or math.isnan(low):
        return "too few seeds to say"
    if low <= zero <= high:
        return "no difference shown"
    return (above if low > zero else below) + (f" ({seeds} seeds: a lead, no proof)" if seeds < 5 else "")


def faster(low: float, high: float, seeds: int) -> str:
    """What the interval of a ratio AT / CAT says."""
    return judged(low, high, seeds, zero=1, above="CAT faster", below="CAT slower")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper; ``measure`` gives (ours, verdict) from the tables named, which are tried in this order."""

    text: str
    paper: str
    tables: tuple[str, ...]
    measure: Callable[[pd.DataFrame, str], tuple[str, str]]


def table_claims() -> list[Claim]:
    """A claim for every cell of Tables 1 and 2."""
    claims = []
    for dataset, number, names in (("mnist", 1, ("paper_mnist_tables", "cpu_mnist_tables", "cpu_mnist_tables_constant",
                                                "cpu_mnist_tables_0.3")),
                                   ("cifar10", 2, ("paper_cifar10_tables",))):
        for part, (metric, levels) in zip("ab", PAPER[dataset].items(), strict=True):
            printed = paper_table(dataset, metric)
            for level in levels:
                row = printed.loc[level]
                paper = f"AT {row['AT ticks']:.0f}, CAT {row['CAT ticks']:.0f} ticks: {row['AT/CAT']:.2f}"
                claims.append(Claim(f"Table {number}{part}: {level} % {metric.replace('_', ' ')}", paper, names, _cell(metric, level, row["AT/CAT"])))
    return claims


def _cell(metric: str, level: float, printed: float) -> Callable:
    def measure(records, table):
        speed = speed_table(records, [level / 100], metric, "iteration", by="arm").iloc[0]
        took = ", ".join(f"{name} {speed[name]:.0f}" if not math.isnan(speed[name]) else f"{name} never" for name in ("AT", "CAT"))
        reached = f"{speed['AT reached']} and {speed['CAT reached']} seeds"
        if math.isnan(speed.ratio):
            return f"{took} iterations ({reached})", "not reached by both"
        inside = "" if speed.pairs < 3 else f"; the printed ratio lies {'inside' if speed.low <= printed <= speed.high else 'outside'} the interval"
        return f"{took} iterations ({reached}): {interval(speed.ratio, speed.low, speed.high)}", faster(speed.low, speed.high, speed.pairs) + inside
    return measure


def piece_of(table: str) -> Piece:
    name = table.removesuffix("_staleness")
    return next(piece for profile in profiles() for piece in pieces_of(profile) if piece.table == name)


def _levels(table: str, metric: str) -> list[float]:
    return piece_of(table).levels[metric]


def _overall(metric: str = "robust_accuracy", baseline: str = "AT", arm: str = "CAT", cost: str = "iteration") -> Callable:
    def measure(records, table):
        ratio, low, high, seeds = overall(records, _levels(table, metric), metric, cost, baseline, arm)
        return f"{baseline} / {arm}, {COSTS[cost]}, all levels of {metric.replace('_', ' ')}: {interval(ratio, low, high)}, {seeds} seeds", \
            judged(low, high, seeds, zero=1, above="faster with CAT", below="slower with CAT")
    return measure


def _up_to_three(records, table):
    speed = speed_table(records, [level / 100 for level in _levels(table, "robust_accuracy")], by="arm").dropna(subset="ratio")
    if speed.empty:
        return "no level was reached by both", "not settled"
    best = speed.loc[speed.ratio.idxmax()]
    return (f"largest of {len(speed)} ratios: {interval(best.ratio, best.low, best.high)}, at {best.level:g} % robust accuracy",
            judged(best.low, best.high, best.pairs, zero=3, above="holds", below="does not hold: below 3"))


def _all_settings(records, table):
    words = []
    for metric in ("accuracy", "robust_accuracy"):
        speed = speed_table(records, [level / 100 for level in _levels(table, metric)], metric, by="arm").dropna(subset="ratio")
        words += [faster(row.low, row.high, row.pairs) for row in speed.itertuples()]
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    return "; ".join(f"{word} at {count} of {len(words)} levels" for word, count in counts.items()), \
        "holds" if set(words) == {"CAT faster"} else "does not hold at every level"


def _last(records, first, second, metric="robust_accuracy"):
    last = records.sort_values("iteration").groupby(["arm", "seed"])[metric].last()
    return last[first], last[second], difference_interval(last[second], last[first])


def _competitive(records, table):
    metric = "final_robust_accuracy" if "final_robust_accuracy" in records else "robust_accuracy"
    at, cat, (difference, low, high) = _last(records.dropna(subset=[metric]), "AT", "CAT", metric)
    ours = (f"at the end, {'PGD-20 with restarts' if metric.startswith('final') else 'PGD-20'}: AT {at.mean():.1%} ± {at.std():.1%}, "
            f"CAT {cat.mean():.1%} ± {cat.std():.1%}, difference {100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points")
    return ours, judged(low, high, len(cat), above="CAT better", below="CAT worse")


def _overhead(records, table):
    last = records.sort_values("iteration").groupby(["arm", "seed"]).last()
    per = last.seconds / last.iteration
    ratio, low, high = ratio_interval(per["CAT"], per["AT"].reindex(per["CAT"].index))
    return f"seconds of a CAT iteration / an AT iteration: {interval(ratio, low, high)}", \
        judged(low, high, len(per["CAT"]), zero=1, above="dearer", below="cheaper")


def _similarity(table_rows, table):
    rows = table_rows[table_rows.gap == 1]
    parts = []
    for start in ("same", "fresh"):
        mine = rows[(rows.start == start) & (rows.arm == "AT")]
        seeds = mine.groupby("seed")[["mean", "agreement", "control"]].mean()
        parts.append(f"{start} start: {seeds['mean'].mean():.3f} ± {seeds['mean'].std():.3f} (another image of the class: {seeds.control.mean():.3f}; "
                     f"same predicted class: {seeds.agreement.mean():.0%})")
    mine = rows[(rows.start == "fresh") & (rows.arm == "AT")].groupby("seed")[["mean", "control"]].mean()
    low = difference_interval(mine["mean"], mine["control"])[1]
    return "mean cosine similarity over a run, " + "; ".join(parts), "holds: above the control" if low > 0 else "no more than the class explains"


def _stale(rows, table):
    late = rows[(rows.iteration > rows.iteration.max() / 2) & (rows.alpha == 0.5)]
    by_age = late.groupby("age").rank_correlation.mean()
    ours = "rank correlation of stored weight and fresh gain, α = 0.5: " + ", ".join(f"{value:.2f} at age {age}+" for age, value in by_age.items())
    return ours, "holds" if by_age.min() > 0.5 else "holds partly: fades with age" if by_age.iloc[0] > 0.5 else "weak"


def _by_number(metric="robust_accuracy"):
    def measure(records, table):
        words = {}
        for number, group in records.groupby("sampling_number"):
            ratio, low, high, seeds = overall(group, _levels(table, metric), metric, "iteration", "AT", "CAT")
            words[number] = (interval(ratio, low, high) if seeds else "no level reached", faster(low, high, seeds))
        sure = [number for number, (_, word) in words.items() if word.startswith("CAT faster")]
        verdict = "holds at every sampling number" if len(sure) == len(words) else f"shown at {len(sure)} of {len(words)} sampling numbers"
        return "AT / CAT: " + ", ".join(f"k = {number}: {text}" for number, (text, _) in words.items()), verdict
    return measure


def _peak(records, table):
    last = records[records.arm == "CAT"].sort_values("iteration").groupby(["sampling_number", "seed"]).robust_accuracy.last().unstack()
    passes = records[records.arm == "CAT"].groupby("sampling_number").passes.max()
    budget = passes.min()  # what the smallest sampling number spends in all
    at_budget = records[(records.arm == "CAT") & (records.passes <= budget)].sort_values("iteration").groupby(["sampling_number", "seed"]).robust_accuracy.last()
    means, equal = last.mean(axis=1), at_budget.groupby("sampling_number").mean()
    ours = (f"robust accuracy after {records.iteration.max()} iterations: " + ", ".join(f"k = {k}: {v:.1%}" for k, v in means.items())
            + f"; at equal passes ({budget:,}): " + ", ".join(f"k = {k}: {v:.1%}" for k, v in equal.items()))
    inside = means.idxmax() not in (means.index[0], means.index[-1])
    return ours, f"best k = {means.idxmax()} by iterations, " + ("inside the range: a peak" if inside else "at the range's end: no peak") \
        + f"; k = {equal.idxmax()} by passes"


def _approach(records, table):
    ratios = {}
    for number, group in records.groupby("sampling_number"):
        ratios[number] = _last(group, "AT", "CAT")[2]
    first, last = list(ratios)[0], list(ratios)[-1]
    text = ", ".join(f"k = {k}: {100 * d:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" for k, (d, low, high) in ratios.items())
    shrinks = abs(ratios[last][0]) < abs(ratios[first][0])
    return f"CAT - AT at the end, points: {text}", "the gap is smaller at the largest k" if shrinks else "the gap is not smaller at the largest k"


def _arm(baseline: str, arm: str, good: str, bad: str) -> Callable:
    def measure(records, table):
        a, b, (difference, low, high) = _last(records, baseline, arm)
        ours = (f"{arm} {b.mean():.1%} ± {b.std():.1%}, {baseline} {a.mean():.1%} ± {a.std():.1%} at the end: "
                f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points")
        return ours, judged(low, high, len(b), above=good, below=bad)
    return measure


def _alphas(records, table):
    arms = {"alpha 0": 0, "alpha 0.25": 0.25, "CAT": 0.5, "alpha 0.75": 0.75, "alpha 0.9": 0.9, "alpha 0.99": 0.99}
    last = records.sort_values("iteration").groupby(["arm", "seed"]).robust_accuracy.last().unstack()
    means = {alpha: last.loc[arm].mean() for arm, alpha in arms.items() if arm in last.index}
    rivals = {alpha: _last(records, arm, "CAT")[2] for arm, alpha in arms.items() if arm in last.index and arm != "CAT"}
    beaten = [f"{alpha:g}" for alpha, (_, low, _) in rivals.items() if low > 0]
    losing = [f"{alpha:g}" for alpha, (_, _, high) in rivals.items() if high < 0]
    verdict = f"0.5 shown better than {', '.join(beaten) or 'none'}, worse than {', '.join(losing) or 'none'}"
    return "robust accuracy at the end: " + ", ".join(f"α = {alpha:g}: {value:.1%}" for alpha, value in means.items()), verdict


def _few_samples(records, table):
    last = records.sort_values("iteration").groupby(["arm", "seed"]).last()
    at, cat = last.loc["AT"], last.loc["CAT"]
    return (f"training images seen: AT {at.coverage.mean():.1%}, CAT {cat.coverage.mean():.1%}; robust accuracy AT {at.robust_accuracy.mean():.1%}, "
            f"CAT {cat.robust_accuracy.mean():.1%}"), "CAT saw fewer" if cat.coverage.mean() < at.coverage.mean() - 0.01 else "CAT saw no fewer"


def _dearer(records, table):
    at = records[records.arm == "AT"].iloc[-1]
    number = piece_of(table).trials[0][1].sampling_number
    return f"{at.passes / at.iteration / number:.0f} passes an example and iteration with this attack, against 1", "holds: it is arithmetic"


def _printed(records, table):
    """Which arms reach the highest printed robust accuracy within the printed iterations."""
    rows = audit(records, table)
    on = rows[rows["on test images"] & rows.printed]
    names = "; ".join(on.arm) or "none"
    return f"readings that reach {rows.level.max():g} % within the printed iterations, {len(on)} of {rows.printed.sum()}: {names}", \
        f"reproduced by: {names}" if len(on) else "not reproduced by any reading tried"


def audit(records: pd.DataFrame, table: str) -> pd.DataFrame:
    """A row an arm and printed robust accuracy: was it reached within the printed number of iterations, on test and training batches?"""
    dataset = "cifar10" if "cifar10" in table else "mnist"
    printed, every = paper_table(dataset), 10 if dataset == "cifar10" else 1  # iterations a tick, as the paper evaluated
    rows = []
    for arm, group in records.groupby("arm", sort=False):
        for level, row in printed.iterrows():
            within = int(row["CAT ticks" if arm.startswith("CAT") else "AT ticks"]) * every
            seen = group[group.iteration <= within]
            best = seen.groupby("seed")[["robust_accuracy", "batch_accuracy"]].max()
            rows.append({"arm": arm, "level": level, "iterations": within, "printed": level == printed.index[-1],
                         "robust": best.robust_accuracy.mean(), "batch": best.batch_accuracy.mean(),
                         "on test images": bool(len(best)) and best.robust_accuracy.median() >= level / 100,
                         "on training batches": bool(len(best)) and best.batch_accuracy.median() >= level / 100})
    return pd.DataFrame(rows)


def claims() -> list[Claim]:
    mnist, cifar = ("paper_mnist_tables", "cpu_mnist_tables"), ("paper_cifar10_tables",)
    return [
        Claim("CAT is faster than AT by up to 3 times (abstract)", "3.16 at 60 % on CIFAR-10, one cell", cifar, _up_to_three),
        Claim("... and on MNIST", "1.05 to 1.34", mnist, _up_to_three),
        Claim("Accuracy costs 2 to 5 times less on CIFAR-10 (3.2)", "2.33 to 4.81", cifar, _overall("accuracy")),
        *table_claims(),
        Claim("CAT converges faster in all settings: MNIST (3.2)", "all 8 cells", mnist, _all_settings),
        Claim("CAT converges faster in all settings: CIFAR-10 (3.2)", "all 7 cells", cifar, _all_settings),
        Claim("... if ε does not grow at first", "all 8 cells", ("cpu_mnist_tables_constant",), _all_settings),
        Claim("Competitive defence effect: MNIST (abstract)", "no number", mnist, _competitive),
        Claim("... if ε does not grow at first", "no number", ("cpu_mnist_tables_constant",), _competitive),
        Claim("Competitive defence effect: CIFAR-10 (abstract)", "no number", ("paper_cifar10_tables",), _competitive),
        Claim("A CAT iteration costs what an AT iteration costs (ticks of Table 1)", "12.9 s against 12.8 s", mnist, _overhead),
        Claim("AT costs tens of times more than normal training (2.1)", "tens of times", mnist, _dearer),
        Claim("Predictions on adversarial examples of neighbouring iterations are similar: MNIST (Fig. 1)", "a figure",
              ("paper_mnist_similarity", "cpu_mnist_similarity"), _similarity),
        Claim("Predictions on adversarial examples of neighbouring iterations are similar: CIFAR-10 (Fig. 1)", "a figure",
              ("paper_cifar10_similarity", "cpu_cifar10_similarity"), _similarity),
        Claim("So an old weight estimates today's importance: MNIST (2.2)", "no number",
              ("paper_mnist_similarity_staleness", "cpu_mnist_similarity_staleness"), _stale),
        Claim("So an old weight estimates today's importance: CIFAR-10 (2.2)", "no number",
              ("paper_cifar10_similarity_staleness", "cpu_cifar10_similarity_staleness"), _stale),
        Claim("A limited part of the examples gives most of the performance (abstract)", "no number",
              ("paper_cifar10_controls", "cpu_mnist_controls"), _few_samples),
        Claim("The gain is mainly from drawing informative examples (3.2): weights against none, both balanced", "no number",
              ("paper_cifar10_controls", "cpu_mnist_controls"), _arm("balance only", "CAT", "weights help", "weights harm")),
        Claim("... weights alone against AT", "no number", ("paper_cifar10_controls", "cpu_mnist_controls"),
              _arm("AT", "weights only", "weights help", "weights harm")),
        Claim("... the opposite weights, easy examples first", "no number", ("paper_cifar10_controls", "cpu_mnist_controls"),
              _arm("inverted weights", "CAT", "hard examples are better", "easy examples are better")),
        Claim("Class-level balance increases diversity and helps (2.2)", "no number", ("paper_cifar10_controls", "cpu_mnist_controls"),
              _arm("AT", "balance only", "balance helps", "balance harms")),
        Claim("α = 0.5 (3.1)", "the value used", ("paper_cifar10_controls", "cpu_mnist_controls"), _alphas),
        Claim("CAT needs fewer iterations at every sampling number: MNIST (Fig. 2)", "a figure",
              ("paper_mnist_sampling_number", "cpu_mnist_sampling_number"), _by_number()),
        Claim("CAT needs fewer iterations at every sampling number: CIFAR-10 (Fig. 3)", "a figure", ("paper_cifar10_sampling_number",), _by_number()),
        Claim("Speed rises with the sampling number up to a threshold and then falls: MNIST (3.2)", "a figure",
              ("paper_mnist_sampling_number", "cpu_mnist_sampling_number"), _peak),
        Claim("Speed rises with the sampling number up to a threshold and then falls: CIFAR-10 (3.2)", "peak around 256",
              ("paper_cifar10_sampling_number",), _peak),
        Claim("With a large sampling number weighted and random draws come together (3.2)", "no number",
              ("paper_mnist_sampling_number", "cpu_mnist_sampling_number"), _approach),
        Claim("The speed-up is larger on CIFAR-10 than on MNIST (3.2)", "3.16 against 1.14 at most (robust accuracy)",
              ("paper_cifar10_tables",), _overall("robust_accuracy")),
        Claim("CAT combines with any adversarial training (abstract): with PGD-2", "no number", ("paper_cifar10_cheap", "cpu_mnist_cheap"),
              _overall(baseline="PGD-2", arm="CAT + PGD-2", cost="passes")),
        Claim("CAT combines with any adversarial training (abstract): with FGSM and a random start", "no number",
              ("paper_cifar10_cheap", "cpu_mnist_cheap"), _overall(baseline="FGSM-RS", arm="CAT + FGSM-RS", cost="passes")),
        Claim("The printed robust accuracies can be had in the printed iterations: MNIST (Table 1)", "90 % after 84 (AT), 73 (CAT)",
              ("paper_mnist_audit", "cpu_mnist_audit"), _printed),
        Claim("The printed robust accuracies can be had in the printed iterations: CIFAR-10 (Table 2)", "60 % after 790 (AT), 250 (CAT)",
              ("paper_cifar10_audit",), _printed),
    ]


def answer(claim: Claim, tables: dict[str, pd.DataFrame]) -> tuple[str, str]:
    """(ours, verdict): from every table that is there, and the command for the best one where it is not."""
    ours, verdicts = [], []
    there = [name for name in claim.tables if name in tables]
    for name in there:
        text, verdict = claim.measure(tables[name], name)
        ours.append(f"{label(name)}: {text}")
        verdicts.append(verdict if len(there) == 1 else f"{label(name)}: {verdict}")
    if claim.tables[0] not in tables and claim.tables[0].startswith("paper"):
        verdicts.append(f"**open** with ResNet-18: [`{piece_of(claim.tables[0]).name}`](#open)")
    return "<br>".join(ours) or "—", "<br>".join(verdicts)


def label(name: str) -> str:
    """What a table was measured on, in two words."""
    trial = piece_of(name).trials[0][1]
    epsilon = f"{255 * trial.epsilon:.0f}/255" if trial.dataset == "cifar10" else f"{trial.epsilon:g}"
    return f"{trial.model}, {'growing ' if trial.epsilon_warm_up else ''}ε = {epsilon}"


def verdict(tables: dict[str, pd.DataFrame]) -> str:
    """The finding in three sentences, from the best tables that are there."""
    sentences = []
    name = next((n for n in ("paper_mnist_tables", "cpu_mnist_tables") if n in tables), None)
    if name:
        printed = paper_table("mnist")["AT/CAT"]
        ratio, low, high, seeds = overall(tables[name], _levels(name, "robust_accuracy"), "robust_accuracy", "iteration", "AT", "CAT")
        said = {"CAT faster": "CAT reaches a robust accuracy in fewer iterations than vanilla AT",
                "CAT slower": "CAT needs more iterations than vanilla AT for a robust accuracy"}.get(faster(low, high, seeds).split(" (")[0], "no difference in iterations between CAT and vanilla AT can be shown")
        sentences.append(f"On MNIST ({label(name)}, {seeds} seeds) {said}: AT / CAT is {interval(ratio, low, high)} over all thresholds, "
                         f"where the paper prints {printed.min():.2f} to {printed.max():.2f}.")
    name = next((n for n in ("paper_cifar10_controls", "cpu_mnist_controls") if n in tables), None)
    if name and {"AT", "CAT", "balance only"} <= set(tables[name].arm):
        weights, balance = _last(tables[name], "balance only", "CAT")[2], _last(tables[name], "AT", "balance only")[2]
        sentences.append(f"Where training images are met again ({'CIFAR-10' if 'cifar10' in name else 'MNIST, few images'}), class balance alone changes the final robust "
                         f"accuracy by {_points(balance)} points and the weights on top of it by {_points(weights)}.")
    if "paper_cifar10_tables" in tables:
        ours, judged = _up_to_three(tables["paper_cifar10_tables"], "paper_cifar10_tables")
        sentences.append(f"The claim of 3 times on CIFAR-10 is {judged}: {ours}.")
    else:
        rival = ""
        if "cpu_mnist_cheap" in tables and "N-FGSM" in set(tables["cpu_mnist_cheap"].arm):
            cheap = overall(tables["cpu_mnist_cheap"], _levels("cpu_mnist_cheap", "robust_accuracy"), "robust_accuracy", "passes", "CAT", "N-FGSM")
            rival = f"; on MNIST uniform N-FGSM reaches the same thresholds in {interval(*cheap[:3], digits=1)} times fewer passes than CAT"
        sentences.append(f"The claim of 3 times, one cell on CIFAR-10 with ResNet-18, is open until a GPU has run the study{rival}.")
    return " ".join(sentences)


def _points(values) -> str:
    difference, low, high = (100 * value for value in values)
    return f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"


def markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def claims_page(tables: dict[str, pd.DataFrame]) -> str:
    """data/results/README.md."""
    answers = [(claim, *answer(claim, tables)) for claim in claims()]
    table = pd.DataFrame([(number, c.text, c.paper, ours, judged) for number, (c, ours, judged) in enumerate(answers, 1)],
                         columns=["", "claim", "paper", "ours", "verdict"])
    parts = ["# What the paper claims, and what was measured\n",
             "<!-- written by `python -m catlib.lab.study page` from the tables in this folder; do not edit -->\n",
             verdict(tables) + "\n", HOW_TO_READ, "## Claim by claim\n", markdown(table)]
    for title, make in (("The controls", controls_section), ("The cheap rivals", cheap_section), ("The audit", audit_section)):
        if text := make(tables):
            parts += [f"## {title}\n", text]
    parts += ["## Open\n", open_section(tables)]
    return "\n".join(parts)


HOW_TO_READ = """\
- A ratio is AT / CAT, geometric mean over seeds, with its 95 % bootstrap interval; AT and CAT are paired by seed (same initial
  weights). Above 1, CAT is faster. An interval that contains 1 shows no difference; it does not show that there is none.
  All of five seeds fall on one side by luck alone in 6 % of cases, and there are many rows: one row proves little.
- A level counts as reached at the first sustained crossing: that evaluation and its mean with the next are at or above it. The
  tick, the iterations between evaluations, stands in each table's header and bounds the precision. A ratio is over the seeds on
  which both reached the level; "4/5 seeds" says that one did not, and then the ratio flatters whoever missed it.
- ± is the standard deviation over seeds. Seconds are training alone, on a machine with other work: believe iterations and passes.
- Every table says where it is from: dataset, model, threat model, device, versions, seeds, command.
"""


def controls_section(tables) -> str:
    text = ""
    for name in ("paper_cifar10_controls", "cpu_mnist_controls"):
        if name in tables:
            records, rows = tables[name], []
            level = next(lv for lv in sorted(_levels(name, "robust_accuracy"), reverse=True)
                         if speed_table(records, [lv / 100], by="arm", method="balance only").pairs.iloc[0] > 1)
            last = records.sort_values("iteration").groupby(["arm", "seed"]).last()
            for arm in dict.fromkeys(records.arm):
                mine = last.loc[arm]
                difference = "" if arm == "AT" else _points(_last(records, "AT", arm)[2])
                speed = "" if arm == "AT" else interval(*speed_table(records, [level / 100], by="arm", method=arm)[["ratio", "low", "high"]].iloc[0])
                rows.append((arm, len(mine), f"{mine.robust_accuracy.mean():.1%} ± {mine.robust_accuracy.std():.1%}", difference, speed, f"{mine.coverage.mean():.1%}"))
            text += f"{label(name)}; the table `{name}.csv`.\n\n" + markdown(pd.DataFrame(rows, columns=[
                "arm", "seeds", "robust accuracy at the end", "difference to AT, points", f"AT / arm, iterations to {level:g} %", "training images seen"]))
    return text


def cheap_section(tables) -> str:
    text = ""
    for name in ("paper_cifar10_cheap", "cpu_mnist_cheap"):
        if name in tables:
            records, rows, levels = tables[name], [], _levels(name, "robust_accuracy")
            last = records.sort_values("iteration").groupby(["arm", "seed"]).last()
            for arm in dict.fromkeys(records.arm):
                mine = last.loc[arm]
                metric = "final_robust_accuracy" if "final_robust_accuracy" in mine else "robust_accuracy"
                ratio = "" if arm == "AT" else interval(*overall(records, levels, "robust_accuracy", "passes", "AT", arm)[:3])
                rows.append((arm, len(mine), f"{mine.passes.mean():,.0f}", f"{mine[metric].mean():.1%} ± {mine[metric].std():.1%}", ratio))
            text += f"{label(name)}; the table `{name}.csv`.\n\n" + markdown(pd.DataFrame(rows, columns=[
                "arm", "seeds", "passes in all", "robust accuracy at the end, PGD-20 with restarts", "AT / arm, passes, all levels"]))
    return text


def audit_section(tables) -> str:
    text = ""
    for name in ("paper_mnist_audit", "cpu_mnist_audit", "paper_cifar10_audit"):
        if name in tables:
            rows = audit(tables[name], name)
            cell = {(r.arm, r.level): f"{'yes' if r['on test images'] else 'no'} ({r.robust:.0%}); {'yes' if r['on training batches'] else 'no'} ({r.batch:.0%})"
                    for _, r in rows.iterrows()}
            arms, levels = list(dict.fromkeys(rows.arm)), list(dict.fromkeys(rows.level))
            wide = pd.DataFrame([(arm, *(cell[arm, level] for level in levels)) for arm in arms], columns=["reading", *(f"{level} %" for level in levels)])
            text += (f"{label(name)}; the table `{name}.csv`. Is a printed robust accuracy reached within the printed iterations: on test images, and on "
                     f"training batches (best so far, mean over seeds)?\n\n" + markdown(wide) + "\n")
    return text


def open_section(tables) -> str:
    missing = [piece for piece in pieces_of("paper") if piece.table not in tables and piece.kind != "notebook"]
    missing += [piece for piece in pieces_of("cpu") if piece.table not in tables]
    partial = [piece for profile in ("paper", "cpu") for piece in pieces_of(profile) if piece.kind == "train" and piece.table in tables
               and len(tables[piece.table].groupby([c for c in ("arm", "seed", "sampling_number") if c in tables[piece.table]])) < len(piece.trials)]
    lines = [f"- `{piece.name}`. {piece.about}: `{piece.command}`" for piece in missing + partial]
    return "\n".join(lines) + "\n" if lines else "Nothing.\n"


def readme_results(tables: dict[str, pd.DataFrame]) -> str:
    """The table of the project's README."""
    name = next((n for n in ("paper_mnist_tables", "cpu_mnist_tables") if n in tables), None)
    if not name:
        return "No table of the study is there yet: `make study PROFILE=cpu`.\n"
    rows = []
    for claim in table_claims():
        table = next((n for n in claim.tables if n in tables), None)
        ours, judged = claim.measure(tables[table], table) if table else ("—", "open: `make study PROFILE=paper` on a GPU")
        rows.append((claim.text, claim.paper, ours, judged))
    heading = f"Ours: {label(name)}, iterations of 128 adversarial examples; a ratio is AT / CAT with its 95 % interval, paired by seed."
    return f"{heading} [Every claim](data/results/README.md).\n\n" + markdown(pd.DataFrame(rows, columns=["", "paper", "ours", "verdict"]))


def between(text: str, marker: str, content: str) -> str:
    """The text with what stands between ``<!-- marker -->`` and ``<!-- /marker -->`` replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.S)
    return pattern.sub(lambda match: match[1] + content.rstrip("\n") + "\n" + match[2], text)


def pages(results: Path, readme: str) -> dict[str, str]:
    """Every generated text by file name: summary.csv, final.csv, README.md of the results, and the project's README."""
    tables = load_tables(results)
    texts = {f"{name}.csv": f"# {about}\n# command: python -m catlib.lab.study page\n" + table.to_csv(index=False, lineterminator="\n")
             for name, about, table in (
                 ("summary", "Ratios baseline / arm of what a level cost, paired by seed, with 95 % bootstrap intervals", summary(tables)),
                 ("final", "Where each arm stood at the last iteration, and the difference to its baseline in robust accuracy", final(tables)))}
    texts["README.md"] = claims_page(tables)
    texts["../../README.md"] = between(between(readme, "verdict", verdict(tables)), "results", readme_results(tables))
    return texts


def write_pages(results: Path) -> None:
    for name, text in pages(results, README.read_text(encoding="utf-8")).items():
        path = README if name.startswith("..") else results / name
        write_whole(path, text.encode())
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)

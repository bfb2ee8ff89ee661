"""The frontier: interpolation and ratios against curves whose ratios are known."""

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy import stats

matplotlib.use("Agg")

from catlib.lab import figures, frontier
from catlib.lab.compare import mean_interval

BUDGETS = (50_000, 100_000, 200_000, 400_000)


def curve(arm, seed, cost=1.0, slope=0.05, shift=0.0):
    """Accuracies that grow with each doubling; an arm of cost 2 needs twice as many passes."""
    rows = []
    for budget in BUDGETS:
        doublings = math.log2(budget / BUDGETS[0] / cost)
        accuracy = 0.6 + shift + slope * doublings
        row = {"arm": arm, "seed": seed, "budget": budget, "passes": budget}
        rows.append(row | {"final_robust_accuracy": accuracy})
    return rows


def table(*curves):
    return pd.DataFrame([row for one in curves for row in one])


def test_a_level_between_two_budgets_is_found_on_the_logarithm():
    """Half way up a doubling is root two."""
    found = frontier.passes_for(table(curve("a", 0)), 0.675)
    assert found.passes.tolist() == pytest.approx([100_000 * 2**0.5])
    assert found.at_most.tolist() == [False]
    exact = frontier.passes_for(table(curve("a", 0)), 0.7)
    assert exact.passes.tolist() == pytest.approx([200_000])


def test_a_level_out_of_reach_and_one_that_the_smallest_budget_has():
    found = frontier.passes_for(table(curve("a", 0)), 0.9)
    assert found.passes.isna().all() and not found.at_most.any()
    found = frontier.passes_for(table(curve("a", 0)), 0.5)
    assert found.passes.tolist() == [50_000] and found.at_most.all()


def test_a_run_without_a_number_is_left_out_and_the_rest_interpolated():
    """A run that diverged has none; what lies beside it spans two doublings."""
    runs = table(curve("a", 0))
    runs.loc[1, "final_robust_accuracy"] = None
    found = frontier.passes_for(runs, 0.65)
    assert found.passes.tolist() == pytest.approx([100_000])


def test_a_known_ratio_is_found_again_with_its_interval():
    """Arm b needs 1.5 times fewer passes on the mean, by factors that differ from seed to seed."""
    factors = [1.5, 1.5 * 1.1, 1.5 / 1.1, 1.5]
    runs = []
    for seed, factor in enumerate(factors):
        shift = 0.01 * seed  # which both arms share
        runs += [curve("a", seed, cost=1.5, shift=shift)]
        runs += [curve("b", seed, cost=1.5 / factor, shift=shift)]
    [row] = frontier.ratios(table(*runs), 0.68, "a").itertuples()
    logs = np.log(factors)
    reach = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2
    assert row.arm == "b" and row.pairs == 4 and row.reached == "4/4" and row.at_most == 0
    assert row.ratio == pytest.approx(1.5)
    assert (row.low, row.high) == pytest.approx((1.5 * math.exp(-reach), 1.5 * math.exp(reach)))


def test_pairs_whose_passes_are_not_known_are_left_out_and_counted():
    runs = table(
        curve("a", 0),
        curve("b", 0, cost=0.5),
        curve("a", 1),
        curve("b", 1, shift=-0.3),  # never reaches it
        curve("a", 2),
        curve("b", 2, shift=0.3),  # has it at once
    )
    [row] = frontier.ratios(runs, 0.675, "a").itertuples()
    assert row.pairs == 1 and row.ratio == pytest.approx(2)
    assert row.reached == "2/3" and row.at_most == 1
    [row] = frontier.ratios(runs, 1.2, "a").itertuples()
    assert row.pairs == 0 and math.isnan(row.ratio) and math.isnan(row.passes)


def test_means_and_intervals_at_each_budget():
    runs = table(*(curve(arm, seed, shift=0.01 * seed) for seed in range(3) for arm in "ba"))
    rows = frontier.by_budget(runs)
    assert rows.arm.tolist() == ["b"] * 4 + ["a"] * 4
    assert rows.budget.tolist() == [*BUDGETS, *BUDGETS]
    expected = mean_interval([0.6, 0.61, 0.62])
    first = rows.iloc[0]
    assert (first["mean"], first.low, first.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert (rows.seeds == 3).all() and rows.passes.tolist() == rows.budget.tolist()


def test_the_figure_draws_what_the_rows_say():
    runs = table(*(curve(arm, seed, shift=0.01 * seed) for seed in range(3) for arm in "ab"))
    rows = frontier.by_budget(runs)
    axis = figures.frontier(rows)
    assert axis.get_xscale() == "log"
    lines = [container.lines[0] for container in axis.containers]
    assert [line.get_xdata().tolist() for line in lines] == [list(BUDGETS)] * 2
    assert lines[0].get_ydata().tolist() == pytest.approx(rows[rows.arm == "a"]["mean"].tolist())
    bars = axis.containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1].tolist() == pytest.approx([rows.low.iloc[0], rows.high.iloc[0]])

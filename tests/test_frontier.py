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


# ------------------------------------------------------------------ in words


def pairs_of(*costs, arm="remembered", rival="PGD-10", seeds=8):
    """The arm needs 1 / cost of the rival's passes, a cost a seed; both swing from seed to seed."""
    runs = []
    for seed in range(seeds):
        shift = 0.002 * seed
        runs += [curve(rival, seed, shift=shift)]
        runs += [curve(arm, seed, cost=1 / costs[seed % len(costs)], shift=shift)]
    return table(*runs)


def test_the_level_is_one_that_every_seed_of_the_arm_reaches():
    runs = table(curve("a", 0), curve("a", 1, shift=-0.013), curve("b", 0, shift=0.1))
    # three doublings: 0.75 and 0.737
    assert frontier.level_of(runs, "a") == 0.73
    only_at_a_small_one = runs[(runs.arm == "b") | (runs.budget < BUDGETS[-1])]
    assert frontier.level_of(only_at_a_small_one, "a") == 0.68


def test_a_known_saving_is_said_and_shown():
    one = frontier.saved(pairs_of(1.5, 1.6), "remembered", "PGD-10")
    assert one.level == 0.75 and one.ratio.value == pytest.approx((1.5 * 1.6) ** 0.5)
    assert one.in_words.startswith("1.55 [") and not one.is_bound
    assert one.verdict.word == "holds"


def test_arms_that_arrive_only_at_times_save_nothing_and_slower_ones_are_contradicted():
    verdict = frontier.saved(pairs_of(1.2, 1 / 1.2), "remembered", "PGD-10").verdict
    # the four fast ones, and of the slow ones the seed that lies highest
    assert str(verdict) == "not shown (5 of 8 seeds of remembered reached it)"
    verdict = frontier.saved(pairs_of(1.1, 1.2), "PGD-10", "remembered").verdict
    assert verdict.word == "contradicted"


def test_a_level_that_the_smallest_budget_has_gives_a_lower_bound():
    one = frontier.saved(pairs_of(16.0, 32.0), "remembered", "PGD-10")
    # all of it at 50,000 passes, where PGD-10 needs nearly 400,000
    assert one.is_bound and 7 < one.ratio.value < 8
    assert one.in_words.startswith("at least 7.") and one.verdict.word == "holds"


def test_an_arm_that_never_arrives_saves_nothing():
    runs = table(*(curve("PGD-10", s) + curve("remembered", s, shift=-0.5) for s in range(8)))
    verdict = frontier.saved(runs, "remembered", "PGD-10").verdict
    assert str(verdict) == "not shown (0 of 8 seeds of remembered reached it)"


def test_sentences_compare_with_the_best_rival_and_with_plain_training():
    runs = pairs_of(2.0, 2.1)
    cheap = [row for seed in range(8) for row in curve("PGD-2", seed, cost=0.8, shift=0.002 * seed)]
    both = pd.concat([runs, pd.DataFrame(cheap)], ignore_index=True)
    assert frontier.best_rival(both) == "PGD-2"
    first, second, third = frontier.sentences(both)
    assert "its rivals, `PGD-2`, at" in first and "more robust: holds" in first
    assert second.startswith("To 76 % ") and "`PGD-2` takes 1.6" in second
    assert third.startswith("To 75 % ") and "`PGD-10` takes 2.0" in third
    assert len(frontier.sentences(runs)) == 2, "plain training is the best rival"


def test_the_rival_is_chosen_where_most_arms_were_run():
    """PGD-2 alone has a larger budget, and N-FGSM is better where both were run."""
    runs = pairs_of(2.0, 2.1)
    weak = [row for seed in range(8) for row in curve("PGD-2", seed, shift=-0.02)]
    strong = [row for seed in range(8) for row in curve("N-FGSM", seed, shift=0.02)]
    both = pd.concat([runs, pd.DataFrame([*weak, *strong])], ignore_index=True)
    most = both.budget.max()
    longer = both[(both.arm == "PGD-2") & (both.budget == most)]
    longer = longer.assign(budget=4 * most, passes=4 * longer.passes, final_robust_accuracy=0.9)
    table = pd.concat([both, longer], ignore_index=True)
    assert frontier.compared_budget(table) == most
    assert frontier.best_rival(table) == "N-FGSM"
    first = frontier.sentences(table)[0]
    assert first.startswith(f"With {most:,} passes, the most that nearly all were given, `rem")
    gap = frontier.at_the_end(table, "remembered", "N-FGSM")
    assert gap.value == frontier.at_the_end(both, "remembered", "N-FGSM").value


def test_an_ablation_takes_the_difference_to_the_arm_without_the_addition():
    runs = pairs_of(1.5)
    added = runs[runs.arm == "remembered"].assign(arm="remembered, steps by weight")
    noise = 0.001 * np.tile([1, -1], len(added) // 2)
    added["final_robust_accuracy"] += 0.02 + noise
    [row] = frontier.ablation(pd.concat([runs, added])).itertuples()
    assert row.arm == "remembered, steps by weight"
    assert row.gap.value == pytest.approx(0.019) and row.gap.pairs == 8
    assert row.verdict.word == "holds"

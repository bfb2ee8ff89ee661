"""Tables and curves against numbers worked out by hand on small synthetic records."""

import math

import numpy as np
import pandas as pd
import pytest

from catlib.lab import compare, paper


def records(*runs, every=10):
    """Records of runs (arm, seed, robust accuracies at every, 2 every, ... iterations).

    An iteration takes 11 passes and 0.1 s.
    """
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "iteration": every * i,
            "passes": 11 * every * i,
            "seconds": every * i / 10,
            "accuracy": min(1.0, value + 0.1),
            "robust_accuracy": value,
        }
        for arm, seed, values in runs
        for i, value in enumerate(values, 1)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "values, iteration",
    [
        ([0.1, 0.5, 0.6], 20),  # stays above
        ([0.1, 0.8, 0.1, 0.5, 0.5], 40),  # one lucky evaluation does not count
        ([0.1, 0.6, 0.45, 0.2], 20),  # a small dip does: the mean of the two is above
        ([0.1, 0.49, 0.9, 0.9], 30),  # below the level, though the mean with the next is above
        ([0.1, 0.2, 0.9], None),  # the last evaluation has nothing to sustain it
        ([0.1, 0.2], None),
        ([0.9], None),
    ],
)
def test_reach_is_the_first_sustained_crossing(values, iteration):
    row = compare.reach(records(("AT", 0, values)), 0.5)
    assert (None if row is None else row.iteration) == iteration


def test_reach_skips_rows_that_were_not_evaluated_and_takes_any_order():
    run = records(("AT", 0, [0.1, math.nan, 0.5, math.nan, 0.6])).sample(frac=1, random_state=0)
    row = compare.reach(run, 0.5)
    assert (row.iteration, row.passes, row.seconds) == (30, 330, 3.0)


def test_speed_table_pairs_by_seed():
    table = compare.speed_table(
        records(
            ("AT", 0, [0.1, 0.5, 0.5, 0.5, 0.5]),
            ("AT", 1, [0.1, 0.1, 0.1, 0.5, 0.5]),
            ("AT", 2, [0.5, 0.5, 0.5, 0.5, 0.5]),
            ("CAT", 0, [0.5, 0.5, 0.5, 0.5, 0.5]),
            ("CAT", 1, [0.1, 0.5, 0.5, 0.5, 0.5]),
            ("CAT", 2, [0.1] * 5),
        ),
        [0.5, 0.9],
    )
    first, second = table.itertuples(index=False)
    assert pytest.approx((20 + 40 + 10) / 3) == first.AT and pytest.approx(15) == first.CAT
    assert (table["AT reached"][0], table["CAT reached"][0], first.pairs) == ("3/3", "2/3", 2)
    assert (first.ratio, first.low, first.high) == pytest.approx(
        (2, 2, 2)
    )  # 20/10 and 40/20; seed 2 has no pair
    assert math.isnan(second.ratio) and second.pairs == 0 and table["AT reached"][1] == "0/3"
    shown = compare.readable(table)
    assert list(shown.loc["50"]) == ["23.3", "15 (2/3 seeds)", "2.00 [2.00, 2.00]"]
    assert list(shown.loc["90"]) == ["— (0/3 seeds)", "— (0/3 seeds)", "—"]


def test_costs_in_passes_and_seconds():
    table = compare.costs(
        records(("AT", 0, [0.1, 0.6, 0.6]), ("CAT", 0, [0.1, 0.1, 0.1])), 0.5
    ).set_index("arm")
    assert table.loc["AT", ["iteration", "passes", "seconds"]].tolist() == [20, 220, 2.0]
    assert table.loc["CAT", ["iteration", "passes", "seconds"]].isna().all()


def parts(estimate):
    """Value and ends of the interval, for comparison."""
    return estimate.value, estimate.low, estimate.high


def test_ratio_is_the_geometric_mean_and_symmetric():
    value, low, high = parts(compare.ratio([10, 40], [10, 10]))
    assert value == pytest.approx(2)
    assert (low, high) == pytest.approx((1, 4))
    turned = parts(compare.ratio([10, 10], [10, 40]))
    assert turned == pytest.approx((1 / value, 1 / high, 1 / low))


def test_ratio_of_few_or_broken_pairs():
    assert compare.ratio([20.0], [10.0]).value == pytest.approx(2)
    assert math.isnan(compare.ratio([20.0], [10.0]).low)
    assert math.isnan(compare.ratio([math.nan, 3], [1, math.nan]).value)
    broken = compare.ratio([20, math.nan, 20], [10, 1, 10])
    assert parts(broken) == pytest.approx((2, 2, 2))
    assert broken.pairs == 2
    with pytest.raises(ValueError, match=r"first \(2,\) and second \(3,\)"):
        compare.ratio([1, 2], [1, 2, 3])


def test_difference_is_of_the_seeds_of_both():
    first = pd.Series([0.5, 0.7, 0.9], index=[0, 1, 2])
    second = pd.Series([0.4, 0.6, 0.1], index=[0, 1, 3])
    gap = compare.difference(first, second)
    assert parts(gap) == pytest.approx((0.1, 0.1, 0.1))
    assert gap.pairs == 2
    assert gap.as_points() == "+10.0 [+10.0, +10.0]"


def test_bootstrap_interval_of_three_pairs_is_their_range():
    # all three draws the smallest: 1 in 27, more than the tail of 2.5 %
    assert parts(compare.ratio([10, 20, 40], [10, 10, 10]))[1:] == pytest.approx((1, 4))


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered, trials = 0, 400
    for _ in range(trials):
        interval = compare.mean_interval(rng.normal(0.3, 0.2, 25), resamples=500)
        covered += interval.low <= 0.3 <= interval.high
    # a percentile interval of 25 pairs covers about 93.5 %; four standard deviations are 5 %
    assert 0.885 <= covered / trials <= 0.985


def test_who_was_ahead_counts_levels_and_intervals():
    base = {"AT": 1.0, "CAT": 1.0}
    table = pd.DataFrame(
        [
            base | {"ratio": r, "low": lo, "high": hi}
            for r, lo, hi in [
                (1.5, 1.2, 1.9),
                (1.1, 0.9, 1.3),
                (1.0, 1.0, 1.0),
                (0.8, 0.7, 0.9),
                (math.nan,) * 3,
            ]
        ]
    )
    sentence = compare.who_was_ahead(table)
    assert "ahead of AT at 2 of 4 levels, behind at 1, level at 1" in sentence
    assert "excludes 1 at 2, in favour of CAT at 1;" in sentence and "AT/CAT 1.05" in sentence
    assert "nothing can be compared" in compare.who_was_ahead(table.tail(1))


def test_paper_times_are_whole_multiples_of_one_tick():
    ticks = {
        name: [
            paper.common_tick(
                [t[i] for part in tables.values() for t in part.values()], paper.PRINTED_TO[name]
            )
            for i in (0, 1)
        ]
        for name, tables in paper.PAPER.items()
    }
    assert ticks["mnist"] == pytest.approx([12.8, 12.9], abs=0.01) and ticks[
        "cifar10"
    ] == pytest.approx([0.095, 0.095], abs=1e-4)
    table = paper.paper_table("cifar10")
    assert table.loc[60, ["AT ticks", "CAT ticks", "AT/CAT"]].tolist() == [79, 25, 3.16]


def test_common_tick_is_the_largest_and_may_not_exist():
    assert paper.common_tick([30, 45, 75], 1) == pytest.approx(15, abs=0.2)
    assert math.isnan(paper.common_tick([10.3, 17.1, 23.8, 31.4, 44.9], 0.1))


def test_measured_reads_the_studys_tables(tmp_path):
    (tmp_path / "cpu_x.csv").write_text(
        "# about: a # in the text\n# seeds: 0\narm,seed,method,iteration\nrank,0,CAT,5\n",
        encoding="utf-8",
    )
    table = compare.measured("cpu_x", tmp_path)
    assert table.to_dict("records") == [
        {"arm": "rank", "seed": 0, "method": "CAT", "iteration": 5}
    ] and table.attrs["about"].startswith("about: a #")
    assert compare.measured("cpu_y", tmp_path) is None

"""Tables and curves against numbers worked out by hand on small synthetic records."""

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

from catlib.lab import figures


def records(*runs, every=10):
    """Records of runs (method, seed, robust accuracies at every, 2 every, ...); an iteration takes 11 passes, 0.1 s."""
    rows = [
        {
            "method": method,
            "seed": seed,
            "iteration": every * i,
            "passes": 11 * every * i,
            "seconds": every * i / 10,
            "accuracy": min(1.0, value + 0.1),
            "robust_accuracy": value,
        }
        for method, seed, values in runs
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
    row = figures.reach(records(("AT", 0, values)), 0.5)
    assert (None if row is None else row.iteration) == iteration


def test_reach_skips_rows_that_were_not_evaluated_and_takes_any_order():
    run = records(("AT", 0, [0.1, math.nan, 0.5, math.nan, 0.6])).sample(frac=1, random_state=0)
    row = figures.reach(run, 0.5)
    assert (row.iteration, row.passes, row.seconds) == (30, 330, 3.0)


def test_speed_table_pairs_by_seed():
    table = figures.speed_table(
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
    shown = figures.readable(table)
    assert list(shown.loc["50"]) == ["23.3", "15 (2/3 seeds)", "2.00 [2.00, 2.00]"]
    assert list(shown.loc["90"]) == ["— (0/3 seeds)", "— (0/3 seeds)", "—"]


def test_costs_in_passes_and_seconds():
    table = figures.costs(
        records(("AT", 0, [0.1, 0.6, 0.6]), ("CAT", 0, [0.1, 0.1, 0.1])), 0.5
    ).set_index("method")
    assert table.loc["AT", ["iteration", "passes", "seconds"]].tolist() == [20, 220, 2.0]
    assert table.loc["CAT", ["iteration", "passes", "seconds"]].isna().all()


def test_ratio_is_the_geometric_mean_and_symmetric():
    ratio, low, high = figures.ratio_interval([10, 40], [10, 10])
    assert ratio == pytest.approx(2) and (low, high) == pytest.approx((1, 4))
    assert figures.ratio_interval([10, 10], [10, 40]) == pytest.approx(
        (1 / ratio, 1 / high, 1 / low)
    )


def test_ratio_interval_of_few_or_broken_pairs():
    assert figures.ratio_interval([20.0], [10.0])[0] == pytest.approx(2) and math.isnan(
        figures.ratio_interval([20.0], [10.0])[1]
    )
    assert math.isnan(figures.ratio_interval([math.nan, 3], [1, math.nan])[0])
    assert figures.ratio_interval([20, math.nan, 20], [10, 1, 10]) == pytest.approx((2, 2, 2))
    with pytest.raises(ValueError, match=r"first \(2,\) and second \(3,\)"):
        figures.ratio_interval([1, 2], [1, 2, 3])


def test_bootstrap_interval_of_three_pairs_is_their_range():
    # all three draws the smallest: 1 in 27, more than the tail of 2.5 %
    assert figures.ratio_interval([10, 20, 40], [10, 10, 10])[1:] == pytest.approx((1, 4))


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng, covered, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        _, low, high = figures.ratio_interval(
            np.exp(rng.normal(0.3, 0.2, 25)), np.ones(25), resamples=500
        )
        covered += low <= math.exp(0.3) <= high
    # a percentile interval of 25 pairs covers about 93.5 %; four standard deviations are 5 %
    assert 0.885 <= covered / trials <= 0.985


def test_verdict_counts_levels_and_intervals():
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
    sentence = figures.verdict(table)
    assert "ahead of AT at 2 of 4 levels, behind at 1, level at 1" in sentence
    assert "excludes 1 at 2, in favour of CAT at 1;" in sentence and "AT/CAT 1.05" in sentence
    assert "nothing can be compared" in figures.verdict(table.tail(1))


def test_paper_times_are_whole_multiples_of_one_tick():
    ticks = {
        name: [
            figures.common_tick(
                [t[i] for part in tables.values() for t in part.values()], figures.PRINTED_TO[name]
            )
            for i in (0, 1)
        ]
        for name, tables in figures.PAPER.items()
    }
    assert ticks["mnist"] == pytest.approx([12.8, 12.9], abs=0.01) and ticks[
        "cifar10"
    ] == pytest.approx([0.095, 0.095], abs=1e-4)
    table = figures.paper_table("cifar10")
    assert table.loc[60, ["AT ticks", "CAT ticks", "AT/CAT"]].tolist() == [79, 25, 3.16]


def test_common_tick_is_the_largest_and_may_not_exist():
    assert figures.common_tick([30, 45, 75], 1) == pytest.approx(15, abs=0.2)
    assert math.isnan(figures.common_tick([10.3, 17.1, 23.8, 31.4, 44.9], 0.1))


def test_curves_draw_mean_and_range_against_mean_cost():
    table = records(("AT", 0, [0.2, 0.4]), ("AT", 1, [0.4, 0.8]), ("CAT", 0, [0.1, 0.1]))
    axes = figures.curves(table, "passes")
    line = axes[1].get_lines()[0]
    assert (
        line.get_color() == figures.COLOURS["AT"]
        and axes[1].get_lines()[1].get_color() == figures.COLOURS["CAT"]
    )
    assert line.get_xdata().tolist() == [110, 220] and line.get_ydata().tolist() == pytest.approx(
        [0.3, 0.6]
    )
    band = axes[1].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.2) and band[:, 1].max() == pytest.approx(0.8)


def test_curves_by_number_take_shades_in_order():
    table = pd.concat(
        [records(("CAT", 0, [0.2, 0.4])).assign(sampling_number=k) for k in (128, 32)]
    )
    axes = figures.curves(table, by="sampling_number")
    assert [line.get_label() for line in axes[0].get_lines()] == ["32", "128"]
    assert len({tuple(line.get_color()) for line in axes[0].get_lines()}) == 2


def test_heat_map_writes_every_number():
    axis = figures.heat_map(
        pd.DataFrame([[1.0, 2.5], [math.nan, 4.0]], index=["a", "b"], columns=[16, 32]), "title"
    )
    assert [text.get_text() for text in axis.texts] == ["1.00", "2.50", "", "4.00"]


def test_measured_reads_the_studys_tables(tmp_path):
    (tmp_path / "cpu_x.csv").write_text(
        "# about: a # in the text\n# seeds: 0\narm,seed,method,iteration\nrank,0,CAT,5\n",
        encoding="utf-8",
    )
    table = figures.measured("cpu_x", tmp_path)
    assert table.to_dict("records") == [
        {"method": "rank", "seed": 0, "iteration": 5}
    ] and table.attrs["about"].startswith("about: a #")
    assert figures.measured("cpu_y", tmp_path) is None

"""Tables and curves against numbers worked out by hand on small synthetic records."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from catlib.lab import compare, pages, paper

pytestmark = pytest.mark.no_device("it computes with tables")


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
    assert low * high == pytest.approx(2 * 2)  # the same factor below and above
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


def test_the_interval_is_students_t_on_logarithms():
    """By the formula, with t_{0.975} of 4 degrees of freedom from a printed table."""
    first, second = [10, 20, 40, 30, 30], [10, 10, 10, 10, 30]
    logs = np.log(np.divide(first, second))
    reach = 2.776 * logs.std(ddof=1) / math.sqrt(5)
    value, low, high = parts(compare.ratio(first, second))
    assert value == pytest.approx(np.exp(logs.mean()))
    assert (low, high) == pytest.approx(
        (np.exp(logs.mean() - reach), np.exp(logs.mean() + reach)), rel=1e-3
    )


@pytest.mark.parametrize("count", [3, 5, 8])
def test_the_p_of_sign_flips_counts_all_signs(count):
    values = np.random.default_rng(count).normal(0.5, 1, count)
    signs = np.array(list(itertools.product((-1, 1), repeat=count)))
    means = (signs * values).mean(axis=1)
    as_far = (np.abs(means) >= abs(values.mean()) - 1e-12).mean()
    assert compare.mean_interval(values).p == pytest.approx(as_far)


def test_the_p_of_many_values_is_the_same_in_every_run():
    values = np.random.default_rng(0).normal(0.3, 1, 20)
    first = compare.sign_flip_p(values)
    compare._sign_flip_p.cache_clear()  # where another run would begin
    assert compare.sign_flip_p(values) == first
    assert first == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.03)


@pytest.mark.parametrize(
    ("p", "words"),
    [(0.004, "< 0.01"), (0.0547, "0.055"), (0.0469, "0.047"), (0.06, "0.06"), (1, "1.00")],
)
def test_a_p_near_the_limit_has_a_third_digit(p, words):
    assert compare.Estimate(1, 0.9, 1.1, pairs=8, p=p).p_in_words == words


def test_five_seeds_that_agree_have_a_p_of_six_percent_and_a_caveat():
    five, six = (compare.mean_interval(np.linspace(1, 2, count)) for count in (5, 6))
    assert five.p == pytest.approx(2 / 2**5)
    assert six.p == pytest.approx(2 / 2**6)
    assert "a lead" in compare.judged(five, "").remark
    assert compare.judged(six, "") == compare.Verdict(compare.HOLDS)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), max_size=6))
def test_corrected_p_are_those_of_the_closed_test_procedure(values):
    """Holm's p of a case is the largest Bonferroni p of all sets of cases that it belongs to."""
    estimates = [compare.Estimate(1, 0, 2, pairs=8, p=value) for value in values]
    tested = [case for case, value in enumerate(values) if not math.isnan(value)]
    expected = [math.nan] * len(values)
    for size in range(1, len(tested) + 1):
        for cases in itertools.combinations(tested, size):
            bonferroni = min(1.0, size * min(values[case] for case in cases))
            for case in cases:
                expected[case] = np.nanmax([expected[case], bonferroni])
    found = [one.p for one in compare.corrected(estimates)]
    assert found == pytest.approx(expected, nan_ok=True)


def test_a_side_is_shown_only_where_both_tests_agree():
    # the interval excludes zero, but one value of five lies on the other side
    estimate = compare.mean_interval([-0.05, 1.0, 1.1, 0.9, 1.2])
    assert estimate.low > 0
    assert estimate.p > 1 / 16
    assert estimate.side() == "across"
    assert compare.judged(estimate, "x").word == compare.NOT_SHOWN


def coverage(values, truth):
    """How often the library's intervals, one for each row of ``values``, cover the truth."""
    found = [compare.mean_interval(row) for row in values]
    return np.mean([one.low <= truth <= one.high for one in found])


@pytest.fixture
def without_sign_flips(monkeypatch):
    """The interval alone, since the exact test takes most of the time."""
    monkeypatch.setattr(compare, "sign_flip_p", lambda values: math.nan)


# 10,000 intervals: four standard deviations of a coverage of 95 % are 0.9 points
@pytest.mark.parametrize("pairs", [5, 8, 12])
@pytest.mark.usefixtures("without_sign_flips")
def test_the_interval_covers_the_truth_as_often_as_it_says(pairs):
    rng = np.random.default_rng(pairs)
    assert 0.93 <= coverage(rng.normal(0.1, 0.2, (10_000, pairs)), 0.1) <= 0.97


@pytest.mark.parametrize("pairs", [5, 8, 12])
@pytest.mark.usefixtures("without_sign_flips")
def test_it_covers_as_often_in_ticks(pairs):
    """Crossings after about 50 and 45 iterations, known to five iterations."""
    rng = np.random.default_rng(pairs)
    spread = rng.normal(0, 0.12, (2, 10_000, pairs))
    at, cat = (np.ceil(mean * np.exp(s) / 5) * 5 for mean, s in zip((50, 45), spread, strict=True))
    assert 0.93 <= coverage(np.log(at) - np.log(cat), math.log(50 / 45)) <= 0.97


@pytest.mark.parametrize("pairs", [5, 8, 12])
@pytest.mark.usefixtures("without_sign_flips")
def test_what_becomes_of_it_when_one_seed_in_five_does_not_learn_is_what_the_page_says(pairs):
    rng = np.random.default_rng(pairs)
    failed = rng.random((10_000, pairs)) < 0.2
    differences = rng.normal(0, 0.02, (10_000, pairs)) - 0.6 * failed
    covered = 100 * coverage(differences, -0.6 * 0.2)
    assert covered == pytest.approx(pages.COVERAGE["collapsing"][pairs], abs=2)


@pytest.mark.parametrize("pairs", [5, 16])
@pytest.mark.usefixtures("without_sign_flips")
def test_one_more_seed_falls_where_it_is_said_to(pairs):
    """By the textbook's formula; and in 95 % of 10,000 cases, four standard deviations wide."""
    rng = np.random.default_rng(pairs)
    values = rng.normal(0.1, 0.2, (10_000, pairs))
    ranges = [compare.mean_interval(row).next_difference() for row in values]
    spread = values[0].std(ddof=1) * math.sqrt(1 + 1 / pairs)
    expected = stats.t.interval(0.95, pairs - 1, loc=values[0].mean(), scale=spread)
    assert ranges[0] == pytest.approx(expected)
    new = rng.normal(0.1, 0.2, 10_000)
    low, high = np.transpose(ranges)
    inside = (low <= new) & (new <= high)
    assert 0.94 <= inside.mean() <= 0.96
    of_ratios = compare.ratio(np.exp(values[0]), np.ones(pairs)).next_ratio()
    assert of_ratios == pytest.approx(np.exp(expected))


def level(percent, ats, cats):
    """A row of a speed table, from what AT and CAT took by seed; NaN did not arrive."""
    took = [("AT", seed, cost) for seed, cost in enumerate(ats)]
    took += [("CAT", seed, cost) for seed, cost in enumerate(cats)]
    table = pd.DataFrame(took, columns=["arm", "seed", "iteration"])
    return {"level": percent} | compare.speed_row(table, "iteration")


def test_who_was_ahead_compares_only_levels_that_every_run_reached():
    """CAT leads among the three seeds that got there; two of its runs never did."""
    table = pd.DataFrame(
        [
            level(50, [10, 11, 12, 13, 14, 15], [5, 6, 6, 6, 7, 8]),
            level(60, [20] * 6, [20] * 6),
            level(70, [60, 61, 62, 63, 64, 65], [30, 30, 31, math.nan, math.nan, 30]),
        ]
    )
    sentence = compare.who_was_ahead(table)
    assert "reached 2 of 3 levels" in sentence
    assert "ahead of AT at 1, behind at 0, tied at 1" in sentence
    assert "One difference is clear, in favour of CAT." in sentence
    assert "70 % was reached by AT 6/6, CAT 4/6 runs." in sentence
    alone = compare.who_was_ahead(table.tail(1))
    assert "no ratio is compared" in alone and "CAT 4/6" in alone


def test_no_verdict_from_survivors():
    row = pd.Series(level(70, [60, 61, 62, 63, 64, 65], [30, 30, 31, 30, 30, math.nan]))
    verdict = compare.faster(row)
    assert verdict.word == compare.NOT_SHOWN
    assert "CAT 5/6" in verdict.remark
    nobody = pd.Series(level(70, [60.0], [math.nan]))
    assert compare.faster(nobody).word == compare.NOT_SHOWN
    assert compare.faster(nobody).remark.startswith("not every run reached it: AT 1/1")
    none = pd.Series(level(70, [math.nan], [math.nan]))
    assert compare.faster(none).remark == "no run reached it: AT 0/1, CAT 0/1"


def test_one_ratio_for_all_levels_takes_those_that_every_run_reached():
    """Two CAT runs that never reach 60 % would else enter by their fast half alone."""
    table = records(
        ("AT", 0, [0.1, 0.1, 0.5, 0.5, 0.6, 0.6]),
        ("AT", 1, [0.1, 0.1, 0.5, 0.5, 0.6, 0.6]),
        ("CAT", 0, [0.1, 0.1, 0.5, 0.5, 0.5, 0.5]),
        ("CAT", 1, [0.6, 0.6, 0.6, 0.6, 0.6, 0.6]),
    )
    one = compare.overall(table, [0.5, 0.6])
    assert (one.levels, one.left_out) == ((0.5,), (0.6,))
    assert one.ratio.value == pytest.approx(math.sqrt(3))  # 30/30 and 30/10
    none = compare.overall(table, [0.6])
    assert none.levels == ()
    assert compare.faster_overall(none).word == compare.NOT_SHOWN


def test_one_ratio_is_taken_over_the_seeds_that_both_arms_have():
    quick = [0.1, 0.6, 0.6, 0.6]
    slow = [0.1, 0.1, 0.6, 0.6]
    table = records(("AT", 0, slow), ("AT", 1, slow), ("AT", 2, slow), ("CAT", 0, quick))
    table = pd.concat([table, records(("CAT", 1, quick))])
    one = compare.overall(table, [0.5])
    assert one.levels == (0.5,) and one.ratio.pairs == 2
    assert one.ratio.value == pytest.approx(1.5)
    alone = compare.overall(records(("AT", 0, slow), ("CAT", 1, quick)), [0.5])
    assert (alone.levels, alone.left_out) == ((), (0.5,))


def test_a_verdict_says_how_large_the_effect_could_still_be():
    estimate = compare.Estimate(0.99, 0.92, 1.06, 8, 0.7)
    verdict = compare.judged(estimate, compare.how_much_faster(estimate), null=1)
    assert str(verdict) == "not shown (CAT needs at most 6 % fewer or 9 % more iterations)"
    gap = compare.Estimate(-0.01, -0.021, 0.003, 8, 0.2)
    assert compare.how_much_better(gap) == "CAT at most 0.3 points better or 2.1 worse"
    shown = compare.Estimate(1.05, 1.02, 1.08, 8, 0.01)
    assert compare.how_much_faster(shown) == "CAT needs 2 to 7 % fewer iterations"
    barely = compare.Estimate(1.05, 1.001, 1.1, 8, 0.01)
    assert compare.how_much_faster(barely, "X", "passes") == "X needs up to 9 % fewer passes"
    slower = compare.Estimate(0.9, 0.8, 0.95, 8, 0.01)
    assert compare.how_much_faster(slower) == "CAT needs 5 to 25 % more iterations"
    same = compare.Estimate(1.0, 1.0, 1.0, 8, 1.0)
    said = compare.how_much_faster(same)
    assert said == "the same number of iterations on every seed, to one check"
    always = compare.Estimate(1.25, 1.25, 1.25, 8, 0.01)
    assert compare.how_much_faster(always) == "CAT needs 20 % fewer iterations"
    doubted = compare.Estimate(1.05, 1.02, 1.08, 8, 0.12)
    assert compare.how_much_faster(doubted).endswith("but p is 0.12")


def test_runs_that_did_not_learn_are_counted_and_nothing_is_concluded_from_them():
    rows = [("AT", seed, 0.9, 0.8) for seed in range(6)]
    rows += [("CAT", seed, 0.9, 0.7 - 0.01 * seed) for seed in range(5)]
    rows += [("CAT", 5, 0.12, 0.1)]
    table = pd.DataFrame(rows, columns=["arm", "seed", "accuracy", "robust_accuracy"])
    last = compare.ends(table.assign(iteration=1))
    assert compare.did_not_learn(last).to_dict() == {"AT": 0, "CAT": 1}
    _, verdict = compare.better(last, "robust_accuracy", "AT", "CAT")
    assert str(verdict) == "not shown (runs that did not learn: AT 0 of 6, CAT 1 of 6)"


@pytest.mark.parametrize(
    ("classes", "accuracies", "failed"),
    [
        (10, (0.19, 0.2), 1),
        (100, (0.019, 0.02), 1),
        (3, (1 / 3, 0.43, 0.44), 2),
        (2, (0.5, 0.6), 1),
    ],
)
def test_with_few_classes_a_run_has_learned_before_it_reaches_twice_chance(
    classes, accuracies, failed
):
    rows = [{"arm": "AT", "seed": i, "accuracy": a} for i, a in enumerate(accuracies)]
    last = compare.ends(pd.DataFrame(rows).assign(iteration=1))
    assert compare.did_not_learn(last, classes)["AT"] == failed
    words = f"runs that did not learn: AT {failed} of {len(accuracies)}"
    assert compare.failures(last, "AT", classes=classes) == words


@pytest.mark.parametrize(
    ("mean", "control", "success", "word"),
    [
        (0.999, 0.998, 0.5, "not shown"),
        (0.95, 0.8, 0.5, "holds"),
        (0.7, 0.4, 0.5, "holds in part"),
        (0.95, 0.8, 0.96, "not tested"),  # a model that only guesses
    ],
)
def test_similarity_counts_in_the_second_half_and_above_its_control(mean, control, success, word):
    early = {"mean": 0.5, "control": 0.1}  # the untrained start
    late = {"mean": mean, "control": control}
    rows = [
        {"gap": 1, "start": "fresh", "iteration": i, "agreement": 1.0, "success": success}
        | (late if i > 5 else early)
        for i in range(1, 11)
    ]
    found = compare.similar_predictions(pd.DataFrame(rows))
    assert found["similarity"] == pytest.approx(mean)
    assert found["verdict"].word == word


@pytest.mark.parametrize(
    ("correlation", "spread", "one_epoch", "word"),
    [
        (0.8, 0.02, 20, "holds"),
        (0.71, 0.3, 20, "not shown"),  # above 0.7, but the seeds lie far apart
        (0.71, 0.02, 20, "holds in part"),
        (0.1, 0.02, 20, "contradicted"),
        (0.8, 0.02, 400, "not tested"),  # so old a weight was never seen
    ],
)
def test_old_weights_are_judged_at_the_age_that_matters(correlation, spread, one_epoch, word):
    rows = [
        {"alpha": 0.5, "seed": seed, "iteration": iteration, "age": age}
        | {"within_class": (correlation if age == 20 else 0.95) + spread * (seed - 2)}
        for seed in range(5)
        for iteration in (10, 40)
        for age in (5, 20)
    ]
    found = compare.old_weights(pd.DataFrame(rows), one_epoch)
    assert found["verdict"].word == word
    assert found["age"] == 20


@pytest.mark.parametrize(("seeds", "pairs"), [(1, 20), (2, 2)])
def test_checks_stand_for_seeds_only_where_there_is_one(seeds, pairs):
    """The checks of a run are no independent measurements, and two seeds already are two."""
    rows = [
        {"alpha": 0.5, "seed": seed, "iteration": iteration, "age": 20}
        | {"within_class": 0.9 - 0.4 * seed + 0.001 * iteration}
        for seed in range(seeds)
        for iteration in range(41, 61)
    ]
    assert compare.old_weights(pd.DataFrame(rows), 20)["correlation"].pairs == pairs


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


def test_the_manipulation_check_is_a_mean_over_all_batches():
    """Rows speak for the iterations since the row before: 1, 1 and 8 of them here."""
    rows = pd.DataFrame(
        {
            "arm": ["CAT"] * 3 + ["AT"] * 3,
            "seed": 0,
            "iteration": [1, 2, 10] * 2,
            "drawn_accuracy": [0.0, 0.5, 0.25, 1.0, 0.5, 0.75],
        }
    )
    drawn = compare.drawn_accuracy(rows.sample(frac=1, random_state=0))
    assert drawn["CAT", 0] == pytest.approx((0.0 + 0.5 + 8 * 0.25) / 10)
    assert drawn["AT", 0] == pytest.approx((1.0 + 0.5 + 8 * 0.75) / 10)


def audited(**columns):
    """Records of a reading whose two evaluations have 90 % within the printed iterations."""
    rows = {"arm": "AT, a reading", "seed": [0, 0, 1, 1], "iteration": [40, 80, 40, 80]}
    rows |= {"accuracy": 0.95, "robust_accuracy": 0.92, "batch_accuracy": 0.9}
    return pd.DataFrame(rows | columns)


def test_the_audit_says_what_the_attack_does_where_it_was_measured():
    assert "moved" not in compare.audit(audited(), "mnist")
    nan = math.nan
    table = audited(final_moved=[nan, 0.002, nan, 0.004], final_full_strength=[nan, 0.0, nan, 0.1])
    rows = compare.audit(table, "mnist")
    assert rows.moved.tolist() == pytest.approx([0.003] * len(rows))
    assert rows.full_strength.tolist() == pytest.approx([0.05] * len(rows))
    assert rows["reached on test"].iloc[-1]

"""Every number on the claims page and in the README is recomputed from the tables, plainly."""

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from catlib.lab import claims, compare, pages, summaries
from catlib.lab.paper import PAPER
from catlib.lab.paths import README, RESULTS

TABLES = summaries.load_tables(RESULTS)
measured = pytest.mark.skipif(
    not TABLES, reason="no table of the study is there: make study PROFILE=cpu"
)


def crossing(run, metric, level, cost):
    """The first sustained crossing of one run, by a plain loop; None if there is none."""
    rows = run.sort_values("iteration").to_dict("records")
    for row, following in pairwise(rows):
        if row[metric] >= level and (row[metric] + following[metric]) / 2 >= level:
            return row[cost]
    return None


def ratios(table, baseline, arm, metric, level, cost):
    pairs = []
    for seed in sorted(set(table.seed)):
        costs = [
            crossing(table[(table.arm == name) & (table.seed == seed)], metric, level, cost)
            for name in (baseline, arm)
        ]
        if None not in costs:
            pairs.append(costs[0] / costs[1])
    return pairs


@measured
def test_the_pages_are_those_that_the_tables_give():
    readme = README.read_text(encoding="utf-8")
    for path, text in pages.pages(RESULTS, readme).items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is not up to date: python -m catlib.lab pages"
        )


@measured
def test_every_ratio_of_the_summary_is_recomputed_from_the_records():
    summary = pd.read_csv(RESULTS / "summary.csv", comment="#")
    assert len(summary)
    for row in summary.itertuples():
        table = TABLES[row.table]
        if row.sampling_number == row.sampling_number:
            table = table[table.sampling_number == row.sampling_number]
        pairs = ratios(table, row.baseline, row.arm, row.metric, row.level / 100, row.cost)
        assert row.pairs == len(pairs)
        if pairs:
            assert row.ratio == pytest.approx(np.exp(np.mean(np.log(pairs))), abs=6e-4)
        if len(pairs) > 1:
            assert min(pairs) - 1e-3 <= row.low <= row.ratio + 1e-3
            assert row.ratio - 1e-3 <= row.high <= max(pairs) + 1e-3


@measured
def test_the_intervals_are_those_of_an_exact_bootstrap():
    """With at most five pairs all resamples can be counted: n^n of them."""
    summary = pd.read_csv(RESULTS / "summary.csv", comment="#")
    checked = 0
    for row in summary[(summary.cost == "iteration") & summary.pairs.between(2, 5)].itertuples():
        table = TABLES[row.table]
        if row.sampling_number == row.sampling_number:
            table = table[table.sampling_number == row.sampling_number]
        logs = np.log(
            ratios(table, row.baseline, row.arm, row.metric, row.level / 100, "iteration")
        )
        n = len(logs)
        means = np.sort(logs[np.indices((n,) * n).reshape(n, -1)].mean(0))
        # 10,000 drawn resamples put a tail of 2.5 % between 2 % and 3 %
        for value, tail in ((row.low, 0.025), (row.high, 0.975)):
            low, high = np.exp(
                np.quantile(means, [tail - 0.005, tail + 0.005], method="inverted_cdf")
            )
            assert low - 1e-3 <= value <= high + 1e-3
        checked += 1
    assert checked


@measured
def test_where_each_arm_stood_at_the_end_is_recomputed():
    final = pd.read_csv(RESULTS / "final.csv", comment="#")
    for row in final.itertuples():
        table = TABLES[row.table]
        if row.sampling_number == row.sampling_number:
            table = table[table.sampling_number == row.sampling_number]
        ends = {}
        for (arm, seed), run in table[table.arm.isin([row.baseline, row.arm])].groupby(
            ["arm", "seed"]
        ):
            ends[arm, seed] = run.sort_values("iteration").robust_accuracy.iloc[-1]
        mine = [value for (arm, _), value in ends.items() if arm == row.arm]
        assert row.robust_accuracy == pytest.approx(np.mean(mine), abs=6e-5)
        assert row.robust_accuracy_sd == pytest.approx(np.std(mine, ddof=1), abs=6e-5)
        both = [seed for arm, seed in ends if arm == row.arm and (row.baseline, seed) in ends]
        assert row.difference == pytest.approx(
            np.mean([ends[row.arm, seed] - ends[row.baseline, seed] for seed in both]), abs=6e-5
        )


@measured
def test_the_cells_of_tables_1_and_2_are_recomputed():
    """The iterations and the ratio in each cell of the page, parsed from the text."""
    page = pages.claims_page(TABLES)
    pattern = re.compile(
        r"Table (\d)([ab]): (\d+) % (\S+ ?\S*) \| "
        r"AT (\d+), CAT (\d+) ticks: ([\d.]+) \| (.*?) \| "
    )
    rows = pattern.findall(page)
    assert len(rows) == 15
    checked = 0
    for number, _, level, metric, at_ticks, cat_ticks, printed, ours in rows:
        dataset, metric, level = (
            "mnist" if number == "1" else "cifar10",
            metric.replace(" ", "_"),
            int(level),
        )
        times, tick = (
            PAPER[dataset][metric][level],
            (12.8, 12.9) if dataset == "mnist" else (0.095, 0.095),
        )
        assert [int(at_ticks), int(cat_ticks)] == [
            round(time / one) for time, one in zip(times, tick, strict=True)
        ]
        assert float(printed) == pytest.approx(times[0] / times[1], abs=0.006)
        for part in ours.split("<br>"):
            match = re.match(
                r"(.*?): AT (\d+) iterations, CAT (\d+) iterations "
                r"\((\d)/\d and (\d)/\d seeds\): ([\d.]+)",
                part,
            )
            if match:
                name = next(
                    name
                    for name in TABLES
                    if "_tables" in name
                    and pages.label(name) == match[1]
                    and any(
                        name in claim.tables
                        for claim in claims.cell_claims()
                        if claim.text.startswith(f"Table {number}")
                    )
                )
                table = TABLES[name]
                for arm, shown, reached in (
                    ("AT", match[2], match[4]),
                    ("CAT", match[3], match[5]),
                ):
                    mine = [
                        crossing(run, metric, level / 100, "iteration")
                        for _, run in table[table.arm == arm].groupby("seed")
                    ]
                    mine = [cost for cost in mine if cost is not None]
                    assert len(mine) == int(reached)
                    assert int(shown) == pytest.approx(np.mean(mine), abs=0.51)
                pairs = ratios(table, "AT", "CAT", metric, level / 100, "iteration")
                assert float(match[6]) == pytest.approx(np.exp(np.mean(np.log(pairs))), abs=0.006)
                checked += 1
    assert checked


@measured
def test_the_difference_at_the_end_in_the_verdict_is_recomputed():
    """By PGD-20 with restarts, CAT - AT in points, paired by seed."""
    said = re.findall(
        r"robust accuracy differs by ([-+][\d.]+) \[([-+][\d.]+), ([-+][\d.]+)\] points",
        pages.findings(TABLES),
    )
    there = [name for name in ("cpu_mnist_tables", "cpu_mnist_tables_0.3") if name in TABLES]
    assert len(said) == len(there) > 0
    for name, (mean, low, high) in zip(there, said, strict=True):
        last = (
            TABLES[name]
            .dropna(subset="final_robust_accuracy")
            .set_index(["arm", "seed"])
            .final_robust_accuracy
        )
        gaps = 100 * (last["CAT"] - last["AT"]).dropna().to_numpy()
        assert float(mean) == pytest.approx(gaps.mean(), abs=0.051)
        means = np.sort(gaps[np.indices((len(gaps),) * len(gaps)).reshape(len(gaps), -1)].mean(0))
        for value, tail in ((low, 0.025), (high, 0.975)):
            around = np.quantile(means, [tail - 0.005, tail + 0.005], method="inverted_cdf")
            assert around[0] - 0.051 <= float(value) <= around[1] + 0.051


def test_every_claim_has_a_row_and_an_open_one_the_command_that_fills_it():
    page = pages.claims_page(TABLES)
    for claim in claims.all_claims():
        assert f"| {claim.text} | {claim.paper} |" in page
        for name in claim.tables:
            piece = summaries.piece_of(name)
            assert name in TABLES or piece.command in page
    for name in re.findall(r"\*\*open\*\*.*?: \[`(\S+?)`\]", page):
        assert f"- `{name}`." in page


def records(at, cat, seeds=5):
    """Runs that reach 50 % robust accuracy at these iterations."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "iteration": i,
            "passes": 11 * i,
            "seconds": i / 10,
            "coverage": 0.5,
            "accuracy": 0.9,
            "robust_accuracy": 0.6 if i >= first + 10 * (seed % 2) else 0.1,
            "batch_accuracy": 0.5,
        }
        for arm, first in (("AT", at), ("CAT", cat))
        for seed in range(seeds)
        for i in range(10, 210, 10)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("at", "cat", "said"),
    [(100, 50, "CAT faster"), (50, 100, "CAT slower"), (100, 100, "no difference shown")],
)
def test_a_verdict_follows_the_numbers(at, cat, said):
    cell = claims.cell(records(at, cat), None, "robust_accuracy", 50, 2.0)
    assert cell.verdict.startswith(said)
    sentence = pages.findings({"cpu_mnist_tables": records(at, cat)})
    assert {"CAT faster": "fewer iterations", "CAT slower": "more iterations"}.get(
        said, "no difference"
    ) in sentence


def test_two_seeds_prove_nothing_and_three_little():
    two, three = (records(100, 50, seeds=seeds) for seeds in (2, 3))
    assert claims.cell(two, None, "robust_accuracy", 50, 2.0).verdict == "too few seeds to say"
    assert "a lead, no proof" in claims.cell(three, None, "robust_accuracy", 50, 2.0).verdict


def test_a_changed_number_in_a_table_changes_the_page():
    slow, fast = ({"cpu_mnist_tables": records(100, cat)} for cat in (90, 50))
    assert pages.claims_page(slow) != pages.claims_page(fast)
    assert pages.readme_results(slow) != pages.readme_results(fast)


def test_the_audit_counts_within_the_printed_iterations_alone():
    table = records(100, 70).assign(robust_accuracy=lambda t: t.robust_accuracy + 0.35)
    rows = compare.audit(table, "mnist").set_index(["arm", "level"])
    assert rows.loc[("AT", 90), "iterations"] == 84
    assert rows.loc[("CAT", 90), "iterations"] == 73
    assert not rows.loc[("AT", 90), "reached on test"]
    assert rows.loc[("CAT", 90), "reached on test"]
    assert not rows.loc[("CAT", 90), "reached in training"]


def test_every_claim_names_a_measure_and_says_what_it_found():
    """A claim names a function, and a macro of the same name says its numbers."""
    macros = pages.templates().get_template("measures.j2").module
    for claim in claims.all_claims():
        assert claim.measure in claims.MEASURES
        assert hasattr(macros, claim.measure)

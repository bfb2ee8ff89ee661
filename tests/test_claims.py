"""Every number on the claims page and in the README is recomputed from the tables, plainly."""

import re
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import nbformat
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from catlib.lab import claims, compare, pages, summaries
from catlib.lab.paper import PAPER, paper_table
from catlib.lab.paths import NOTEBOOKS, README, RESULTS, ROOT
from catlib.lab.runs import Trial

pytestmark = pytest.mark.no_device("it computes with tables")

TABLES = summaries.load_tables(RESULTS)
measured = pytest.mark.skipif(
    not TABLES, reason="no table of the study is there: make study PROFILE=cpu"
)


@cache
def generated():
    return pages.pages(RESULTS, README.read_text(encoding="utf-8"))


def claims_page():
    return generated()[RESULTS / "README.md"]


@cache
def findings():
    return pages.findings(TABLES)


@cache
def front():
    return pages.front(TABLES)


def crossing(run, metric, level, cost):
    """The first sustained crossing of one run, by a plain loop; None if there is none."""
    run = run.sort_values("iteration")
    for (share, took), (following, _) in pairwise(zip(run[metric], run[cost], strict=True)):
        if share >= level and (share + following) / 2 >= level:
            return took
    return None


def ratios(table, baseline, arm, metric, level, cost):
    runs = dict(tuple(table[table.arm.isin([baseline, arm])].groupby(["arm", "seed"])))
    pairs = []
    for seed in sorted(set(table.seed)):
        costs = [crossing(runs[name, seed], metric, level, cost) for name in (baseline, arm)]
        if None not in costs:
            pairs.append(costs[0] / costs[1])
    return pairs


@measured
def test_the_pages_are_those_that_the_tables_give():
    for path, text in generated().items():
        assert path.read_text(encoding="utf-8") == text, (
            f"{path.name} is not up to date: catlib pages"
        )


def t_interval(values):
    """Mean and ends of the 95 % interval, by scipy's own interval."""
    error = stats.sem(values)
    if error == 0:
        return np.mean(values), np.mean(values), np.mean(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
    return np.mean(values), low, high


@cache
def all_signs(count):
    return np.array(list(product((-1, 1), repeat=count)))


def sign_flips(values):
    """The p of the sign-flip test: all signs, counted."""
    means = np.abs((all_signs(len(values)) * np.asarray(values)).mean(axis=1))
    return (means >= abs(np.mean(values)) - 1e-12).mean()


def part_of(row):
    """The rows of a table that a row of summary.csv or final.csv is about."""
    table = TABLES[row.table]
    if row.sampling_number == row.sampling_number:
        table = table[table.sampling_number == row.sampling_number]
    return table


@measured
def test_every_ratio_of_the_summary_is_recomputed_from_the_records():
    """Ratio, interval and p, by other means; in iterations, the other two costs follow them."""
    summary = pd.read_csv(RESULTS / "summary.csv", comment="#")
    assert len(summary)
    for row in summary[summary.cost != "passes"].itertuples():
        pairs = ratios(part_of(row), row.baseline, row.arm, row.metric, row.level / 100, row.cost)
        assert row.pairs == len(pairs)
        if pairs:
            assert row.ratio == pytest.approx(np.exp(np.mean(np.log(pairs))), abs=6e-4)
        if len(pairs) > 1:
            _, low, high = np.exp(t_interval(np.log(pairs)))
            assert row.low == pytest.approx(low, abs=6e-4, rel=1e-6)
            assert row.high == pytest.approx(high, abs=6e-4, rel=1e-6)
            assert row.p == pytest.approx(sign_flips(np.log(pairs)), abs=6e-4)


@measured
def test_where_each_arm_stood_at_the_end_is_recomputed():
    final = pd.read_csv(RESULTS / "final.csv", comment="#")
    for row in final.itertuples():
        table = part_of(row)
        ends, strongest, failed = {}, {}, 0
        for (arm, seed), run in table[table.arm.isin([row.baseline, row.arm])].groupby(
            ["arm", "seed"]
        ):
            last = run.sort_values("iteration").iloc[-1]
            ends[arm, seed] = last.robust_accuracy
            strongest[arm, seed] = last.get("final_robust_accuracy", last.robust_accuracy)
            failed += arm == row.arm and last.accuracy < 0.2
        mine = [value for (arm, _), value in ends.items() if arm == row.arm]
        assert row.robust_accuracy == pytest.approx(np.mean(mine), abs=6e-5)
        assert row.robust_accuracy_sd == pytest.approx(np.std(mine, ddof=1), abs=6e-5)
        both = [seed for arm, seed in ends if arm == row.arm and (row.baseline, seed) in ends]
        gaps = [strongest[row.arm, seed] - strongest[row.baseline, seed] for seed in both]
        found = (row.difference, row.low, row.high)
        assert found == pytest.approx(t_interval(gaps), abs=6e-5)
        assert row.p == pytest.approx(sign_flips(gaps), abs=6e-5)
        assert row.did_not_learn == failed


@measured
def test_the_cells_of_tables_1_and_2_are_recomputed():
    """The iterations and the ratio in each cell of the page, parsed from the text."""
    pattern = re.compile(
        r"Table (\d)([ab]): (\d+) % (\S+ ?\S*) \| "
        r"([\d.]+) (s|h) / ([\d.]+) \6 = ([\d.]+) \((\d+) and (\d+) ticks\) \| (.*?) \| "
    )
    rows = pattern.findall(claims_page())
    assert len(rows) == 15
    checked = 0
    for number, _, level, metric, at, _, cat, printed, at_ticks, cat_ticks, ours in rows:
        dataset = "mnist" if number == "1" else "cifar10"
        metric = metric.replace(" ", "_")
        level = int(level)
        times = PAPER[dataset][metric][level]
        tick = (12.8, 12.9) if dataset == "mnist" else (0.095, 0.095)
        assert (float(at), float(cat)) == times
        assert [int(at_ticks), int(cat_ticks)] == [
            round(time / one) for time, one in zip(times, tick, strict=True)
        ]
        assert float(printed) == pytest.approx(times[0] / times[1], abs=0.006)
        for part in ours.split("<br>"):
            said = re.match(
                r"(.*?): AT (\d+), CAT (\d+) iterations \((\d+) seeds\): ([\d.]+)", part
            )
            if said:
                table = TABLES[table_of_cell(said[1], f"Table {number}")]
                for arm, shown in (("AT", said[2]), ("CAT", said[3])):
                    mine = [
                        crossing(run, metric, level / 100, "iteration")
                        for _, run in table[table.arm == arm].groupby("seed")
                    ]
                    assert len(mine) == int(said[4])
                    assert int(shown) == pytest.approx(np.mean(mine), abs=0.51)
                pairs = ratios(table, "AT", "CAT", metric, level / 100, "iteration")
                assert float(said[5]) == pytest.approx(np.exp(np.mean(np.log(pairs))), abs=0.006)
                checked += 1
    assert checked


def table_of_cell(label, text):
    """The name of the table of this label that answers the cells of Table 1 or 2."""
    names = {name for claim in claims.cell_claims() if text in claim.text for name in claim.tables}
    return next(name for name in names & set(TABLES) if pages.label(name) == label)


@measured
def test_the_difference_at_the_end_in_the_findings_is_recomputed():
    """By PGD-20, CAT - AT in points, by seed; on MNIST for both epsilons, and on CIFAR-10."""
    said = re.findall(
        r"(?:CAT's robust accuracy differs by|the difference at the end) "
        r"([-+][\d.]+) \[([-+][\d.]+), ([-+][\d.]+)\] points, p ([\d.]+\d)",
        findings(),
    )
    names = ("cpu_mnist_tables", "cpu_mnist_tables_0.3", "cpu_cifar10_tables")
    there = [name for name in names if name in TABLES]
    assert len(said) == len(there) > 0
    for name, numbers in zip(there, said, strict=True):
        gaps = final_gaps(TABLES[name], "CAT", "AT")
        expected = (*t_interval(gaps), sign_flips(gaps))
        tolerance = (0.051, 0.051, 0.051, 0.0051)
        for shown, exact, within in zip(numbers, expected, tolerance, strict=True):
            assert float(shown) == pytest.approx(exact, abs=within)


def final_gaps(table, arm, baseline):
    """Differences of the final robust accuracies by seed, in points."""
    last = table.dropna(subset="final_robust_accuracy").set_index(["arm", "seed"])
    last = last.final_robust_accuracy
    return 100 * (last[arm] - last[baseline]).dropna().to_numpy()


@measured
def test_the_cheap_rival_is_said_together_with_what_it_loses():
    """In one sentence: how many fewer passes, and the robust accuracy at the end; as the README."""
    table = TABLES["cpu_mnist_cheap"]
    sentence = next(line for line in findings().splitlines() if line.startswith("- **A cheaper"))
    arm = re.search(r"with (\S+), ", sentence)[1]
    factor = float(re.search(r"by a factor of ([\d.]+) \[", sentence)[1])
    loss = float(re.search(r"differs from AT by ([-+][\d.]+) \[", sentence)[1])
    gaps = final_gaps(table, arm, "AT")
    assert loss == pytest.approx(gaps.mean(), abs=0.051)
    levels = re.search(r"\(over ([\d, ]+) %\)", sentence)[1].split(", ")
    logs = []
    for level in levels:
        pairs = ratios(table, "AT", arm, "robust_accuracy", int(level) / 100, "passes")
        assert len(pairs) == table.seed.nunique()
        logs.append(np.log(pairs))
    assert factor == pytest.approx(np.exp(np.mean(logs)), abs=0.051)
    on_top = front()
    assert f"with {arm}, " in on_top
    assert f"AT takes {factor:.1f} times as many" in on_top
    side = "less" if loss < 0 else "more"
    assert f"{abs(loss):.1f} points {side} robust" in on_top or "not shown to be more or" in on_top
    few = table.seed.nunique() < 6
    assert ("seeds no more can be shown" in on_top) == few


@measured
def test_the_readme_says_what_the_findings_say():
    """The verdict and how large the effect could be; where the words stand."""
    on_top = front()
    long = findings()
    word = re.search(r"it (?:is )?([a-z ]+) that CAT is faster:", long)[1]
    assert ("could **not show** that" if word == "not shown" else f"**{word}**") in on_top
    large = re.search(r"seeds; (CAT needs .*?)\)", long)[1]
    assert large in on_top
    for lead in re.findall(r"lean towards C?AT, too few to show it: (.*?\])", on_top):
        assert f"the ratio AT / CAT is {lead}" in long
    assert "words in catlib/lab/templates/front.md.j2" in on_top


def passes_to(runs, level):
    """Of one run a budget: where the accuracy crosses a level, on the logarithm of the passes."""
    rows = runs.sort_values("passes")[["passes", "final_robust_accuracy"]].to_numpy()
    if rows[0][1] >= level:
        return rows[0][0]
    for (passes, share), (following, higher) in pairwise(rows):
        if share < level <= higher:
            part = (level - share) / (higher - share)
            return passes ** (1 - part) * following**part
    return None


@measured
@pytest.mark.parametrize("name", [name for name in pages.FRONTIERS if name in TABLES])
def test_what_the_memory_saves_is_what_the_table_says(name):
    """On the claims page beside the best rival and PGD-10; on the README for the hardest data."""
    table = TABLES[name]
    arms = table.groupby("budget").arm.nunique()
    compared = table[table.budget == max(arms.index[arms == arms.max()])]
    means = compared.groupby("arm").final_robust_accuracy.mean()
    largest = table[table.budget == table.groupby("arm").budget.transform("max")]
    largest = largest.groupby("arm").final_robust_accuracy
    rivals = means[[arm for arm in means.index if not arm.startswith("remembered")]]
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    for rival in (rivals.idxmax(), "PGD-10"):
        level = np.floor(100 * largest.min()[rival] + 1e-9) / 100
        logs = []
        for seed in sorted(set(table.seed)):
            mine, theirs = (
                passes_to(table[(table.arm == arm) & (table.seed == seed)], level)
                for arm in ("remembered", rival)
            )
            logs.append(np.log(theirs / mine))
        factor = np.exp(np.mean(logs))
        sentence = re.search(
            rf"To {100 * level:.0f} % robust accuracy, which every seed of `{rival}` has .*", page
        )[0]
        said = float(re.search(r"takes (?:at least )?([\d.]+) \[", sentence)[1])
        assert said == pytest.approx(factor, abs=0.0051)
        if rival == rivals.idxmax() and name == next(n for n in pages.FRONTIERS if n in TABLES):
            words = rf"to {100 * level:.0f} % robust accuracy `{rival}`.* takes {factor:.1f} \["
            assert re.search(words, front())
        assert ("needs fewer: holds" in sentence) == (t_interval(logs)[1] > 0)


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        (
            [1.2, 1.3, 1.2, 1.3, 1.2],
            r"could \*\*not show\*\* .*: a lead: CAT needs 15 to 24 % fewer .* below 0\.06\.",
        ),
        (
            8 * [1.2, 1.3],
            r"sooner \*\*holds\*\* \(MNIST, ε = 0\.1, 16 seeds, runs of 0\.26 epochs\): "
            r"CAT needs 18 to 22 % fewer iterations\.",
        ),
        (
            8 * [0.8, 0.9],
            r"is \*\*contradicted\*\* .*: CAT needs 14 to 22 % more iterations\.",
        ),
        (
            [0.9, 1.1, 1.0, 1.2],
            r"We could \*\*not show\*\* that .* at most \d+ % fewer or \d+ % more iterations\.",
        ),
        ([1.1, 1.2], r"not show\*\* .*: 2 pairs of seeds are too few\."),
        ([], r"not show\*\* .* \(MNIST\): no level was reached by every run\."),
        (None, r"^Whether .* is \*\*not tested\*\* yet on MNIST"),
    ],
)
def test_the_readme_has_a_true_sentence_for_every_verdict(monkeypatch, ratios, says):
    speed = None
    if ratios is not None:
        estimate = compare.ratio(ratios, np.ones(len(ratios)))
        one = compare.Overall(estimate, (0.5,) if ratios else (), ())
        speed = {
            "ratio": estimate,
            "epsilon": "ε = 0.1",
            "epochs": "0.26",
            "verdict": compare.faster_overall(one),
            "large": compare.how_much_faster(estimate),
            "clean": {"CAT": one},
            "clean_verdict": compare.Verdict(compare.NOT_SHOWN),
        }
    monkeypatch.setattr(pages, "_speed", lambda *_: speed)
    sentences = pages.front({}).splitlines()[1]
    assert re.search(says, sentences), sentences


@measured
def test_every_verdict_is_one_of_five_words():
    words = {"holds", "holds in part", "not shown", "contradicted", "not tested"}
    checked = 0
    for claim in claims.all_claims():
        for answer in claims.answers(claim, TABLES).values():
            assert answer.verdict.word in words
            assert answer.verdict.remark or answer.verdict.word not in (
                "not shown",
                "holds in part",
            )
            checked += 1
    assert checked


def test_the_two_pages_say_the_same_about_a_claim():
    """Every row of docs/tables.md is that claim's row on the claims page, without its number."""
    table = generated()[ROOT / "docs" / "tables.md"].split("| --- |")[-1]
    cells = [row for row in table.splitlines() if row.startswith("| ")]
    page = claims_page()
    assert len(cells) == 18  # 15 cells, and the robustness at the end three times
    for row in cells:
        assert row.removeprefix("| ").replace("](../data/results/README.md#", "](#") in page


def test_every_claim_has_a_row_and_an_open_one_the_command_that_fills_it():
    page = claims_page()
    for claim in claims.all_claims():
        rule = f"<br>*Holds {claim.rule}.*" if claim.rule else ""
        assert f"| {claim.text}{rule} | {claim.paper} |" in page
        assert f"## {claim.group}\n" in page
        assert bool(claim.tables) != bool(claim.untested)
        assert f"not tested: {claim.untested}" in page
        for name in claim.tables:
            piece = summaries.piece_of(name)
            assert name in TABLES or piece.command in page
    for name in re.findall(r"\*\*not tested\*\*[^|]*?: \[`(\S+?)`\]", page):
        assert f"- `{name}` (" in page


def test_the_questions_at_the_top_have_the_answers_of_their_rows():
    page = claims_page()
    for claim, row in pages.numbered_rows(TABLES):
        if claim.asked:
            assert f"| {claim.asked} | {row['verdict']} | {row['']} |" in page


def test_a_piece_that_is_not_complete_says_how_much_there_is():
    piece = summaries.piece_of("cpu_mnist_tables")
    assert pages.state_of(piece, {}) == "not begun"
    some = records(100, 50, seeds=5)
    assert pages.state_of(piece, {piece.table: some}) == "5 of 16 seeds, measured by an older plan"


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
    ("at", "cat", "word"),
    [(100, 50, "holds"), (50, 100, "contradicted"), (100, 100, "not shown")],
)
def test_a_verdict_follows_the_numbers(at, cat, word):
    table = records(at, cat, seeds=6)
    assert claims.cell(table, None, "robust_accuracy", 50, at / cat).verdict.word == word
    sentence = pages.findings({"cpu_mnist_tables": table})
    it_is = "it holds" if word == "holds" else f"it is {word}"
    assert f"{it_is} that CAT is faster:" in sentence


def test_a_printed_ratio_outside_the_interval_is_said():
    table = records(100, 50, seeds=6)
    verdict = claims.cell(table, None, "robust_accuracy", 50, 5.0).verdict
    assert verdict.word == "holds in part"
    assert "smaller than printed: the interval ends at 2.01" in verdict.remark
    unsure = claims.cell(records(100, 100, seeds=6), None, "robust_accuracy", 50, 0.5).verdict
    assert unsure.word == "not shown"  # all pairs are equal: nothing is said of another ratio
    assert "printed" not in unsure.remark


def test_two_seeds_prove_nothing_and_three_little():
    two, three = (records(100, 50, seeds=seeds) for seeds in (2, 3))
    verdict = claims.cell(two, None, "robust_accuracy", 50, 2.0).verdict
    assert verdict == compare.Verdict("not shown", "2 pairs of seeds are too few")
    lead = claims.cell(three, None, "robust_accuracy", 50, 2.0).verdict
    assert lead.word == "not shown" and lead.remark.startswith("a lead: CAT needs")


@pytest.mark.parametrize(
    ("gap", "word"), [(-0.01, "holds"), (-0.08, "contradicted"), (-0.02, "not shown")]
)
def test_competitive_means_no_worse_than_a_margin(gap, word):
    rng = np.random.default_rng(0)
    table = records(100, 100, seeds=8)
    noise = rng.normal(0, 0.004, len(table))
    table["robust_accuracy"] += noise + gap * (table.arm == "CAT")
    answer = claims.competitive(table, None, "AT", "CAT", margin=2)
    assert answer.verdict.word == word
    few = claims.competitive(table[table.seed < 5], None, "AT", "CAT", margin=2).verdict
    assert few.word == "not shown" and "5 seeds are too few" in few.remark


def test_a_level_that_is_best_at_the_end_of_the_range_is_no_peak():
    parts = []
    for number, share in ((32, 0.6), (64, 0.7), (128, 0.8)):
        table = records(50, 50, seeds=6).assign(sampling_number=number)
        table["robust_accuracy"] = share + 0.001 * table.seed
        parts.append(table)
    rising = claims.peak(pd.concat(parts), None).verdict
    assert rising.word == "holds in part" and "it rises; best at the largest" in rising.remark
    parts[2]["robust_accuracy"] -= 0.3
    fallen = claims.peak(pd.concat(parts), None).verdict
    assert (fallen.word, fallen.remark) == ("holds", "at k = 64")
    parts[2]["robust_accuracy"] += 0.2  # the same as k = 64: a tie
    tied = claims.peak(pd.concat(parts), None).verdict
    assert tied.word == "not shown"


def test_a_changed_number_in_a_table_changes_the_page():
    slow, fast = ({"cpu_mnist_tables": records(100, cat)} for cat in (90, 50))
    assert pages.claims_page(slow) != pages.claims_page(fast)
    assert pages.printed_tables(slow) != pages.printed_tables(fast)


def test_the_audit_counts_within_the_printed_iterations_alone():
    table = records(100, 70).assign(robust_accuracy=lambda t: t.robust_accuracy + 0.35)
    rows = compare.audit(table, "mnist").set_index(["arm", "level"])
    assert rows.loc[("AT", 90), "iterations"] == 84
    assert rows.loc[("CAT", 90), "iterations"] == 73
    assert not rows.loc[("AT", 90), "reached on test"]
    assert rows.loc[("CAT", 90), "reached on test"]
    assert not rows.loc[("CAT", 90), "reached in training"]
    assert rows.loc[("CAT", 90), "clean"] == pytest.approx(0.9)


@pytest.mark.parametrize(("clean", "word"), [(0.96, "not shown"), (0.99, "holds in part")])
def test_a_level_reached_where_the_attack_costs_nothing_reproduces_nothing(clean, word):
    table = records(70, 70).assign(accuracy=clean)
    table["robust_accuracy"] += 0.32
    verdict, numbers = compare.audit_verdict(compare.audit(table, "mnist"))
    assert verdict.word == word
    assert bool(numbers["harmless"]) == (word == "not shown")


def test_where_no_reading_reaches_the_level_the_nearest_real_attack_is_named():
    rows = pd.DataFrame(
        {
            "arm": ["AT", "AT, half epsilon", "AT, random noise"],
            "level": 90,
            "test": [0.70, 0.898, 0.86],
            "clean": [0.95, 0.96, 0.87],  # the last one costs a point: no attack to speak of
            "reached on test": False,
        }
    )
    verdict, _ = compare.audit_verdict(rows)
    nearest = "by an attack that costs accuracy at most 89.8 %, AT, half epsilon"
    assert verdict == compare.Verdict(compare.NOT_SHOWN, nearest)
    verdict, _ = compare.audit_verdict(rows[rows.arm == "AT, random noise"])
    assert verdict.remark == "by no reading tried"


def test_every_claim_names_a_measure_and_says_what_it_found():
    """A claim names a function, and a macro of the same name says its numbers."""
    macros = pages.templates().get_template("measures.j2").module
    for claim in claims.all_claims():
        if claim.tables:
            assert claim.measure in claims.MEASURES
            assert hasattr(macros, claim.measure)


def levels_piece(*levels):
    """A piece of the study that times these levels of robust accuracy."""
    piece = summaries.piece_of("cpu_mnist_tables")
    return replace(piece, levels={"accuracy": [90], "robust_accuracy": list(levels)})


@pytest.mark.parametrize(
    ("at", "cat", "seeds", "factor", "word"),
    [
        (120, 40, 6, 2.0, "holds"),
        (120, 60, 6, 3.0, "contradicted"),
        (100, 100, 6, 3.0, "contradicted"),
        (120, 60, 5, 3.0, "not shown"),  # five seeds show nothing
    ],
)
def test_up_to_a_factor_is_judged_at_the_level_with_the_largest_ratio(at, cat, seeds, factor, word):
    answer = claims.up_to(records(at, cat, seeds), levels_piece(50), factor)
    assert answer.verdict.word == word
    assert answer.numbers["count"] == 1


@pytest.mark.parametrize(
    ("slower", "word"),
    [
        (0.0, "holds"),
        (0.02, "holds"),
        (0.045, "not shown"),  # up to 6 %: within the margin or not
        (0.2, "contradicted"),
    ],
)
def test_equal_costs_are_contradicted_outside_the_margin_alone(slower, word):
    table = records(100, 100, seeds=8)
    wobble = 1 + 0.02 * (table.seed % 2 - 0.5)  # seeds differ by 2 %
    table.seconds *= ((1 + slower) * wobble).where(table.arm == "CAT", 1)
    verdict = claims.seconds_an_iteration(table, levels_piece(50), margin=5).verdict
    assert verdict.word == word
    assert verdict.remark.endswith("seconds an iteration") and "-" not in verdict.remark


@pytest.mark.parametrize(
    ("cases", "word"),
    [
        (["above"], "holds"),
        (["above"] * 2, "not shown"),  # six seeds show one case, and not two: p is 2 x 0.03
        (["below"], "contradicted"),
        (["below", "above"], "not shown"),
    ],
)
def test_a_claim_about_all_cases_needs_a_corrected_p(cases, word):
    sides = {"above": (1.1, 1.3), "below": (0.7, 0.9)}
    ratios = [compare.Estimate(1, *sides[side], pairs=6, p=2 / 2**6) for side in cases]
    assert claims.together(compare.corrected(ratios), "levels").word == word


def test_a_claim_about_all_cases_says_what_was_too_little_to_show_it():
    few = compare.Estimate(1.2, 1.1, 1.3, pairs=5, p=2 / 2**5)
    remark = claims.together([few, compare.NO_PAIR], "cells").remark
    assert (
        remark == "CAT faster at 0, slower at 0 of 2 cells; with 5 seeds p cannot fall below 0.06"
    )
    none = claims.together([compare.NO_PAIR] * 2, "cells")
    assert str(none) == "not shown (no level was reached by every run)"


def test_levels_that_the_paper_does_not_print_are_counted_apart():
    """It prints 60 % robust accuracy on MNIST, and not 50 %."""
    answer = claims.all_settings(records(100, 50, seeds=8), levels_piece(50, 60))
    assert sum(answer.numbers["not printed"].values()) == 1
    assert sum(answer.numbers["printed"].values()) == 2, "90 % accuracy and 60 % robust accuracy"
    assert answer.numbers["printed"]["holds"] >= 1


def test_a_verdict_says_where_cat_is_slower_at_a_level_that_the_paper_does_not_print():
    faster = claims.all_settings(records(100, 50, seeds=8), levels_piece(50, 60)).verdict
    assert "does not print" not in faster.remark
    slower = claims.all_settings(records(50, 100, seeds=8), levels_piece(50, 60)).verdict
    assert slower.remark.endswith("slower at 1 of 1 that the paper does not print")


@pytest.mark.parametrize(
    ("small", "large", "word"),
    [
        (0.10, 0.02, "holds"),
        (-0.10, -0.02, "holds"),
        (0.02, -0.07, "contradicted"),
        (0.02, 0.07, "contradicted"),
        (0.05, -0.05, "not shown"),
        (0.05, 0.05, "not shown"),
    ],
)
def test_arms_come_together_only_if_the_gap_shrinks_in_size(small, large, word):
    """Also where it changes its sign."""
    scatter = np.random.default_rng(1).normal(0, 0.005, (2, 8))
    rows = []
    for number, gap, noise in zip((32, 256), (small, large), scatter, strict=True):
        for seed in range(8):
            for arm, at_the_end in (("AT", 0.4), ("CAT", 0.4 + gap + noise[seed])):
                rows.append((arm, seed, number, 100, at_the_end))
    columns = ["arm", "seed", "sampling_number", "iteration", "robust_accuracy"]
    answer = claims.come_together(pd.DataFrame(rows, columns=columns), levels_piece(50))
    assert answer.verdict.word == word


def test_up_to_holds_in_part_where_the_factor_is_not_ruled_out():
    table = records(100, 50, seeds=6)
    wide = table.seed.isin([0, 1]) & (table.arm == "CAT")  # two pairs with a much larger ratio
    table.loc[wide, "robust_accuracy"] = 0.6
    verdict = claims.up_to(table, levels_piece(50), 6.0).verdict
    assert verdict == compare.Verdict("holds in part", "faster, 6 times is not ruled out")


def test_the_printed_range_is_compared_over_the_same_levels():
    """50 % is timed and not printed; 60 % is both, and there the paper prints 1.07."""
    answer = claims.printed_range(records(100, 50, seeds=6), levels_piece(50, 60), "mnist")
    assert answer.numbers["overall"].levels == (0.6,)
    assert answer.numbers["printed"] == pytest.approx(1.07)
    assert answer.verdict.word == "holds"
    assert "larger than printed" in answer.verdict.remark


@pytest.mark.parametrize(
    ("here", "there", "word"),
    [((100, 50), (100, 100), "holds"), ((100, 100), (100, 50), "contradicted")],
)
def test_two_datasets_are_compared_by_their_intervals(here, there, word):
    piece = levels_piece(50)
    beside = (records(*there, seeds=6), piece)
    assert claims.larger_than(records(*here, seeds=6), piece, beside).verdict.word == word
    alone = claims.larger_than(records(*here, seeds=6), piece, None).verdict
    assert alone.word == "not shown"
    few = (records(*there, seeds=5), piece)
    assert claims.larger_than(records(*here, seeds=6), piece, few).verdict.word == "not shown"


def test_who_needs_fewer_iterations_decides_not_where_they_end():
    table = records(100, 50, seeds=6)
    answer = claims.sooner(table, levels_piece(50), "AT", "CAT")
    assert answer.verdict.word == "holds"
    assert answer.numbers["difference"].value == pytest.approx(0)
    failed = (table.arm == "CAT") & (table.seed == 0)
    table.loc[failed, "accuracy"] = 0.1
    assert "did not learn" in claims.sooner(table, levels_piece(50), "AT", "CAT").verdict.remark


def test_a_table_without_an_arm_answers_nothing_about_it():
    claim = next(one for one in claims.all_claims() if one.arguments.get("arm") == "boundary")
    assert claims.answers(claim, {claim.tables[1]: records(100, 50)}) == {}


def test_what_was_seen_is_compared_in_points():
    table = records(100, 50, seeds=6)
    table["coverage"] += 0.2 * (table.arm == "CAT") + 0.001 * table.seed
    answer = claims.more_seen(table, None, "AT", "CAT")
    assert answer.numbers["difference"].value == pytest.approx(0.2)
    assert answer.verdict.word == "holds"


@pytest.mark.parametrize(("loss", "word"), [(0.01, "holds"), (0.2, "contradicted")])
def test_old_examples_fool_as_often_as_new_ones_or_not(loss, word):
    rows = [
        {"arm": "AT", "seed": seed, "iteration": i, "gap": gap, "start": "fresh", "success": 0.5}
        | {"old_success": 0.5 - loss * (gap == 10) + 0.001 * seed}
        for seed in range(6)
        for i in range(1, 21)
        for gap in (1, 10)
    ]
    answer = claims.old_examples(pd.DataFrame(rows), None, margin=5)
    assert answer.verdict.word == word
    assert answer.numbers["difference"].value == pytest.approx(0.0025 - loss)
    without = pd.DataFrame(rows).drop(columns="old_success")
    assert claims.old_examples(without, None, margin=5).verdict.word == "not tested"


@pytest.mark.parametrize(
    ("others", "word", "says"),
    [
        ({"alpha 0": 150, "alpha 0.9": 100}, "holds in part", "sooner than α = 0"),
        ({"alpha 0": 150, "alpha 0.9": 150}, "holds", ""),
        ({"alpha 0": 150, "alpha 0.9": 50}, "contradicted", "sooner: α = 0.9"),
    ],
)
def test_alpha_is_judged_by_iterations(others, word, says):
    parts = [records(100, 100, seeds=8)]  # two values of alpha, corrected for two, need seven
    for arm, first in others.items():
        part = records(first, first, seeds=8)
        parts.append(part[part.arm == "CAT"].assign(arm=arm))
    piece = replace(
        levels_piece(50), trials=[(arm, Trial(alpha=float(arm.split()[1]))) for arm in others]
    )
    verdict = claims.best_alpha(pd.concat(parts), piece).verdict
    assert verdict == compare.Verdict(word, says)


# ----- what the notebooks print of the study is what the page says


def printed(notebook):
    """All that an executed notebook prints, without the tags of its tables."""
    path = next(NOTEBOOKS.glob(f"{notebook}_*.ipynb"))
    parts = []
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", ""))
            parts += [str(output.get("data", {}).get(f"text/{kind}", "")) for kind in KINDS]
    text = re.sub(r"<[^>]+>", " ", "\n".join(parts))
    return re.sub(r"\s+", " ", text)


KINDS = ("plain", "markdown", "html")


def verdict_of(measure, table):
    """What the page says to the claim that this measure answers from this table."""
    found = [
        claims.answer(claim, TABLES, table).verdict
        for claim in claims.all_claims()
        if claim.measure == measure and table in claim.tables
    ]
    assert len(set(found)) == 1
    return str(found[0])


@measured
@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_notebook_05_says_what_the_page_says(dataset):
    text = printed("05")
    similar = TABLES[f"cpu_{dataset}_similarity"]
    found = compare.similar_predictions(similar[similar.arm == "AT"])
    row = f"{dataset} {found['similarity']:.3f} {found['control']:.3f} "
    assert row + verdict_of("neighbours_alike", f"cpu_{dataset}_similarity") in text
    rule = f"{dataset}, measured beforehand, drawn by AT"
    verdict = verdict_of("old_weights", f"cpu_{dataset}_similarity_staleness")
    interval = r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]"
    assert re.search(rf"{rule} \d+ (and over|to \d+) {interval} {re.escape(verdict)}", text)


@measured
def test_notebook_06_says_who_was_ahead_by_the_same_rule():
    text = printed("06")
    there = [name for name in TABLES if "_tables" in name]
    assert there
    for name in there:
        levels = claims.levels_of(summaries.piece_of(name))
        ahead = compare.who_was_ahead(compare.speed_table(TABLES[name], levels))
        assert ahead in text


@measured
def test_notebook_07_says_the_same_of_a_peak():
    table = "cpu_mnist_sampling_number"
    verdict = verdict_of("peak", table)
    assert f"{pages.title(table)}; a peak after equal iterations: {verdict}" in printed("07")


@measured
def test_notebook_08_prints_the_audit_of_the_page():
    """The same word and number in every cell, the same verdict, and the printed ratios of 06."""
    text = printed("08")
    name = "cpu_mnist_audit"
    rows = claims.audit(TABLES[name], summaries.piece_of(name))
    page = claims_page()
    for arm, part in rows.groupby("arm"):
        words = [
            f"{'yes' if row['reached on test'] else 'no'} ({100 * row.test:.1f} %"
            for _, row in part.iterrows()
        ]
        assert f"{arm} {') '.join(words)})" in text
        line = next(
            line for line in page.splitlines() if line.startswith(f"| {arm} | test: {words[0]}")
        )
        assert all(word in line for word in words)
    assert f"within the printed iterations: {verdict_of('printed_reached', name)}" in text
    for dataset, metrics in PAPER.items():
        for metric in metrics:
            for level, row in paper_table(dataset, metric).iterrows():
                at, cat = int(row["AT ticks"]), int(row["CAT ticks"])
                assert f"{dataset} {metric} {level} {at} {cat} {row['AT/CAT']:.2f} " in text


def test_arms_are_compared_at_each_size_of_the_training_set():
    """Dose and response: a comparison a size, with the share of draws that met an image again."""
    piece = summaries.piece_of("cpu_mnist_dose")
    rows = []
    for size, arm, seed, iteration in product((1000, 4000), ("AT", "CAT"), range(3), (10, 20)):
        harder = 0.1 if arm == "CAT" else 0.0
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "train_size": size,
                "iteration": iteration,
                "passes": 512 * iteration,
                "seconds": 1.0 * iteration,
                "coverage": 0.5,
                "accuracy": 0.9,
                "robust_accuracy": 0.7 + seed / 100,
                "batch_accuracy": 0.5,
                "drawn_accuracy": 0.6 - harder,
                "met_again": 1000 / size / 2,
            }
        )
    tables = {piece.table: pd.DataFrame(rows)}
    found = list(summaries.comparisons(tables))
    # balance only is planned, and not in this table
    assert [(one.train_size, one.baseline, one.arm) for one in found] == [
        (1000, "AT", "CAT"),
        (4000, "AT", "CAT"),
    ]
    table = summaries.final(tables)
    assert table.drawn_difference.tolist() == pytest.approx([-0.1, -0.1])
    assert table.met_again.tolist() == pytest.approx([0.5, 0.125])
    assert table.sampling_number.isna().all()
    assert set(summaries.summary(tables).train_size) == {1000, 4000}

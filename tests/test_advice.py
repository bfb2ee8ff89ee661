"""The advice at the end of the course follows from the numbers, whatever they are."""

import numpy as np
import pandas as pd
import pytest

from catlib.lab import advice
from catlib.lab.compare import measured
from catlib.lab.summaries import piece_of

pytestmark = pytest.mark.no_device("it computes with tables")

PIECE = piece_of("cpu_mnist_cheap")
SEEDS = 8


def runs(arm, passes, end, learns=True):
    """Runs of an arm: passes an iteration, and the robust accuracy that they end with."""
    noise = np.random.default_rng(0).normal(0, 0.002, SEEDS)  # the same for every arm: pairs
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "iteration": i,
            "passes": passes * i,
            "seconds": i / 10,
            "accuracy": 0.95 if learns else 0.1,
            "robust_accuracy": min(i / 10, 1) * (end + noise[seed]),
        }
        for seed in range(SEEDS)
        for i in range(1, 13)
    ]
    return pd.DataFrame(rows)


def table(*arms):
    return pd.concat([runs("AT", 11, 0.95), runs("CAT", 11, 0.95), *arms], ignore_index=True)


def test_the_cheapest_attack_that_keeps_up_comes_first():
    records = table(runs("PGD-2", 3, 0.95), runs("N-FGSM", 2, 0.945), runs("free", 1, 0.91))
    first, *others = advice.advice(records, PIECE)
    assert first.startswith("Begin with N-FGSM")
    text = " ".join(others)
    assert "PGD-2 reaches" in text
    assert "free reaches" in text and "-4." in text, "the price of what is cheaper still is said"


def test_without_an_attack_that_keeps_up_none_is_named():
    records = table(runs("free", 1, 0.80), runs("PGD-20", 21, 0.95))
    first, *others = advice.advice(records, PIECE)
    assert first.startswith("No cheap attack is shown")
    assert "PGD-20" not in " ".join(others), "it is dearer than AT"


def test_with_few_seeds_a_cheap_attack_is_a_lead():
    records = table(runs("PGD-2", 3, 0.95))
    first, second, *_ = advice.advice(records[records.seed < 5], PIECE)
    assert first.startswith("No cheap attack is shown")
    assert "PGD-2 reaches" in second and "(a lead, of 5 seeds)" in second


def test_an_attack_with_runs_that_did_not_learn_is_not_advised():
    records = table(runs("N-FGSM", 2, 0.95, learns=False))
    first, second, *_ = advice.advice(records, PIECE)
    assert first.startswith("No cheap attack")
    assert second == f"Of N-FGSM, {SEEDS} runs did not learn: stay away from it."


@pytest.mark.parametrize(("passes", "word"), [(1, "holds"), (4, "contradicted")])
def test_cat_on_top_of_an_attack_has_the_verdict_of_its_ratio(passes, word):
    records = table(runs("PGD-2", 2, 0.95), runs("CAT + PGD-2", passes, 0.95))
    sentences = advice.advice(records, PIECE)
    assert [one for one in sentences if f"on top of PGD-2 save passes: {word}" in one]
    assert "on top of AT save passes: not shown" in sentences[-1]


def test_the_numbers_are_those_of_the_study():
    records = measured("cpu_mnist_cheap")
    if records is None:
        pytest.skip("the cheap rivals are not measured yet")
    last = records.dropna(subset="final_robust_accuracy").set_index(["arm", "seed"])
    for one in advice.rivals(records, PIECE):
        gaps = last.final_robust_accuracy[one.arm] - last.final_robust_accuracy["AT"]
        assert one.gap.value == pytest.approx(gaps.mean())

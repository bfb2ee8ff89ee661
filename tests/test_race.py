"""The race of lesson 06: its settings, its sentences, and the picture of a sustained crossing."""

import math

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from catlib import PGD, Training, UniformSampler, build_model
from catlib.lab import compare, exercises, paths, race
from catlib.lab.diagrams.sustained_crossing import sustained_crossing
from catlib.lab.runs import Trial


def runs(**values):
    """Records of AT and CAT: for each arm a list of runs, each a list of robust accuracies."""
    rows = []
    for arm, each in values.items():
        for seed, run in enumerate(each):
            for number, value in enumerate(run, 1):
                row = {"arm": arm, "seed": seed, "iteration": 5 * number}
                row |= {"passes": 100 * number, "seconds": number / 10}
                rows.append(row | {"accuracy": value, "robust_accuracy": value})
    return pd.DataFrame(rows)


@pytest.fixture
def no_figures_left():
    yield
    plt.close("all")


@pytest.mark.parametrize("dataset", race.SETTINGS)
def test_the_settings_of_every_dataset_make_pairs_that_differ_in_the_method_alone(dataset):
    at, cat = race.pair(3, dataset=dataset, **race.settings_for(dataset))
    assert isinstance(at, Trial) and (at.method, cat.method) == ("AT", "CAT")
    assert at.seed == cat.seed == 3 and at.epsilon == cat.epsilon
    assert set(race.LEVELS[dataset]) == {"accuracy", "robust_accuracy"}


def test_what_is_given_replaces_what_suits_the_data_and_none_does_not():
    settings = race.settings_for("digits", iterations=7, epsilon=None)
    assert settings == race.SETTINGS["digits"] | {"iterations": 7}
    strong = race.settings_for("mnist", epsilon=0.3, evaluate_every=2)
    assert (strong["epsilon_warm_up"], strong["iterations"], strong["evaluate_every"]) == (
        300,
        800,
        2,
    )
    with pytest.raises(ValueError, match="must be one of digits"):
        race.settings_for("letters")


def test_data_of_ones_own_have_settings_that_fit_and_levels_above_chance(tmp_path):
    labels = np.arange(30) % 3
    images = np.zeros((30, 8, 8), np.uint8)
    few = str(tmp_path / "few.npz")
    np.savez(few, x_train=images, y_train=labels, classes=["a", "b", "c"])
    settings = race.settings_for(few, iterations=3)
    assert settings == race.OWN_DATA | {"sampling_number": 24, "iterations": 3}
    assert race.levels_for(few)["robust_accuracy"] == [40, 50, 60, 70, 80, 90]
    assert race.levels_for("digits") == race.LEVELS["digits"]


def test_the_sentences_say_what_compare_says_and_count_arrivals():
    records = runs(AT=[[0.6, 0.6, 0.9, 0.9]] * 2, CAT=[[0.6, 0.6, 0.6, 0.6], [0.6, 0.9, 0.9, 0.9]])
    tables = race.speed_tables(records, {"robust_accuracy": [50, 80]})
    assert set(tables) == {("robust_accuracy", cost) for cost in compare.COSTS}
    said = race.who_was_ahead(tables)
    assert said.count("- **Robust accuracy") == 2, "passes give the ratios of iterations"
    assert "80 % was reached by AT 2/2, CAT 1/2 runs." in said
    assert race.highest_arrivals(records, [0.5, 0.8, 0.95]) == (
        "80 % reached by AT 2/2, CAT 1/2 runs"
    )
    assert race.highest_arrivals(records, [0.95]) == "no run reached 95 %"


def test_the_papers_ratio_stands_where_it_prints_the_level():
    records = runs(AT=[[0.7, 0.7, 0.7]], CAT=[[0.7, 0.7, 0.7]])
    table = race.side_by_side(race.speed_tables(records, {"robust_accuracy": [50, 60]}), "mnist")
    assert list(table["paper AT/CAT"]) == ["—", "1.07"]
    other = race.side_by_side(race.speed_tables(records, {"robust_accuracy": [50]}), "digits")
    assert "paper AT/CAT" not in other


def test_a_race_that_is_not_measured_names_its_command(monkeypatch):
    monkeypatch.setattr(race.compare, "measured", lambda name: None)
    for piece in race.study_races().values():
        assert race.study_answer(piece) == f"Not measured yet: `{piece.command}`."
    assert race.findings().count("not measured yet.") == len(race.study_races())


def test_a_measured_race_says_the_ratio_the_verdict_and_the_end(monkeypatch, no_figures_left):
    fast = [[0.6, 0.9, 0.9, 0.9, 0.9, 0.9]] * 6
    slow = [[0.2, 0.6, 0.9, 0.9, 0.9, 0.9]] * 6
    records = runs(AT=slow, CAT=fast)
    monkeypatch.setattr(race.compare, "measured", lambda name: records)
    piece = race.study_races()["cpu_mnist_tables"]
    answer = race.study_answer(piece)
    assert "AT/CAT is 1.68 [1.68, 1.68] (CAT needs 41 % fewer iterations)" in answer
    assert "    - to the same robust accuracy, AT/CAT 1.68 [1.68, 1.68]: **" in race.findings()
    figure = race.study_curves()
    titles = [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes]
    assert any("90 % reached by AT 6/6, CAT 6/6 runs" in title for title in titles)
    assert not any("cpu_mnist" in title for title in titles), "a setting, not the name of a file"


def test_the_recorded_race_holds_what_lesson_06_says_of_it():
    """At every alpha the bands lie on each other at most evaluations, and nothing is shown."""
    recorded = compare.measured("cpu_digits_race")
    levels = [level / 100 for level in race.LEVELS["digits"]["robust_accuracy"]]
    at = recorded[recorded.method == "AT"]

    def band(own):
        return own.groupby("iteration").robust_accuracy.agg(["min", "max"])

    ratios = {}
    for alpha, cat in recorded[recorded.method == "CAT"].groupby("alpha"):
        overlap = (band(cat)["min"] <= band(at)["max"]) & (band(at)["min"] <= band(cat)["max"])
        assert overlap.mean() > 0.5
        both = pd.concat([at, cat])
        both = both.assign(arm=both.method)
        ratios[alpha] = compare.overall(both, levels).ratio
        ends = compare.ends(both).robust_accuracy
        assert compare.difference(ends.loc["CAT"], ends.loc["AT"]).p > 0.05

    said = {alpha: f"{one.value:.2f}" for alpha, one in ratios.items()}
    assert said == {0: "1.09", 0.25: "1.09", 0.5: "1.06", 0.75: "1.06", 0.9: "1.00"}
    assert [f"{ratios[alpha].p:.2f}" for alpha in (0, 0.25)] == ["0.02", "0.03"]
    assert f"{min(one.p for one in compare.corrected(list(ratios.values()))):.2f}" == "0.08"
    (lesson,) = paths.NOTEBOOKS.glob("06_*.ipynb")
    text = lesson.read_text(encoding="utf-8")
    assert "1.09 times as many iterations as CAT at α = 0, 1.09 at 0.25, 1.06 at 0.5" in text
    assert "1.06 at 0.75 and 1.00 at 0.9. The first two have a p of 0.02 and 0.03." in text
    assert "the smallest p is 0.08" in text


def test_the_picture_of_a_sustained_crossing_follows_the_rule(no_figures_left):
    axis = sustained_crossing((0.83, 0.73, 0.82, 0.86), 0.8).axes[0]
    labels = [label.get_text() for label in axis.get_xticklabels()]
    words = ["its mean\nwith the next is below", "below the level", "reached here", "has no next"]
    assert all(word in label for word, label in zip(words, labels, strict=True))
    never = sustained_crossing((0.1, 0.2), 0.8).axes[0]
    assert not any("reached here" in label.get_text() for label in never.get_xticklabels())
    assert math.isclose(never.get_xticks()[0], 5)


def test_exercise_6_1_accepts_the_passes_that_the_library_counts(digits, monkeypatch, capsys):
    """20 steps and 10 restarts, each with its last pass, as lesson 01 teaches."""
    monkeypatch.setattr(exercises, "STRICT", False)
    sampler = UniformSampler(digits.y_train, 128)
    attack = PGD(0.1, steps=20, restarts=10)
    training = Training(build_model("cnn", digits), digits, sampler, attack, iterations=1)
    passes = next(training).passes
    cells = nbformat.read(paths.SOLUTIONS / "06_solutions.ipynb", 4).cells
    sources = [cell.source for cell in cells]
    exercise = next(i for i, text in enumerate(sources) if text.startswith("### Exercise 6.1"))
    names = {"check": exercises.check, "an_iteration": passes, "saved": (84 - 73) * passes}
    exec(sources[exercise + 2], names)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all(line.startswith("✓") for line in said)

"""Searches and frontiers: what is drawn, which budget a trial has, what won, and who takes it."""

import tomllib
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from test_study import pause, piece, read, study  # noqa: F401 - study is a fixture

from catlib.lab.__main__ import main
from catlib.lab.paths import RESULTS
from catlib.lab.runs import build_training, passes_a_draw, records_of
from catlib.lab.study import choices, plan, ranges, units, work

SEARCHES = [one for name in plan.profiles() for one in plan.pieces_of(name) if one.kind == "search"]
FRONTIERS = [
    one for name in plan.profiles() for one in plan.pieces_of(name) if one.kind == "frontier"
]


# what is drawn


RANGES = {
    "learning_rate": {"log": [1e-3, 1e-1]},
    "step": {"uniform": [0.5, 1.0]},
    "alpha": {"choice": [0.5, 0.9]},
    "noise": {"choice": [1.0, 2.0]},
    "sampling_number": {"choice": [32, 64]},
}


def test_a_draw_is_the_same_for_every_arm_to_which_it_applies():
    pgd = ranges.drawn_settings(RANGES, 3, {"method": "AT", "steps": 4})
    cat = ranges.drawn_settings(RANGES, 3, {"method": "CAT", "steps": 1})
    fgsm = ranges.drawn_settings(RANGES, 3, {"method": "AT", "crafting": "n-fgsm"})
    free = ranges.drawn_settings(RANGES, 3, {"method": "AT", "crafting": "free"})
    assert len({one["learning_rate"] for one in (pgd, cat, fgsm, free)}) == 1
    assert len({one["sampling_number"] for one in (pgd, cat, fgsm, free)}) == 1
    assert pgd["step"] == pytest.approx(cat["step"] / 2, rel=0.01), "divided by the root of 4"
    assert fgsm["step"] == cat["step"] and "step" not in free
    assert "alpha" in cat and not {"alpha"} & (set(pgd) | set(fgsm) | set(free))
    assert "noise" in fgsm and not {"noise"} & (set(pgd) | set(cat) | set(free))


def test_draws_are_by_their_law_and_of_their_number_alone():
    drawn = [ranges.drawn_settings(RANGES, number, {}) for number in range(256)]
    assert drawn[7] == ranges.drawn_settings(RANGES, 7, {})
    rates = np.log10([one["learning_rate"] for one in drawn])
    assert rates.min() >= -3.01 and rates.max() <= -0.99
    assert rates.mean() == pytest.approx(-2, abs=0.1), "the logarithm is uniform"
    steps = np.array([one["step"] for one in drawn]) * 10**0.5
    assert steps.min() >= 0.495 and steps.max() <= 1.005
    assert steps.mean() == pytest.approx(0.75, abs=0.03)
    assert {one["sampling_number"] for one in drawn} == {32, 64}


@pytest.mark.parametrize("draws", [2, 4, 8, 16])
def test_few_draws_are_spread_evenly(draws):
    """One value in each of ``draws`` equal parts of a range, and every choice as often."""
    drawn = [ranges.drawn_settings(RANGES, number, {}) for number in range(draws)]
    places = [np.log10(one["learning_rate"] / 1e-3) / 2 for one in drawn]
    assert sorted(int(place * draws - 1e-9) for place in places) == list(range(draws))
    assert [one["sampling_number"] for one in drawn].count(32) == draws // 2


@pytest.mark.parametrize("law", [{"gauss": [0, 1]}, {}, {"log": [1, 2], "choice": [1]}])
def test_a_law_that_does_not_exist_is_named(law):
    with pytest.raises(ValueError, match=r"the range of alpha is .* one of log, uniform, choice"):
        ranges.drawn_settings({"alpha": law}, 0, {})


@pytest.mark.parametrize("one", SEARCHES, ids=lambda one: one.table)
def test_every_arm_of_a_search_is_tuned_by_the_same_draws(one):
    trials = {}
    for arm, trial in one.trials:
        trials.setdefault(trial.seed, {})[arm] = trial
    assert list(trials) == list(range(one.options["draws"]))
    for of_draw in trials.values():
        assert list(of_draw) == one.options["arms"]
        for name in ("learning_rate", "sampling_number"):
            assert len({getattr(trial, name) for trial in of_draw.values()}) == 1
        for trial in of_draw.values():
            assert trial.validation_size and not trial.final_restarts
            assert trial.evaluate_every == trial.iterations, "judged once, at the end"
            drawn = plan.searched_settings(one, trial)
            assert trial.learning_rate == drawn["learning_rate"]
            if "step" in drawn:
                assert trial.step_size == pytest.approx(drawn["step"] * trial.epsilon, abs=1e-6)
            if "alpha" in drawn:
                assert trial.alpha == drawn["alpha"]
            assert trial.epsilon_warm_up == round(drawn["growth"] * trial.iterations)


# budgets


def test_a_budget_in_passes_becomes_iterations():
    settings = {"steps": 3, "sampling_number": 50, "passes": 1000, "growth": 0.5}
    trial = plan.make_trial(settings | {"evaluations": 2}, {})
    assert (trial.iterations, trial.epsilon_warm_up, trial.evaluate_every) == (5, 2, 3)
    free = plan.make_trial({"crafting": "free", "method": "AT", "passes": 1280}, {})
    assert free.iterations == 10
    with pytest.raises(ValueError, match="passes is 100; an iteration alone takes 1408"):
        plan.make_trial({"passes": 100}, {})


@pytest.mark.parametrize("one", FRONTIERS, ids=lambda one: one.table)
def test_every_trial_of_a_frontier_spends_its_budget(one):
    seen = {}
    for arm, trial in one.trials:
        budget = plan.budget_of(one, trial)
        draws = trial.iterations * trial.sampling_number
        planned = draws * passes_a_draw(trial)
        assert budget - trial.sampling_number * passes_a_draw(trial) < planned <= budget
        seen.setdefault(arm, set()).add(budget)
    for arm, budgets in seen.items():
        assert budgets == set(one.options.get("only_at", {}).get(arm, one.options["budgets"]))


def test_a_budget_is_what_a_run_counts():
    settings = {"steps": 2, "sampling_number": 32, "passes": 1000, "evaluate_every": 0}
    trial = plan.make_trial(settings | {"device": "cpu", "method": "AT"}, {})
    *_, last = records_of(trial, build_training(trial))
    assert 1000 - 32 * 3 < last.passes <= 1000


# end to end, on the digits


def test_a_paused_search_goes_on_to_its_table(tmp_path, study, monkeypatch):  # noqa: F811
    one = piece("search")
    ticks = iter([False] * 3 + [True] * 99)
    with monkeypatch.context() as patched:
        patched.setattr(units, "stop_at", lambda _: next(ticks) and pause())
        assert not study(one)
    assert study(one)
    path = tmp_path / "smoke_search.csv"
    table = read(path)
    assert len(table) == len(one.trials) == 4
    assert table.groupby("arm").draw.apply(list).tolist() == [[0, 1], [0, 1]]
    for (_, trial), row in zip(one.trials, table.itertuples(), strict=True):
        assert row.learning_rate == trial.learning_rate
        assert row.sampling_number == trial.sampling_number
        assert row.passes >= trial.iterations * trial.sampling_number * passes_a_draw(trial)
    assert table.alpha.isna().tolist() == [True, False, True, False]
    assert table[["accuracy", "robust_accuracy", "collapses"]].notna().all(axis=None)
    assert (
        "held-out training images" in path.read_text()
        and "Sobol sequence of seed 15" in path.read_text()
    )


def test_a_frontier_has_a_row_an_arm_budget_and_seed(tmp_path, study):  # noqa: F811
    one = piece("frontier")
    assert study(one)
    table = read(tmp_path / "smoke_frontier.csv")
    assert len(table) == len(one.trials)
    assert not table.duplicated(["arm", "budget", "seed"]).any()
    assert set(table[table.arm == "PGD-10"].budget) == {4000}
    assert (table.passes <= table.budget).all() and (table.passes > 0.8 * table.budget).all()
    assert table.final_robust_accuracy.between(0, 1).all()


def test_finals_judge_the_seeds_and_budgets_that_they_name(tmp_path, study):  # noqa: F811
    one = piece("frontier")
    trials = tuple(pair for pair in one.trials if pair[0] == "PGD-2")
    one = replace(one, trials=trials)
    options = {"of": "frontier", "tiny": True, "models": ["last"]}
    options |= {"of_seeds": 1, "of_budgets": [4000]}
    finals = replace(one, name="finals", kind="finals", trials=(), options=options)
    assert study(replace(one, options=one.options | {"tiny": True}), finals)
    assert len(list((tmp_path / "runs").glob("*/finals-last.json"))) == 1
    table = read(tmp_path / "smoke_finals.csv")
    assert table[["arm", "seed", "budget"]].to_numpy().tolist() == [["PGD-2", 0, 4000]]
    assert "# runs: 1 of 1" in (tmp_path / "smoke_finals.csv").read_text()
    assert not list((tmp_path / "runs").glob("*/checkpoint.pt"))


def test_at_the_tiny_scale_every_arm_is_judged(tmp_path):
    for name in ("mnist_finals_0.3", "cifar10_finals"):
        finals = next(one for one in plan.pieces_of("cpu", "tiny") if one.name == name)
        judged = work.final_units(finals, tmp_path, float("inf"))
        assert len(judged) == len(work.long_piece(finals).options["arms"])


# what won


@pytest.fixture
def chosen_file(tmp_path, monkeypatch):
    """The file of the choices, in a folder of the test; pieces made in the test read it."""
    path = tmp_path / "chosen.toml"
    for module in (plan, choices):
        monkeypatch.setattr(module, "CHOSEN", path)
    plan.chosen_settings.cache_clear()
    yield path
    plan.chosen_settings.cache_clear()


def table_of(one, best):
    """A whole table of a search, in which for each arm the draw ``best`` wins."""
    rows = []
    for arm, trial in one.trials:
        row = {"arm": arm, "draw": trial.seed} | dict.fromkeys(one.options["ranges"])
        row |= plan.searched_settings(one, trial)
        robust = 0.8 if trial.seed == best else 0.7
        rows.append(row | {"accuracy": 0.9, "robust_accuracy": robust, "passes": 1, "seconds": 1})
    return pd.DataFrame(rows)


def write(one, table, folder):
    count = f"{len(table)} of {len(one.trials)}"
    text = f"# {one.about}\n# runs: {count}\n# code: abc1234\n" + table.to_csv(index=False)
    (folder / f"{one.table}.csv").write_text(text)


SEARCH = piece("mnist_search_0.3", "cpu")


def test_the_best_draw_wins_and_a_tie_goes_to_the_clean_accuracy():
    table = table_of(SEARCH, best=2)
    won = choices.choices_of(SEARCH, table)
    assert list(won) == SEARCH.options["arms"]
    for arm, trial in SEARCH.trials:
        if trial.seed == 2:
            assert won[arm] == plan.searched_settings(SEARCH, trial)
    table.loc[table.draw == 1, ["accuracy", "robust_accuracy"]] = 0.95, 0.8
    won = choices.choices_of(SEARCH, table)
    assert won["PGD-2"]["learning_rate"] == SEARCH.trials[10][1].learning_rate
    table.loc[table.arm == "PGD-2", "robust_accuracy"] = None
    assert "PGD-2" not in choices.choices_of(SEARCH, table)


def test_what_won_is_written_and_taken_by_the_frontier(tmp_path, chosen_file, capsys):
    write(SEARCH, table_of(SEARCH, best=3), tmp_path)
    assert main(["study", "--choose", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "cpu_mnist_search_0.1: there is no table yet" in said
    text = chosen_file.read_text()
    assert "# from cpu_mnist_search_0.3.csv, made by the code abc1234" in text
    won = {arm: trial for arm, trial in SEARCH.trials if trial.seed == 3}
    assert set(tomllib.loads(text)["cpu"]["mnist_search_0.3"]) == set(won)
    for arm, trial in piece("mnist_frontier_0.3", "cpu").trials:
        ours = asdict(won[arm])
        same = ("learning_rate", "sampling_number", "step_size", "alpha", "noise", "epsilon")
        assert all(getattr(trial, name) == ours[name] for name in same)
        share = ours["epsilon_warm_up"] / ours["iterations"]
        assert trial.epsilon_warm_up / trial.iterations == pytest.approx(share, abs=0.02)
    assert work.why_unchosen(piece("mnist_frontier_0.3", "cpu")) == ""
    assert work.why_unchosen(piece("mnist_frontier_0.1", "cpu"))


def test_what_was_chosen_stays_where_its_table_is_not_there(tmp_path, chosen_file, capsys):
    write(SEARCH, table_of(SEARCH, best=3), tmp_path)
    assert main(["study", "--choose", "--results", str(tmp_path)]) == 0
    before = chosen_file.read_text()
    other = piece("mnist_search_0.1", "cpu")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    write(other, table_of(other, best=1), elsewhere)
    capsys.readouterr()
    assert main(["study", "--choose", "--results", str(elsewhere)]) == 0
    assert "cpu_mnist_search_0.3: there is no table yet; what was chosen before is kept" in (
        capsys.readouterr().out
    )
    both = tomllib.loads(chosen_file.read_text())["cpu"]
    assert set(both) == {"mnist_search_0.3", "mnist_search_0.1"}
    assert both["mnist_search_0.3"] == tomllib.loads(before)["cpu"]["mnist_search_0.3"]
    (elsewhere / f"{other.table}.csv").unlink()
    kept = chosen_file.read_text()
    assert main(["study", "--choose", "--results", str(elsewhere)]) == 2
    assert chosen_file.read_text() == kept


def test_a_frontier_without_a_choice_says_what_to_run_first(tmp_path, chosen_file, capsys):
    places = {"runs": tmp_path / "runs", "results": tmp_path}
    with pytest.raises(ValueError, match=r"--piece cifar10_search`, then `catlib study --choose`"):
        work.study("cpu", ["cifar10_frontier"], **places)
    left = work.possible([piece("cifar10_frontier", "cpu"), piece("cifar10_search", "cpu")], [])
    assert [one.name for one in left] == ["cifar10_search"]
    assert "Left out: cifar10_frontier takes its settings" in capsys.readouterr().out
    assert work.why_unchosen(piece("cifar10_finals", "cpu")), "what judges it waits, too"
    tiny = next(one for one in plan.pieces_of("cpu", "tiny") if one.name == "cifar10_frontier")
    assert work.why_unchosen(tiny) == "", "to try it, no search is needed"


def test_a_search_that_is_not_whole_chooses_nothing(tmp_path, chosen_file, capsys):
    write(SEARCH, table_of(SEARCH, best=0).iloc[:7], tmp_path)
    assert main(["study", "--choose", "--results", str(tmp_path)]) == 2
    assert f"7 of {len(SEARCH.trials)} runs are done" in capsys.readouterr().err
    assert not chosen_file.exists()


def test_the_committed_choices_are_those_of_the_committed_tables():
    text, _ = choices.choices_text(RESULTS)
    if not plan.CHOSEN.exists():
        assert text == choices.HEAD, "a search is done: run `catlib study --choose`"
    else:
        assert plan.CHOSEN.read_text() == text

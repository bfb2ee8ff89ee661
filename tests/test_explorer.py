"""Pictures of the sampling number: what they draw is what the records say."""

import json

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from catlib.lab import explorer, summaries
from catlib.lab.compare import mean_interval, measured
from catlib.lab.figures import COLOURS
from catlib.lab.paths import NOTEBOOKS
from catlib.lab.race import settings_for

pytestmark = pytest.mark.no_device("it draws what tables say")

ALPHAS = (0.0, 0.5, 0.9)
NUMBERS = (16, 32)


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture
def grid():
    """CAT at three alphas and two sampling numbers, two seeds, three evaluations each."""
    rows = [
        {
            "arm": "CAT",
            "seed": seed,
            "alpha": alpha,
            "sampling_number": number,
            "iteration": iteration,
            "passes": 6 * number * iteration,
            "robust_accuracy": (iteration / 100 + alpha / 10 + number / 1000) + 0.02 * seed,
        }
        for seed in (0, 1)
        for alpha in ALPHAS
        for number in NUMBERS
        for iteration in (10, 20, 30)
    ]
    return pd.DataFrame(rows)


def race(rows):
    """Records of runs (arm, k, seed, evaluation at which it arrives), of 8 evaluations each."""
    return pd.DataFrame(
        {
            "arm": arm,
            "sampling_number": number,
            "seed": seed,
            "iteration": 10 * i,
            "passes": 60 * number * i,
            "seconds": i / 2,
            "accuracy": 0.9,
            "robust_accuracy": 0.6 if i >= arrives else 0.1,
        }
        for arm, number, seed, arrives in rows
        for i in range(1, 9)
    )


def test_every_step_of_the_slider_shows_the_means_and_the_range_of_its_alpha(grid):
    figure = explorer.live_grid(grid)
    steps = figure.layout.sliders[0].steps
    assert [float(step.label) for step in steps] == list(ALPHAS)
    for step, alpha in zip(steps, ALPHAS, strict=True):
        heights = step.args[0]["y"]
        for place, number in enumerate(NUMBERS):
            own = grid[(grid.alpha == alpha) & (grid.sampling_number == number)]
            table = own.pivot(index="iteration", columns="seed", values="robust_accuracy")
            drawn = heights[3 * place : 3 * place + 3]
            expected = (table.min(axis=1), table.max(axis=1), table.mean(axis=1))
            for line, values in zip(drawn, expected, strict=True):
                np.testing.assert_allclose(line, values, atol=6e-4)


def test_the_live_figure_begins_with_the_alpha_that_its_slider_says(grid):
    figure = explorer.live_grid(grid, alpha=0.9)
    step = figure.layout.sliders[0].steps[figure.layout.sliders[0].active]
    assert step.label == "0.9"
    assert [list(trace.y) for trace in figure.data] == [list(line) for line in step.args[0]["y"]]
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert names == [str(number) for number in NUMBERS]


def test_the_buttons_put_iterations_or_passes_below(grid):
    iterations, passes = explorer.live_grid(grid).layout.updatemenus[0].buttons
    assert list(iterations.args[0]["x0"]) == list(iterations.args[0]["dx"]) == 6 * [10]
    assert passes.args[0]["x0"][0] == passes.args[0]["dx"][0] == 960
    assert passes.args[0]["x0"][-1] == passes.args[0]["dx"][-1] == 1920


def test_uneven_evaluations_are_refused(grid):
    with pytest.raises(ValueError, match="equal distances"):
        explorer.live_grid(grid.assign(iteration=grid.iteration**2))


def test_the_output_holds_a_live_and_a_still_figure_and_stays_small(monkeypatch):
    """JavaScript and code hosts read plain lists; arrays packed in base64 need a new plotly.js."""
    grid = measured("cpu_digits_grid")
    if grid is None:
        pytest.skip("the grid is not measured yet")
    shown = []
    monkeypatch.setattr(explorer, "display", lambda *args, **kwargs: shown.append((args, kwargs)))
    explorer.explore_grid(grid)
    ((bundle,), options) = shown[0]
    assert {explorer.PLOTLY, "image/png", "text/plain"} == set(bundle)
    live = json.dumps(bundle[explorer.PLOTLY])
    assert "bdata" not in live and len(live) < 16_000
    assert len(bundle["image/png"]) < 80_000
    assert options["raw"] and options["metadata"]["image/png"]["alt"]


@pytest.fixture
def recorded():
    """AT, and CAT at three alphas, three seeds, three evaluations each."""
    rows = [
        {
            "arm": f"{method} {alpha}",
            "method": method,
            "alpha": alpha,
            "seed": seed,
            "iteration": iteration,
            "passes": 704 * iteration,
            "robust_accuracy": (iteration + 7 * seed) / 100
            + (alpha / 10 if method == "CAT" else 0),
        }
        for method, alpha in [("AT", 0.5), *(("CAT", alpha) for alpha in ALPHAS)]
        for seed in (0, 1, 2)
        for iteration in (10, 20, 30)
    ]
    return pd.DataFrame(rows)


def test_the_slider_of_a_race_moves_cat_and_leaves_at_where_it_is(recorded):
    figure = explorer.live_race(recorded)
    steps = figure.layout.sliders[0].steps
    assert [float(step.label) for step in steps] == list(ALPHAS)
    for step, alpha in zip(steps, ALPHAS, strict=True):
        at = recorded[recorded.method == "AT"]
        cat = recorded[(recorded.method == "CAT") & (recorded.alpha == alpha)]
        assert list(step.args[1]) == [3, 4, 5], "the lines that move"
        lines_of_at = [trace.y for trace in figure.data[:3]]
        for own, drawn in ((at, lines_of_at), (cat, step.args[0]["y"])):
            table = own.pivot(index="iteration", columns="seed", values="robust_accuracy")
            expected = (table.min(axis=1), table.max(axis=1), table.mean(axis=1))
            for line, values in zip(drawn, expected, strict=True):
                np.testing.assert_allclose(line, values, atol=6e-4)
    shown = [trace for trace in figure.data if trace.showlegend]
    colours = [(trace.name, trace.line.color) for trace in shown]
    assert colours == [(arm, to_hex(COLOURS[arm])) for arm in ("AT", "CAT")]
    assert figure.layout.legend.title.text == "recorded, 3 seeds"
    passes = figure.layout.updatemenus[0].buttons[1]
    assert set(passes.args[0]["dx"]) == {7040}


def test_the_still_race_shows_at_and_cat_at_one_alpha(recorded):
    axis = explorer.still_race(recorded, 0.9).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    np.testing.assert_allclose(lines["CAT"] - lines["AT"], 0.09)
    title = axis.get_title(loc="left") or axis.get_title()
    assert axis.get_legend() is not None and title == "recorded, 3 seeds: alpha = 0.9"


def test_the_recorded_race_is_that_of_lesson_06_and_its_output_stays_small(monkeypatch):
    piece = summaries.piece_of("cpu_digits_race")
    settings = settings_for("digits")
    for arm, trial in piece.trials:
        assert arm == "AT" or trial.method == "CAT"
        assert {name: getattr(trial, name) for name in settings} == settings
    shown = []
    monkeypatch.setattr(explorer, "display", lambda *args, **kwargs: shown.append((args, kwargs)))
    explorer.explore_race(measured("cpu_digits_race"))
    ((bundle,), options) = shown[0]
    assert {explorer.PLOTLY, "image/png", "text/plain"} == set(bundle)
    live = json.dumps(bundle[explorer.PLOTLY])
    assert "bdata" not in live and len(json.dumps(bundle, indent=1)) < 40_000
    assert options["raw"] and "recorded" in options["metadata"]["image/png"]["alt"]


@pytest.fixture
def draws():
    """A draw of 40 images of two classes after each of two trainings at each of three alphas."""
    random = np.random.default_rng(0)
    rows = []
    for alpha in ALPHAS:
        for seed in (0, 1):
            for image in random.permutation(400)[:40]:
                label = image % 2
                row = {"alpha": alpha, "seed": seed, "image": image, "label": label}
                row |= {"weight": random.normal() + alpha, "below": random.random()}
                rows.append(row | {"class_median": label - 3.0})
    return pd.DataFrame(rows)


def test_the_slider_of_the_draws_shows_tenths_and_weights_of_its_alpha(draws):
    figure = explorer.live_draws(draws, alpha=0.9)
    steps = figure.layout.sliders[0].steps
    for step, alpha in zip(steps, ALPHAS, strict=True):
        own = draws[draws.alpha == alpha]
        shares, medians, means = step.args[0]["y"]
        counted = [((own.below >= i / 10) & (own.below < (i + 1) / 10)).mean() for i in range(10)]
        np.testing.assert_allclose(shares, 100 * np.array(counted), atol=0.06)
        np.testing.assert_allclose(medians, [-3, -2])
        of_class = [own[own.label == label] for label in (0, 1)]
        np.testing.assert_allclose(means, [part.weight.mean() for part in of_class], atol=6e-3)
        heaviest = [part.loc[part.weight.idxmax()].image for part in of_class]
        assert step.args[0]["hovertext"][2] == [f"heaviest: image {i:.0f}" for i in heaviest]
    active = steps[figure.layout.sliders[0].active]
    assert active.label == "0.9"
    assert [list(trace.y) for trace in figure.data] == [list(line) for line in active.args[0]["y"]]


def test_the_still_draws_show_the_same_numbers(draws):
    axis = explorer.still_draws(draws, 0.5).axes[0]
    heights = [bar.get_height() for bar in axis.patches]
    np.testing.assert_allclose(heights, explorer.live_draws(draws, alpha=0.5).data[0].y)


def test_the_recorded_draws_hold_what_lesson_04_says_of_them():
    recorded = measured("cpu_digits_draws")
    of_draw = recorded.groupby(["alpha", "seed"]).below
    heaviest = of_draw.agg(lambda below: (below >= 0.9).mean()).unstack("seed")
    lightest = recorded.groupby("alpha").below.agg(lambda below: (below < 0.1).mean())
    assert lightest.between(0, 0.1, inclusive="neither").all()
    shares = heaviest.mean(axis=1)
    assert shares.map("{:.0%}".format).to_dict() == {
        0: "31%",
        0.25: "27%",
        0.5: "29%",
        0.75: "24%",
        0.9: "24%",
    }
    (lesson,) = NOTEBOOKS.glob("04_*.ipynb")
    text = lesson.read_text(encoding="utf-8")
    assert "gets 31 % at α = 0, and 24 % at 0.75 and at 0.9." in text
    assert "27 % at 0.25 and 29 % at 0.5" in text
    assert mean_interval(heaviest.loc[0] - heaviest.loc[0.9]).low > 0, "short against long"
    assert mean_interval(heaviest.loc[0.25] - heaviest.loc[0.5]).p > 0.05, "no order in between"
    medians = recorded.groupby(["label", "alpha"]).class_median.mean().unstack()
    assert ((medians - 1).abs().idxmin(axis=1) == 0.9).all()
    drawn = recorded.groupby(["label", "alpha"]).weight.mean().unstack()
    assert (drawn > medians).all(axis=None)


def test_the_recorded_draws_are_small(monkeypatch):
    shown = []
    monkeypatch.setattr(explorer, "display", lambda *args, **kwargs: shown.append((args, kwargs)))
    explorer.explore_draws(measured("cpu_digits_draws"))
    ((bundle,), options) = shown[0]
    assert len(json.dumps(bundle, indent=1)) < 20_000, "lesson 04 is near its 300 kB"
    assert options["raw"] and "recorded" in options["metadata"]["image/png"]["alt"]


def test_wherever_the_course_keeps_a_live_figure_a_still_one_stands_beside_it():
    found = 0
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            for output in cell.get("outputs", []):
                if explorer.PLOTLY in output.get("data", {}):
                    assert "image/png" in output.data and output.metadata["image/png"]["alt"]
                    found += 1
    assert found


def test_a_panel_for_every_sampling_number():
    records = race([(arm, k, 0, 3) for arm in ("AT", "CAT") for k in (16, 64, 256)])
    figure = explorer.small_multiples(records, ("accuracy", "robust_accuracy"), "digits")
    titles = [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["k = 16", "k = 64", "k = 256"]
    assert len(figure.axes) == 6
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["AT", "CAT"]


def test_a_mean_is_left_out_where_a_run_did_not_arrive():
    never = 99
    arrivals = [("AT", 16, 0, 2), ("AT", 16, 1, 4), ("AT", 64, 0, 1), ("AT", 64, 1, never)]
    records = race(arrivals + [("CAT", k, seed, 3) for k in (16, 64) for seed in (0, 1)])
    iterations = explorer.cost_of_level(records, 0.5).axes[0]
    means = {line.get_label(): line.get_ydata() for line in iterations.get_lines()}
    np.testing.assert_allclose(means["AT"], [30, np.nan])
    np.testing.assert_allclose(means["CAT"], [30, 30])
    dots = iterations.get_lines()[0].get_ydata()
    assert sorted(dots[~np.isnan(dots)]) == [10, 20, 40], "the runs that did arrive are shown"
    assert not iterations.texts


def test_a_level_that_no_run_reached_is_drawn_as_that(no_figures_left):
    records = race([(arm, k, 0, 99) for arm in ("AT", "CAT") for k in (16, 64)])
    figure = explorer.cost_of_level(records, 0.5)
    figure.canvas.draw()
    assert [text.get_text() for text in figure.axes[0].texts] == ["no run reached it"]


# ------------------------------------------------------------------ the frontier


@pytest.fixture
def budgets():
    """Two arms, of which one needs half of the other's passes, at three budgets; two seeds."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "budget": budget,
            "passes": budget + seed,
            "final_robust_accuracy": 0.3 + 0.1 * np.log2(ahead * budget / 1000) + 0.001 * seed,
        }
        for arm, ahead in (("PGD-10", 1), ("remembered", 2))
        for budget in (1000, 2000, 4000)
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_the_live_frontier_asks_what_a_level_costs(budgets):
    figure = explorer.live_frontier(budgets)
    plain, remembered, line, _ = figure.data
    assert plain.line.color == to_hex(COLOURS["AT"]) or plain.line.color == COLOURS["AT"]
    assert list(remembered.y) == pytest.approx([0.4, 0.5, 0.6], abs=1e-3)
    [slider] = figure.layout.sliders
    assert [step.label for step in slider.steps] == [f"{level} %" for level in range(32, 62, 2)]
    shown = slider.steps[slider.active]
    assert shown.label == "46 %" and set(line.y) == {0.46}
    step = next(step for step in slider.steps if step.label == "50 %")
    change, moved = step.args
    assert moved == (2, 3), "the lines of the arms stay"
    assert list(change["x"][1]) == pytest.approx([4000, 2000], abs=20)
    assert "remembered: 1,9" in change["hovertext"][1][1], "and the passes are said"


def test_the_price_of_a_level_is_shown_where_every_seed_reaches_it(budgets):
    colours = {"PGD-10": "blue", "remembered": "pink"}
    high = explorer._prices(budgets, 0.6, colours)
    assert high["hovertext"] == ["remembered: 3,987 passes"]  # one of 4,000, the other of 3,974
    low = explorer._prices(budgets, 0.35, colours)
    assert low["hovertext"][1] == "remembered: at most 1,000 passes"
    assert low["marker"]["symbol"] == ["diamond", "diamond-open"]


def test_the_frontier_stands_beside_its_still_picture(budgets, capsys):
    axes = explorer.still_frontier(budgets).axes
    assert "2 seeds" in axes[0].get_title("left") or "2 seeds" in axes[0].get_title()
    assert axes[0].get_xscale() == "log"

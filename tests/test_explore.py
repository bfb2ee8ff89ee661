"""A picture with sliders and its static twin, and the diagrams of lessons 03 and 04."""

import ipywidgets as w
import matplotlib.pyplot as plt
import pytest
import torch

import catlib
from catlib.lab import explore as module
from catlib.lab.diagrams.gumbel_top_k import gumbel_top_k
from catlib.lab.diagrams.logit_margin import logit_margin
from catlib.lab.diagrams.protocol import protocol
from catlib.lab.diagrams.weight_memory import parts, weight_memory
from catlib.lab.explore import explore
from catlib.lab.figures import picture


@pytest.fixture(autouse=True)
def no_figures_remain():
    yield
    plt.close("all")


def line(axis, height):
    axis.plot([0, 1], [height, height])
    axis.set_ylim(0, 10)


def test_without_a_front_end_fixed_values_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(module, "interactive", lambda: False)
    explore(line, {"height": w.IntSlider(5)}, [{"height": 1}, {"height": 2}], description="lines")
    figure = plt.gcf()
    assert [axis.lines[0].get_ydata()[0] for axis in figure.axes] == [1, 2]
    assert picture(figure)[1]["alt"] == "lines"


def test_with_a_front_end_the_picture_follows_the_slider(monkeypatch):
    shown = []
    monkeypatch.setattr(module, "interactive", lambda: True)
    monkeypatch.setattr(module, "display", shown.append)
    slider = w.IntSlider(5)
    heights = []

    def remember(axis, height):
        heights.append(height)
        line(axis, height)

    explore(remember, {"height": slider}, [{"height": 1}])
    (box,) = shown
    assert box.children[0] is slider
    before = bytes(box.children[1].value)
    assert before.startswith(b"\x89PNG")
    slider.value = 7
    assert heights == [5, 7]
    after = bytes(box.children[1].value)
    assert after.startswith(b"\x89PNG") and after != before
    assert plt.get_fignums() == [], "pyplot would show its figures a second time"


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_the_parts_of_a_weight_are_those_of_eq_4(alpha):
    gains = [-3.0, 0.5, 2.0, -1.0]
    weight = torch.tensor(1.0)
    for gain in gains:
        weight = catlib.smooth(weight, torch.tensor(gain), alpha)
    shares = parts(alpha, len(gains))
    assert sum(shares) == pytest.approx(1)
    by_parts = sum(share * value for share, value in zip(shares, [1.0, *gains], strict=True))
    assert by_parts == pytest.approx(weight.item(), abs=1e-6)


@pytest.mark.parametrize("draw", [logit_margin, protocol, weight_memory, gumbel_top_k])
def test_a_diagram_is_a_figure_on_which_no_text_is_cut_off(draw):
    figure = draw()
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for axis in figure.axes:
        for text in axis.texts:
            if not text.get_text():
                continue  # an arrow
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= width + 1, text.get_text()
            assert box.y0 >= -1 and box.y1 <= height + 1, text.get_text()


@pytest.mark.parametrize(("k", "classes"), [(1, 1), (2, 1), (2, 2), (3, 2)])
def test_gumbel_top_k_draws_k_keys_in_every_class(k, classes):
    (axis,) = gumbel_top_k(k, classes=classes).axes
    won = [line for line in axis.lines if line.get_marker() == "o"][::2]
    assert [len(line.get_xdata()) for line in won] == [k] * classes

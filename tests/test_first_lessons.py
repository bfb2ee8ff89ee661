"""What the first lessons promise the others: a glossary, and colours that mean one thing.

And the diagrams that lessons call in one line.
"""

import itertools
import re

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from catlib.lab import figures, paths
from catlib.lab.diagrams import readings, two_pixels
from catlib.lab.diagrams.ball import ball_and_projection
from catlib.lab.diagrams.training_loop import training_loop

matplotlib.use("Agg")
LESSONS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
START = LESSONS[0]
FIRST = LESSONS[:3]
TERMS = {
    "adversarial-example",
    "epsilon",
    "ball",
    "pgd",
    "pass",
    "epoch",
    "iteration",
    "tick",
    "arm",
    "robust-accuracy",
    "gain",
    "weight",
    "alpha",
    "sampling-number",
    "temperature",
    "class-balance",
    "coverage",
    "catastrophic-overfitting",
    "threat-model",
    "restart",
    "control",
    "natural-accuracy",
}

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
each_first_lesson = pytest.mark.parametrize("path", FIRST, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def cells_of(path, kind):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def prose(path):
    return "\n".join(cell.source for cell in cells_of(path, "markdown"))


def glossary():
    """Anchor to sentence of every term in the glossary."""
    section = prose(START).split("## Glossary")[1].split("## Check yourself")[0]
    return dict(re.findall(r'^- <a id="([a-z-]+)"></a>(.+)$', section, re.M))


def test_the_glossary_says_each_term_in_one_sentence():
    entries = glossary()
    assert set(entries) == TERMS
    for sentence in entries.values():
        assert sentence.startswith("**") and sentence.endswith("."), sentence
        assert not re.search(r"\. [A-Z]", sentence), "one sentence"


@each_lesson
def test_a_link_to_the_glossary_leads_to_a_term(path):
    for anchor in re.findall(r"\((?:00_start_here\.ipynb)?#([\w-]+)\)", prose(path)):
        assert anchor in TERMS, f"{path.name} links to #{anchor}"


@each_first_lesson
def test_at_and_cat_own_their_colours(path):
    for cell in cells_of(path, "code"):
        assert not re.search(r"PALETTE\[(0|1)\]|PALETTE\[:|\"C[01]\"", cell.source), cell.source
        for code in figures.PALETTE[:2]:
            assert code not in cell.source


@each_first_lesson
def test_story_cells_are_short_and_scaffolding_is_folded_under_one_line(path):
    for cell in cells_of(path, "code"):
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        scaffolding = "parameters" in cell.metadata.get("tags", []) or "use_style()" in cell.source
        assert folded or not scaffolding
        if folded:
            assert cell.source.startswith("# ") and cell.source.split("\n")[0].endswith(".")
        if not cell.id.startswith("exercise"):
            most = 25 if folded else 20
            assert len(cell.source.splitlines()) <= most, cell.source


@each_first_lesson
def test_every_picture_is_described_where_it_is_drawn(path):
    for cell in cells_of(path, "code"):
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        for output in pictures:
            assert output.metadata["image/png"]["alt"], cell.source


def test_a_surprise_stands_in_the_third_cell_of_code():
    third = cells_of(START, "code")[2]
    assert any("image/png" in output.get("data", {}) for output in third.outputs)


class Record:
    def __init__(self, seconds, passes):
        self.seconds = seconds
        self.passes = passes


@pytest.mark.parametrize(
    ("slowness", "verdict"),
    [(1.0, "unreliable"), (4.0, "believed"), (6.0, "believed"), (30.0, "unreliable")],
)
def test_seconds_that_contradict_the_passes_are_not_believed(slowness, verdict, capsys):
    """Lesson 01 once said "6 times the passes, 1.0 times the seconds" without a word more."""
    (cell,) = [cell for cell in cells_of(FIRST[1], "code") if "def typical_seconds" in cell.source]
    steps_of_time = np.ones(20)
    steps_of_time[0] = 100  # a slow first iteration must not decide
    clock = np.cumsum(steps_of_time)
    names = {
        "np": np,
        "steps": 5,
        "normal_records": [Record(seconds, 100) for seconds in clock],
        "robust_records": [Record(slowness * seconds, 600) for seconds in clock],
    }
    exec(cell.source, names)
    said = capsys.readouterr().out
    assert "6 times the passes" in said and f"{slowness:.1f} times the seconds" in said
    assert verdict in said


def inside(figure):
    """Whether every text of a figure lies within its borders."""
    figure.canvas.draw()
    border = figure.bbox.padded(1)
    for text in figure.findobj(matplotlib.text.Text):
        if not text.get_text() or not text.get_visible():
            continue
        box = text.get_window_extent()
        if not (border.contains(box.x0, box.y0) and border.contains(box.x1, box.y1)):
            return False
    return True


@pytest.mark.parametrize("draw", [ball_and_projection, training_loop])
def test_a_diagram_fits_into_its_figure(draw):
    figures.use_style()
    assert inside(draw())


def reader(classes=3):
    """A model that reads class 0 in dark images and class 2 in bright ones."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, classes, bias=False))
    model[1].weight.data = torch.stack([torch.full((4,), float(k)) for k in range(classes)])
    model[1].weight.data[0] = 0.5
    return model


def test_wrong_readings_are_bold_and_right_ones_are_not():
    images = torch.ones(2, 1, 2, 2)
    rows = {"read": (reader(), images), "shown": (None, images)}
    figure = readings.readings(rows, torch.tensor([2, 0]), ("a", "b", "c"))
    titles = [axis.title for axis in figure.axes]
    assert [title.get_text()[:1] for title in titles] == ["c", "c", "", ""]
    assert [title.get_fontweight() for title in titles[:2]] == ["normal", "bold"]


@pytest.mark.parametrize("longest", ["2", "checks", "automobile"])
def test_long_names_of_neighbouring_images_do_not_run_into_each_other(longest):
    figures.use_style()
    rows = {"read": (reader(), torch.ones(8, 1, 2, 2))}
    figure = readings.readings(rows, torch.zeros(8, dtype=torch.long), ("0", "1", longest))
    figure.canvas.draw()
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0
    plt.close(figure)


def test_the_anatomy_shows_image_change_sum_and_beliefs():
    image = torch.full((1, 2, 2), 0.5)
    figure = readings.anatomy(image, image + 0.1, reader(), ("a", "b", "c"), epsilon=0.1)
    shown = [axis.images[0].get_array() for axis in figure.axes[:3]]
    assert np.allclose(shown[1], 1), "a change of +epsilon is white"
    assert np.allclose(shown[2] - shown[0], 0.1)
    assert len(figure.axes[3].patches) == 2 * 3


def test_squares_say_how_many_hold():
    images = torch.tensor([[0.2, 0.5], [0.45, 0.5], [0.9, 0.5]]).view(3, 2, 1, 1)
    labels = torch.tensor([0, 0, 1])
    border_at_half = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    border_at_half[1].weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    border_at_half[1].bias.data = torch.tensor([0.5, 0.0])

    def to_the_right(model, images, labels):
        return images + torch.tensor([0.1, 0.0]).view(2, 1, 1)

    figure = two_pixels.squares({"plain": border_at_half}, images, labels, 0.1, to_the_right)
    titles = [figure.axes[0].get_title(loc=place) for place in ("left", "center")]
    assert "plain: 2 of 3 squares held" in titles


def test_the_map_says_what_the_course_says_of_itself():
    course = pytest.importorskip("catlib.lab.course")
    text = prose(START)
    for lesson in course.course().lessons:
        assert f"| {lesson.question} |" in text
        assert f"| {course.duration(lesson.minutes)} |" in text

"""What is drawn is what the records say, on small synthetic records; and how it is stored."""

import base64
import io
import math

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib.colors import to_rgb
from nbclient import NotebookClient
from PIL import Image

matplotlib.use("Agg")

from test_compare import records

from catlib.lab import figures

pytestmark = pytest.mark.no_device("it draws what tables say")


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


# ----- how a figure is stored


def drawn():
    """A figure as the notebooks have them: lines with bands, and text."""
    figures.use_style()
    figure, axes = figures.plt.subplots(1, 2, figsize=(7.6, 3))
    steps = np.arange(60)
    for axis in axes:
        for number, colour in enumerate(figures.PALETTE):
            height = np.sin(steps / 9 + number)
            axis.plot(steps, height, color=colour, label=f"arm {number}")
            axis.fill_between(steps, height - 0.2, height + 0.2, color=colour, alpha=0.18)
        axis.set_title("Robust accuracy (%)")
    return figure


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_a_picture_has_twice_the_pixels_of_the_page_and_not_more_bytes_than_80_dpi_took():
    figure = drawn()
    png, shown = figures.picture(figure)
    size = opened(png).size
    assert size[0] > 1000 and size == pytest.approx(
        (2 * shown["width"], 2 * shown["height"]), abs=1
    )
    figure.set_dpi(80)
    assert len(png) < len(print_figure(figure))


def test_few_colours_change_a_picture_so_little_that_lines_and_text_stay_what_they_were():
    figure = drawn()
    whole = np.asarray(opened(print_figure(figure))).astype(int)
    small = np.asarray(opened(figures.picture(figure)[0])).astype(int)
    difference = np.abs(whole - small).max(axis=2)
    assert difference.max() < 64 and np.quantile(difference, 0.99) < 24
    for colour in [*figures.PALETTE, "#ffffff"]:
        exact = np.array(to_rgb(colour)) * 255
        pixels = (whole == exact.round()).all(axis=2)
        assert pixels.any() and difference[pixels].max() <= 6, colour


def test_a_rare_colour_survives_beside_a_gradient():
    shades = np.add.outer(np.linspace(0, 1, 300), np.linspace(0, 1, 300)) / 2
    pixels = (matplotlib.colormaps["viridis"](shades)[..., :3] * 255).astype(np.uint8)
    pixels[100:104, 100:104] = (0xD5, 0x5E, 0x00)
    small = np.asarray(opened(figures.small_png(Image.fromarray(pixels)))).astype(int)
    difference = np.abs(small - pixels)
    assert difference[100:104, 100:104].max() <= 2
    assert difference.mean() < 4


def test_a_picture_of_few_colours_or_with_transparent_parts_is_stored_as_it_is():
    few = Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).convert("RGB")
    assert opened(figures.small_png(few)).tobytes() == few.tobytes()
    clear = few.convert("RGBA")
    clear.putpixel((0, 0), (1, 2, 3, 0))
    again = Image.open(io.BytesIO(figures.small_png(clear)))
    assert again.mode == "RGBA" and again.tobytes() == clear.tobytes()


def test_the_text_alternative_belongs_to_its_figure_alone():
    first, second = drawn(), drawn()
    figures.describe("Two  panels\n  of curves.")
    assert figures.picture(second)[1]["alt"] == "Two panels of curves."
    assert "alt" not in figures.picture(first)[1]
    figures.describe("The first.", first)
    assert figures.picture(first)[1]["alt"] == "The first."
    assert figures.picture(figures.plt.figure()) is None, "nothing is drawn in it"


CELL = """
from catlib.lab import figures
import matplotlib.pyplot as plt
figures.use_style()
"""
DRAW = """
plt.plot([1, 2])
figures.describe("A rising line.")
plt.show()
"""


@pytest.mark.slow
@pytest.mark.parametrize("cells", [[CELL, DRAW], [CELL + DRAW]], ids=["two cells", "one cell"])
def test_a_notebook_stores_the_small_picture_with_its_text(cells):
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    executed = NotebookClient(node, kernel_name="python3", timeout=120).execute()
    [output] = [output for output in executed.cells[-1].outputs if "image/png" in output.data]
    shown = output.metadata["image/png"]
    image = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert image.mode == "P" and image.width in (2 * shown["width"] + d for d in (-1, 0, 1))
    assert shown["alt"] == "A rising line."

"""What is drawn is what the records say, on small synthetic records."""

import math

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")

from test_compare import records

from catlib.lab import figures


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

"""A picture with sliders: drawn anew whenever one moves, and a few fixed values without sliders.

explore(draw, {"temperature": slider}, shown=[{"temperature": 0.3}, {"temperature": 30}])
"""

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as w
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .figures import SHOWN_DPI, describe, picture
from .panel import interactive

PAGE_WIDTH = 9.6  # inches of a figure that is as wide as a page


def explore(
    draw: Callable[..., None],
    sliders: dict[str, w.Widget],
    shown: Sequence[dict[str, Any]],
    *,
    size: tuple[float, float] = (7, 3.4),
    description: str = "",
) -> None:
    """Show ``draw(axis, **values)`` for the values of the sliders, or for fixed ones.

    Where somebody may be looking (:func:`catlib.lab.panel.interactive`) the sliders are shown with
    one picture below them. Elsewhere, such as on a page, all of ``shown`` is drawn side by side in
    one pyplot figure, which the cell then leaves as its picture.

    Args:
        draw: draws on a matplotlib axis; takes the axis, and the values by name.
        sliders: widgets by the name of the value that they move.
        shown: the values to draw where no slider can be moved.
        size: of the picture below the sliders, in inches; pictures side by side are as high.
        description: what is seen, in words, for those who cannot see the picture.
    """
    if not interactive():
        figure = _side_by_side(draw, shown, height=size[1])
        describe(description, figure)
        return
    image = w.Image(format="png", width=str(round(size[0] * SHOWN_DPI)))

    def redraw(_change: Any = None) -> None:
        values = {name: slider.value for name, slider in sliders.items()}
        image.value = _png(draw, values, size)

    for slider in sliders.values():
        slider.observe(redraw, "value")
    redraw()
    display(w.VBox([*sliders.values(), image]))


def _side_by_side(
    draw: Callable[..., None], shown: Sequence[dict[str, Any]], height: float
) -> Figure:
    figure, axes = plt.subplots(
        1, len(shown), figsize=(PAGE_WIDTH, height), sharey=True, squeeze=False
    )
    for axis, values in zip(axes[0], shown, strict=True):
        draw(axis, **values)
        axis.label_outer()
    return figure


def _png(draw: Callable[..., None], values: dict[str, Any], size: tuple[float, float]) -> bytes:
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    draw(figure.subplots(), **values)
    drawn = picture(figure)
    assert drawn is not None, "a figure with an axis is never empty"
    return drawn[0]

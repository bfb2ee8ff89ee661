"""The world of two pixels: images as points of a plane, with the square that an attacker has."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ..figures import PALETTE

# of the two classes; blue and orange stay AT's and CAT's
CLASSES = ("green", "pink")
CLASS_COLOURS = (PALETTE[2], PALETTE[3])
CLASS_MARKERS = ("o", "D")


def draw_points(axis: Axes, images: Tensor, labels: Tensor, radius: float, held=None) -> None:
    """Each image (n, 2, 1, 1) as a dot in its square; squares that are not held get a thick border.

    Args:
        held: (n,) booleans; None draws every square alike.
    """
    if held is None:
        held = [True] * len(labels)
    for point, label, firm in zip(images.flatten(1).tolist(), labels.tolist(), held, strict=True):
        corner = (point[0] - radius, point[1] - radius)
        width = 0.9 if firm else 2.6
        square = Rectangle(corner, 2 * radius, 2 * radius, fill=False, ec="black", lw=width)
        axis.add_patch(square)
        axis.plot(*point, CLASS_MARKERS[label], color=CLASS_COLOURS[label], mec="black", ms=7)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="pixel 1", ylabel="pixel 2")


def squares(
    models: dict[str, nn.Module],
    images: Tensor,
    labels: Tensor,
    radius: float,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
) -> Figure:
    """What each model says everywhere in the plane, and which squares the attack breaks.

    Args:
        models: title to model; the number of squares that hold is added to the title.
        images: (n, 2, 1, 1) in [0, 1].
        labels: (n,) 0 or 1.
        radius: half the side of a square.
        attack: looks for an error in each square; what it finds is marked by a cross.
    """
    figure, axes = plt.subplots(
        1, len(models), figsize=(4.2 * len(models), 4.4), squeeze=False, sharey=True
    )
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        draw_regions(axis, model)
        worst = attack(model, images, labels)
        with torch.no_grad():
            held = model(worst).argmax(1) == labels
        draw_points(axis, images, labels, radius, held.tolist())
        axis.plot(*worst[~held].flatten(1).T, "x", color="black", ms=9, mew=2.4)
        axis.set_title(f"{name}: {int(held.sum())} of {len(labels)} squares held")
    return figure


def draw_regions(axis: Axes, model: nn.Module, points: int = 160) -> None:
    """The class that the model gives to every point of the plane, as a pale colour."""
    side = torch.linspace(0, 1, points)
    with torch.no_grad():
        said = model(plane(side)).argmax(1).view(points, points)
    axis.contourf(side, side, said, levels=[-1, 0.5, 2], colors=CLASS_COLOURS, alpha=0.25)


def plane(side: Tensor) -> Tensor:
    """Every image of two pixels whose pixels have these values: (n * n, 2, 1, 1)."""
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).view(-1, 2, 1, 1)


def draw_landscape(axis: Axes, model: nn.Module, centre: float, radius: float, title: str) -> None:
    """The loss of class 0 around an image whose two pixels are ``centre``: the darker, the higher.

    The ball of this radius is drawn as a square with the image in its middle.
    """
    side = torch.linspace(centre - 1.4 * radius, centre + 1.4 * radius, 90)
    images = plane(side)
    truth = torch.zeros(len(images), dtype=torch.long)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(images), truth, reduction="none")
    axis.contourf(side, side, loss.view(90, 90), levels=8, cmap="Greys", alpha=0.7)
    corner = (centre - radius, centre - radius)
    axis.add_patch(Rectangle(corner, 2 * radius, 2 * radius, fill=False, lw=2))
    axis.plot(centre, centre, "o", color="black", ms=6)
    axis.set(aspect="equal", xlabel="pixel 1", ylabel="pixel 2", title=title)


def draw_path(
    axis: Axes, path: Sequence[Tensor], colour: str, label: str | None = None, style: str = "-"
) -> None:
    """The images (1, 2, 1, 1) of a path, joined by a line."""
    corners = torch.cat(list(path)).flatten(1)
    axis.plot(*corners.T, linestyle=style, marker="o", ms=5, lw=2, color=colour, label=label)

"""What is done to the training images before they are attacked."""

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..checks import check_count


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """The usual augmentation of CIFAR-10: a random shift of every image, and half of them mirrored.

    Args:
        images: (B, C, H, W).
        generator: on the device of the images.
        padding: the largest shift, in pixels; what comes in from outside is black.
    Returns: (B, C, H, W), new.
    """
    return CropAndFlip(padding)(images, generator)


@runtime_checkable
class MovingAugmentation(Protocol):
    """An augmentation that only moves pixels, and says how, so that it can be undone."""

    def draw(self, images: Tensor, generator: torch.Generator) -> "Moves":
        """How each of these images (B, C, H, W) is to be moved."""


@dataclass(frozen=True)
class CropAndFlip:
    """:func:`crop_and_flip` as a value, whose moves can also be had apart from the images.

    ``augment(images, generator)`` moves the images. ``moves = augment.draw(images, generator)``
    only draws how, and ``moves`` moves any tensor of their shape, or moves it back.
    """

    padding: int = 4

    def __post_init__(self) -> None:
        check_count("padding", self.padding, at_least=0)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.draw(images, generator)(images)

    def draw(self, images: Tensor, generator: torch.Generator) -> "Moves":
        """How each of these images is to be moved, see :class:`MovingAugmentation`."""

        def draw(high: int) -> Tensor:
            shape = (len(images), 1)
            return torch.randint(high, shape, generator=generator, device=images.device)

        down = draw(2 * self.padding + 1)
        right = draw(2 * self.padding + 1)
        mirrored = draw(2).bool()
        return Moves(self.padding, down, right, mirrored)


@dataclass(frozen=True)
class Moves:
    """A shift of each of B images, and for some of them a mirror image of the result.

    ``moves(images)`` is new, of the same shape; what comes in from outside is 0.

    Args:
        padding: the largest shift, in pixels.
        down: (B, 1), in 0..2 padding: the first row that is kept, of the image with so many rows
            of padding around it. ``padding`` itself is no shift.
        right: (B, 1), the same for columns.
        mirrored: (B, 1) bool.
    """

    padding: int
    down: Tensor
    right: Tensor
    mirrored: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        device = images.device
        rows = self.down + torch.arange(height, device=device)  # (B, H)
        columns = self.right + torch.arange(width, device=device)  # (B, W)
        columns = torch.where(self.mirrored, columns.flip(1), columns)
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        image = torch.arange(n, device=device)
        crops = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2)  # from (B, H, W, C)

    def inverse(self) -> "Moves":
        """The moves back: pixels that stayed in the frame return to their place, others are 0."""
        opposite = 2 * self.padding - self.right
        return replace(
            self,
            down=2 * self.padding - self.down,
            # a mirror turns a shift to the right into one to the left: the way back already
            right=torch.where(self.mirrored, self.right, opposite),
        )

"""What is done to the training images before they are attacked."""

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """The usual augmentation of CIFAR-10: a random shift of every image, and half of them mirrored.

    Args:
        images: (B, C, H, W).
        generator: on the device of the images.
        padding: the largest shift, in pixels; what comes in from outside is black.
    Returns: (B, C, H, W), new.
    """
    n, _, height, width = images.shape
    device = images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n, 1), generator=generator, device=device)

    down = draw(2 * padding + 1)
    right = draw(2 * padding + 1)
    mirrored = draw(2).bool()
    rows = down + torch.arange(height, device=device)  # (B, H)
    columns = right + torch.arange(width, device=device)  # (B, W)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, [padding] * 4)
    image = torch.arange(n, device=device)
    crops = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return crops.permute(0, 3, 1, 2)

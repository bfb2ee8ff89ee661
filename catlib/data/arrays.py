"""From arrays, as files hold them, to tensors, as the library wants them."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def unpack(
    path: Path, needed: Iterable[str], advice: str, optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises: ValueError: a damaged file, or a needed array missing."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            there = list(archive)
            wanted = [*needed, *(key for key in optional if key in there)]
            arrays = {key: archive[key] for key in wanted if key in there}
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"{path} is damaged or half-written ({error}). {advice}") from error
    missing = [key for key in needed if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it has {', '.join(there) or 'nothing'}. {advice}"
        )
    return arrays


def channels_first(x: np.ndarray) -> Tensor:
    """Images (n, H, W), (n, H, W, C) or (n, C, H, W) to (n, C, H, W).

    (n, a, b, c) has its channels first if a is at most 4 and c is more: no image is so low.

    Raises: ValueError: more than four channels seem to come first, as (n, a, b, b) could mean.
    """
    images = torch.from_numpy(x)
    if images.ndim == 4:
        _, first, height, last = images.shape
        if first > 4 and last > 4 and first != height == last:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, which would be {last} channels of "
                f"{first} x {height} pixels; with more than four channels put them last, as "
                f"(n, {height}, {last}, {first})."
            )
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif not images.shape[1] <= 4 < images.shape[3]:
        images = images.permute(0, 3, 1, 2)
    return images.contiguous()


def labels_of(y: np.ndarray) -> Tensor:
    """(n,) or (n, 1) integers to (n,) int64."""
    return torch.from_numpy(y.reshape(-1).astype(np.int64))

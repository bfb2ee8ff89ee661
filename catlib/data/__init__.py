"""What is trained on: all images on one device; a batch is a selection by index."""

from .augmentation import CropAndFlip, Moves, crop_and_flip
from .dataset import SUBSETS, Data, subset
from .loading import CLASSES, KEYS, data_root, find_data, is_here, known_file, load_data

__all__ = [
    "CLASSES",
    "KEYS",
    "SUBSETS",
    "CropAndFlip",
    "Data",
    "Moves",
    "crop_and_flip",
    "data_root",
    "find_data",
    "is_here",
    "known_file",
    "load_data",
    "subset",
]

"""Case-aware adversarial training (CAT; Fan, Liu and Chen, arXiv 2204.09398).

The parts of the method, each usable in a training loop of one's own.
"""

from .attacks import PGD, pgd
from .collapse import guarded
from .data import CropAndFlip, Data, crop_and_flip, load_data
from .evaluation import accuracy, check_model, recalibrated, robust_accuracy
from .gain import information_gain, smooth
from .memory import PerturbationMemory
from .models import build_model
from .samplers import CaseSampler, UniformSampler
from .training import Record, Training

__version__ = "0.1.0"
__all__ = [
    "PGD",
    "CaseSampler",
    "CropAndFlip",
    "Data",
    "PerturbationMemory",
    "Record",
    "Training",
    "UniformSampler",
    "accuracy",
    "build_model",
    "check_model",
    "crop_and_flip",
    "guarded",
    "information_gain",
    "load_data",
    "pgd",
    "recalibrated",
    "robust_accuracy",
    "smooth",
]

"""Settings drawn at random for a search, the same for every arm to which they apply.

    ranges = { learning_rate = { log = [1e-3, 1e-2] }, sampling_number = { choice = [32, 64] } }

Draw number 3 of a search has the same learning rate for PGD-10 as for N-FGSM, so that no arm is
tuned harder than another one. The draws are points of a scrambled Sobol sequence: random, but
spread evenly, so that of eight draws four have each of two values. (Six independent draws of one
of three batch sizes took one size five times.)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import qmc

SEARCH_SEED = 15  # of every search; a draw's numbers come of this and of its own number alone
LAWS = ("log", "uniform", "choice")


def drawn_settings(
    ranges: Mapping[str, Mapping[str, Any]], number: int, arm: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of one draw of a search for one arm.

    Args:
        ranges: by setting, how it is drawn: ``{"log": [low, high]}`` (its logarithm is uniform),
            ``{"uniform": [low, high]}`` or ``{"choice": [values]}``.
        number: of the draw, from 0.
        arm: the settings of the arm, which say what applies to it: "step" to attacks with a step,
            "noise" to N-FGSM, "alpha" to CAT.

    Returns: the drawn settings that apply, numbers to three digits. A "step" is meant for an attack
        of one step, and divided by the root of their number for one of several.

    Raises: ValueError: a range of another form.
    """
    chosen = {}
    for (name, law), place in zip(ranges.items(), _point(len(ranges), number), strict=True):
        value = _value_at(place, name, law)
        if _applies(name, arm):
            if name == "step":
                value /= _root_of_steps(arm)
            chosen[name] = float(f"{value:.3g}") if isinstance(value, float) else value
    return chosen


def _point(settings: int, number: int) -> np.ndarray:
    """Point ``number`` of a sequence that fills the unit cube evenly, one coordinate a setting."""
    if not settings:
        return np.empty(0)
    sequence = qmc.Sobol(settings, seed=SEARCH_SEED)
    if number:
        sequence.fast_forward(number)
    return sequence.random(1)[0]


def _value_at(place: float, name: str, law: Mapping[str, Any]) -> Any:
    """The value of a setting at a place in [0, 1) of its range."""
    if len(law) != 1 or not set(law) <= set(LAWS):
        raise ValueError(
            f"the range of {name} is {dict(law)}; it must be one of {', '.join(LAWS)} with its "
            "values, as { log = [1e-3, 1e-2] }."
        )
    [(kind, values)] = law.items()
    if kind == "choice":
        return values[int(place * len(values))]
    low, high = values
    if kind == "uniform":
        return low + place * (high - low)
    return low * (high / low) ** place


def _applies(name: str, arm: Mapping[str, Any]) -> bool:
    crafting = arm.get("crafting", "pgd")
    if name == "step":
        return crafting in ("pgd", "n-fgsm", "kl")
    if name == "noise":
        return crafting == "n-fgsm"
    if name == "alpha":
        return arm.get("method", "CAT") == "CAT"
    return True


def _root_of_steps(arm: Mapping[str, Any]) -> float:
    if arm.get("crafting", "pgd") == "n-fgsm":
        return 1.0
    return float(max(1, arm.get("steps", 10))) ** 0.5

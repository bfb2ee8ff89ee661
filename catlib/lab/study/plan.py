"""The plan of the study: from study.toml to pieces, each with its trials in their order."""

import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from ..batch.units import combinations
from ..runs import Trial

CONFIGURATION = Path(__file__).with_name("study.toml")
SETTINGS = {field.name for field in fields(Trial)}
NOT_PROFILES = ("arms", "deviations")


@dataclass(frozen=True)
class Piece:
    """One table of the study.

    Attributes:
        kind: "train", "similarity", "draws", "notebook" or "finals"; study.toml explains them.
        trials: the runs behind the table, each with the name of its arm.
        levels: accuracies in percent that are timed, by metric.
        options: what study.toml says of the piece beside the settings of its trials.
    """

    profile: str
    name: str
    about: str
    kind: str
    trials: tuple[tuple[str, Trial], ...]
    levels: dict
    options: dict

    @property
    def table(self) -> str:
        return f"{self.profile}_{self.name}"

    @property
    def command(self) -> str:
        return f"python -m catlib.lab study --profile {self.profile} --piece {self.name}"


@lru_cache
def configuration() -> dict:
    """What study.toml says."""
    return tomllib.loads(CONFIGURATION.read_text(encoding="utf-8"))


def profiles() -> list[str]:
    """The names of the profiles: the same study at several sizes."""
    return [name for name in configuration() if name not in NOT_PROFILES]


def pieces_of(profile: str, scale: str = "full") -> list[Piece]:
    """The pieces of a profile, in the order in which they run.

    Args:
        scale: "full", or "tiny" to try all of it in minutes.

    Raises: ValueError: there is no such profile.
    """
    if profile not in profiles():
        raise ValueError(f"there is no profile {profile!r}; choose one of {', '.join(profiles())}.")
    chosen = configuration()[profile]
    return [make_piece(profile, chosen, entry, scale) for entry in chosen["pieces"]]


def make_piece(profile: str, chosen: dict, entry: dict, scale: str) -> Piece:
    """The piece of one entry in study.toml; ``chosen`` is the entry's profile."""
    tiny = {}
    if scale == "tiny":
        tiny = chosen.get("tiny", {}) | entry.get("tiny", {})
    options = {key: value for key, value in entry.items() if key not in SETTINGS}
    return Piece(
        profile=profile,
        name=entry["name"],
        about=entry["about"],
        kind=entry.get("kind", "train"),
        trials=tuple(make_trials(chosen["settings"], entry, tiny)),
        levels=entry.get("levels", {}),
        options=options | {"tiny": bool(tiny)},
    )


def make_trials(profile_settings: dict, entry: dict, tiny: dict) -> list[tuple[str, Trial]]:
    """Every seed x every combination of the grid x every arm, with the name of the arm.

    The seed changes last, so that arms which are compared by seed finish close together.
    """
    settings = profile_settings | {key: entry[key] for key in entry if key in SETTINGS}
    grid = entry.get("grid", {})
    seeds = entry.get("seeds", 0)
    if tiny:
        grid = {name: values[:2] for name, values in grid.items()}
        tiny = {name: value for name, value in tiny.items() if name not in grid}
        seeds = min(seeds, 1)
    trials = []
    for seed in range(seeds):
        for combination in combinations(grid):
            for arm in entry.get("arms", ()):
                changed = configuration()["arms"][arm] | combination | {"seed": seed}
                trials.append((arm, make_trial(settings | changed, tiny)))
    return trials


def make_trial(settings: dict, tiny: dict) -> Trial:
    """The trial of settings that may also give its epsilon and its step size in other units.

    Args:
        settings: of Trial, and "scaled" (a factor of epsilon), "normalised" (True: epsilon is meant
            in units of the pixels' standard deviation) and "step" (the step size in epsilons).
        tiny: settings that make the trial small; empty leaves its size as it is.
    """
    settings = dict(settings)
    factor = settings.pop("scaled", 1)
    if settings.pop("normalised", False):
        factor *= configuration()["deviations"][settings["dataset"]]
    if factor != 1:
        settings["epsilon"] = round(settings["epsilon"] * factor, 6)
    if "step" in settings:
        settings["step_size"] = round(settings.pop("step") * settings["epsilon"], 6)
    if tiny:
        settings = shrink(settings, tiny)
    return Trial(**settings)


def shrink(settings: dict, tiny: dict) -> dict:
    """The settings with those of ``tiny`` in their place, and fewer examples and restarts."""
    steps = settings.get("steps", 10)
    small = settings | tiny
    if "steps" in tiny and steps <= tiny["steps"]:
        small["steps"] = steps  # an attack that is shorter than the tiny one keeps its length
    small["sampling_number"] = max(2, settings.get("sampling_number", 128) // 8)
    small["final_restarts"] = min(small.get("final_restarts", 0), 2)
    return small

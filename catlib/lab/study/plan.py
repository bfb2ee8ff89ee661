"""The plan of the study: from study.toml to pieces, each with its trials in their order."""

import tomllib
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from ..batch.units import combinations
from ..runs import Trial, passes_a_draw
from .ranges import drawn_settings

CONFIGURATION = Path(__file__).with_name("study.toml")
CHOSEN = Path(__file__).with_name("chosen.toml")  # which settings won the searches
SETTINGS = {field.name for field in fields(Trial)}
# what make_trial understands beside the settings of a Trial
UNITS = {"scaled", "normalised", "step", "passes", "growth", "evaluations"}
NOT_PROFILES = ("arms", "deviations")


@dataclass(frozen=True)
class Piece:
    """One table of the study.

    Attributes:
        kind: "train", "search", "frontier", "similarity", "draws", "notebook" or "finals";
            study.toml explains them.
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


@lru_cache
def chosen_settings() -> dict:
    """What chosen.toml says: by profile, search and arm the settings that won; empty without it."""
    if not CHOSEN.exists():
        return {}
    return tomllib.loads(CHOSEN.read_text(encoding="utf-8"))


def choices_for(profile: str, entry: dict) -> dict[str, dict]:
    """The settings that won the search which a piece's entry names, by arm; empty without one."""
    name = entry.get("chosen")
    return chosen_settings().get(profile, {}).get(name, {}) if name else {}


def lacks_choice(piece: Piece) -> bool:
    """Whether a piece takes its settings from a search that has none yet for all of its arms."""
    if "chosen" not in piece.options:
        return False
    return not set(piece.options["arms"]) <= set(choices_for(piece.profile, piece.options))


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
    options = {key: value for key, value in entry.items() if key not in SETTINGS | UNITS}
    if tiny:
        options.pop("of_budgets", None)  # a tiny trial has none of the budgets
    choices = choices_for(profile, entry)
    return Piece(
        profile=profile,
        name=entry["name"],
        about=entry["about"],
        kind=entry.get("kind", "train"),
        trials=tuple(make_trials(chosen["settings"], entry, tiny, choices)),
        levels=entry.get("levels", {}),
        options=options | {"tiny": bool(tiny)},
    )


def make_trials(
    profile_settings: dict, entry: dict, tiny: dict, choices: dict[str, dict] | None = None
) -> list[tuple[str, Trial]]:
    """Every seed x every combination of the grid x every budget x every arm, with the arm's name.

    The seed changes last, so that arms which are compared by seed finish close together. Of a
    search the draws take the place of the seeds: a draw has its number as its seed.

    Args:
        choices: settings that won a search, by arm; they win over those of the arm.
    """
    settings = profile_settings | {key: entry[key] for key in entry if key in SETTINGS | UNITS}
    grid = entry.get("grid", {})
    seeds = entry.get("draws", entry.get("seeds", 0))
    budgets: list[int | None] = entry.get("budgets", [None])
    if tiny:
        grid = {name: values[:2] for name, values in grid.items()}
        tiny = {name: value for name, value in tiny.items() if name not in grid}
        seeds = min(seeds, 1)
        budgets = budgets[:1]
    trials = []
    for seed, combination, budget in product(range(seeds), list(combinations(grid)), budgets):
        for arm in entry.get("arms", ()) if tiny else arms_at(entry, budget):
            own = settings | configuration()["arms"][arm] | (choices or {}).get(arm, {})
            own |= drawn_settings(entry.get("ranges", {}), seed, own)
            own |= combination | {"seed": seed}
            if budget is not None:
                own["passes"] = budget
            trials.append((arm, make_trial(own, tiny)))
    return trials


def arms_at(entry: dict, budget: int | None) -> list[str]:
    """The arms that run at a budget: all of them, or those whose own list has it."""
    limited = entry.get("only_at", {})
    return [arm for arm in entry.get("arms", ()) if budget in limited.get(arm, [budget])]


def budget_of(piece: Piece, trial: Trial) -> int:
    """The budget in passes that a trial of a piece of kind "frontier" was given.

    It makes as many whole iterations as fit, so that its budget is the next one above.
    """
    assert trial.iterations is not None, "a budget makes a number of iterations"
    planned = trial.iterations * trial.sampling_number * passes_a_draw(trial)
    budgets = piece.options["budgets"]
    return min((one for one in budgets if one >= planned), default=max(budgets))


def searched_settings(piece: Piece, trial: Trial) -> dict[str, Any]:
    """What was drawn for a trial of a piece of kind "search"."""
    return drawn_settings(piece.options["ranges"], trial.seed, asdict(trial))


def make_trial(settings: dict, tiny: dict) -> Trial:
    """The trial of settings that may also give its epsilon and its step size in other units.

    Args:
        settings: of Trial, and "scaled" (a factor of epsilon), "normalised" (True: epsilon is meant
            in units of the pixels' standard deviation), "step" (the step size in epsilons),
            "passes" (a budget, from which the iterations follow), "growth" (the share of the
            iterations over which epsilon grows) and "evaluations" (so many on the way).
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
    passes = settings.pop("passes", None)
    growth = settings.pop("growth", None)
    evaluations = settings.pop("evaluations", None)
    if passes is not None:
        settings["iterations"] = iterations_for(passes, settings)
    if growth is not None:
        settings["epsilon_warm_up"] = round(growth * settings["iterations"])
    if evaluations is not None:
        settings["evaluate_every"] = -(-settings["iterations"] // evaluations)
    if tiny:
        settings = shrink(settings, tiny)
    return Trial(**settings)


def iterations_for(passes: int, settings: dict) -> int:
    """How many whole iterations of a trial with these settings a budget in passes allows.

    Raises: ValueError: not one.
    """
    trial = Trial(**settings)
    an_iteration = trial.sampling_number * passes_a_draw(trial)
    if passes < an_iteration:
        raise ValueError(
            f"passes is {passes}; an iteration alone takes {an_iteration} "
            f"({trial.sampling_number} images, {passes_a_draw(trial)} passes each). Give more."
        )
    return passes // an_iteration


def shrink(settings: dict, tiny: dict) -> dict:
    """The settings with those of ``tiny`` in their place, and fewer examples and restarts."""
    steps = settings.get("steps", 10)
    small = settings | tiny
    if "steps" in tiny and steps <= tiny["steps"]:
        small["steps"] = steps  # an attack that is shorter than the tiny one keeps its length
    small["sampling_number"] = max(2, settings.get("sampling_number", 128) // 8)
    small["final_restarts"] = min(small.get("final_restarts", 0), 2)
    return small

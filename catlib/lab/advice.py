"""What the study's comparison of cheap attacks advises somebody who has little compute.

The sentences follow from the same estimates and rules as the page of claims, whatever they are.
"""

from dataclasses import dataclass

import pandas as pd

from .claims import levels_of
from .compare import (
    Estimate,
    Overall,
    did_not_learn,
    difference,
    ends,
    faster_overall,
    final_metric,
    overall,
)
from .study.plan import Piece

MARGIN = 0.02  # robust accuracy that one may give up for speed, as for "competitive" in claims.toml
ON_TOP = "CAT + "  # an arm of this name is another arm with CAT's draws


@dataclass(frozen=True)
class Rival:
    """A cheap attack with uniform draws beside AT."""

    arm: str
    passes: Overall  # AT / arm, over the levels of robust accuracy that every run of both reached
    gap: Estimate  # robust accuracy at the end, that of the arm less that of AT
    failed: int  # runs that did not learn

    @property
    def is_cheaper(self) -> bool:
        """Whether it is shown to need fewer passes than AT, with no run that did not learn."""
        return not self.failed and self.passes.ratio.side(1) == "above"

    @property
    def is_lead(self) -> bool:
        """Whether it looks cheaper than AT on all seeds, which are too few to show it."""
        return not self.failed and self.passes.ratio.is_lead(1)

    @property
    def keeps_up(self) -> bool:
        """Whether the whole interval of its end lies above AT's less the margin."""
        return self.gap.low >= -MARGIN


def rivals(records: pd.DataFrame, piece: Piece, baseline: str = "AT") -> list[Rival]:
    """Every arm that attacks more cheaply than the baseline and draws as it does."""
    last = ends(records)
    metric = final_metric(last)
    failed = did_not_learn(last)
    found = []
    for arm in dict.fromkeys(records.arm):
        if arm == baseline or arm.startswith("CAT"):
            continue
        gap = difference(last.loc[arm, metric], last.loc[baseline, metric])
        passes = overall(records, levels_of(piece), cost="passes", baseline=baseline, arm=arm)
        found.append(Rival(arm, passes, gap, int(failed[arm])))
    return found


def advice(records: pd.DataFrame, piece: Piece) -> list[str]:
    """Sentences, the most useful first: which attack to begin with, its price, and CAT on top."""
    found = rivals(records, piece)
    best = best_of(found)
    sentences = [_begin_with(best)]
    for one in found:
        if one.failed:
            sentences.append(f"Of {one.arm}, {one.failed} runs did not learn: stay away from it.")
        elif (one.is_cheaper or one.is_lead) and one is not best:
            sentences.append(f"{_cheaper(one)}, and {_at_the_end(one)}.")
    for arm in dict.fromkeys(records.arm):
        if arm.startswith(ON_TOP):
            sentences.append(_on_top(records, piece, arm.removeprefix(ON_TOP), arm))
    sentences.append(_on_top(records, piece, "AT", "CAT"))
    return sentences


def best_of(found: list[Rival]) -> Rival | None:
    """The one that needs the fewest passes, of those that are cheaper than AT and keep up."""
    good = [one for one in found if one.is_cheaper and one.keeps_up]
    return max(good, key=lambda one: one.passes.ratio.value, default=None)


def _begin_with(best: Rival | None) -> str:
    margin = f"{100 * MARGIN:g} points of robust accuracy"
    if best is None:
        return (
            "No cheap attack is shown both to need fewer passes than AT and to lose at most "
            f"{margin} at the end."
        )
    return (
        f"Begin with {best.arm}: it is shown to be cheaper than AT, and to lose at most {margin}. "
        f"{_cheaper(best)}, and {_at_the_end(best)}."
    )


def _cheaper(one: Rival) -> str:
    levels = ", ".join(f"{100 * level:g}" for level in one.passes.levels)
    lead = f" (a lead, of {one.passes.ratio.pairs} seeds)" if one.is_lead else ""
    return (
        f"{one.arm} reaches {levels} % robust accuracy with fewer passes than AT, by a factor of "
        f"{one.passes.ratio.as_ratio()}{lead}"
    )


def _at_the_end(one: Rival) -> str:
    return f"at the end it differs from AT by {one.gap.as_points()} points"


def _on_top(records: pd.DataFrame, piece: Piece, baseline: str, arm: str) -> str:
    """What CAT's draws add to another way of training, in passes to the same robust accuracy."""
    one = overall(records, levels_of(piece), cost="passes", baseline=baseline, arm=arm)
    return f"CAT's draws on top of {baseline} save passes: {faster_overall(one, arm, 'passes')}."

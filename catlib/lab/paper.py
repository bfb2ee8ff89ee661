"""What the paper prints: Tables 1 and 2, and the unit of time that their numbers share.

Fan, Liu and Chen, *Case-aware adversarial training*, arXiv 2204.09398.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

# Tables 1 and 2: percent reached -> what AT and CAT took; MNIST in seconds, CIFAR-10 in hours
PAPER = {
    "mnist": {
        "accuracy": {
            80: (166.4, 141.9),
            85: (192.0, 167.7),
            90: (243.2, 219.3),
            95: (396.8, 296.7),
        },
        "robust_accuracy": {
            60: (179.2, 167.7),
            70: (230.4, 219.3),
            80: (371.2, 335.5),
            90: (1075.2, 941.8),
        },
    },
    "cifar10": {
        "accuracy": {
            65: (1.33, 0.57),
            70: (3.51, 0.76),
            75: (7.31, 1.52),
            80: (11.87, 4.66),
        },
        "robust_accuracy": {
            50: (0.85, 0.67),
            55: (2.09, 1.33),
            60: (7.50, 2.37),
        },
    },
}
UNITS = {"mnist": "s", "cifar10": "h"}  # of those times
PRINTED_TO = {"mnist": 0.1, "cifar10": 0.01}  # the last digit of those times
EVALUATED_EVERY = {"mnist": 1, "cifar10": 10}  # iterations from one evaluation to the next (3.2)
TRAINING_IMAGES = {"mnist": 60_000, "cifar10": 50_000}
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}  # as the paper writes them


def paper_table(dataset: str, metric: str = "robust_accuracy") -> pd.DataFrame:
    """Table 1 (mnist) or 2 (cifar10), with each time also as a multiple of its column's tick."""
    table = pd.DataFrame(PAPER[dataset][metric], index=["AT", "CAT"]).T.rename_axis("level %")
    for column, arm in enumerate(("AT", "CAT")):
        times = [pair[column] for part in PAPER[dataset].values() for pair in part.values()]
        tick = common_tick(times, PRINTED_TO[dataset])
        table[f"{arm} ticks"] = (table[arm] / tick).round().astype(int)
    table["AT/CAT"] = (table.AT / table.CAT).round(2)
    return table


def common_tick(times: Sequence[float], printed_to: float) -> float:
    """The largest unit of which every printed time is a whole multiple, up to its rounding.

    A unit of a few roundings would fit any times, so none below eight roundings is looked for.

    Args:
        times: as printed.
        printed_to: one unit of their last digit.

    Returns: the unit; NaN where there is none.
    """
    ordered = np.sort(np.asarray(times, float))
    rounding = printed_to / 2 * (1 + 1e-6)
    smallest = ordered[0]
    most = int(smallest / (8 * printed_to))
    for multiple in range(1, most + 1):
        # The units of which the smallest time is this multiple. Every other time narrows them.
        low = (smallest - rounding) / multiple
        high = (smallest + rounding) / multiple
        for time in ordered:
            whole = round(time / ((low + high) / 2))
            low = max(low, (time - rounding) / whole)
            high = min(high, (time + rounding) / whole)
        if low <= high:
            return float((low + high) / 2)
    return math.nan

"""What this machine has of what the course needs, and what to do about the rest: `catlib check`."""

import sys
from importlib.metadata import PackageNotFoundError, requires, version

import pandas as pd
import torch
from packaging.requirements import Requirement

from ..data import CLASSES, is_here
from .panel import interactive

INSTALL = "pip install -e '.[notebooks,test]' in the clone, then restart the kernel"
Row = tuple[str, str, str, str]  # what, found, verdict, what to do


def environment_report() -> pd.DataFrame:
    """One row a thing: what was found, whether the course can run with it, and what to do.

    It shows no paths, as it is printed in a notebook that people share.
    """
    rows = [
        ("Python", sys.version.split()[0], "ok", ""),
        *_packages(),
        _device(),
        *(_dataset(name) for name in CLASSES),
        _widgets(),
    ]
    return pd.DataFrame(rows, columns=["what", "found", "verdict", "what to do"]).set_index("what")


def _packages() -> list[Row]:
    """A row for every package that catlib and its notebooks require."""
    try:
        wanted = [Requirement(text) for text in requires("catlib") or []]
    except PackageNotFoundError:
        return [("catlib", "not installed", "WRONG", INSTALL)]
    return [
        (need.name, *_package(need))
        for need in wanted
        if need.marker is None or need.marker.evaluate({"extra": "notebooks"})
    ]


def _package(need: Requirement) -> tuple[str, str, str]:
    try:
        found = version(need.name)
    except PackageNotFoundError:
        return "missing", "WRONG", INSTALL
    if need.specifier.contains(found, prereleases=True):
        return found, "ok", ""
    return found, "WRONG", f"needs {need.specifier}: {INSTALL}"


def _device() -> Row:
    if torch.cuda.is_available():
        return ("device", torch.cuda.get_device_name(), "ok", "")
    advice = "enough for the defaults; for full-size runs a GPU is better"
    return ("device", f"CPU, {torch.get_num_threads()} threads", "ok", advice)


def _dataset(name: str) -> Row:
    if is_here(name):
        return (f"data: {name}", "found", "ok", "")
    advice = (
        f"not needed by default; load_data('{name}') downloads it, "
        f"or set CATLIB_DATA to the folder that has {name}.npz"
    )
    return (f"data: {name}", "not here", "ok", advice)


def _widgets() -> Row:
    if interactive():
        return ("widgets", "cannot be told from here", "ok", "try the slider below")
    advice = "panels run to their end; for live ones open the notebook in JupyterLab"
    return ("widgets", "no front end", "ok", advice)

"""What this machine has of what the course needs, and what to do about the rest: `python -m catlib.lab.environment`."""

import sys
from importlib.metadata import PackageNotFoundError, requires, version

import pandas as pd
import torch
from packaging.requirements import Requirement

from ..data import CLASSES, data_root
from .panel import interactive

INSTALL = "pip install -e '.[notebooks,test]' in the clone, then restart the kernel"


def environment_report() -> pd.DataFrame:
    """One row a thing: what was found, whether the course can run with it, and what to do. Shows no paths."""
    rows = [("Python", sys.version.split()[0], "ok", "")]
    try:
        wanted = [Requirement(text) for text in requires("catlib")]
    except PackageNotFoundError:
        rows, wanted = [*rows, ("catlib", "not installed", "WRONG", INSTALL)], []
    for need in wanted:
        if need.marker is None or need.marker.evaluate({"extra": "notebooks"}):
            rows.append((need.name, *_package(need)))
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    rows.append(
        (
            "device",
            device,
            "ok",
            "" if gpu else "enough for the defaults; for full-size runs a GPU is better",
        )
    )
    for name in CLASSES:
        if name == "digits" or (data_root() / f"{name}.npz").exists():
            rows.append((f"data: {name}", "found", "ok", ""))
        else:
            rows.append(
                (
                    f"data: {name}",
                    "not here",
                    "ok",
                    f"not needed by default; load_data('{name}') downloads it, "
                    f"or set CATLIB_DATA to the folder that has {name}.npz",
                )
            )
    rows.append(
        ("widgets", "cannot be told from here", "ok", "try the slider below")
        if interactive()
        else (
            "widgets",
            "no front end",
            "ok",
            "panels run to their end; for live ones open the notebook in JupyterLab",
        )
    )
    return pd.DataFrame(rows, columns=["what", "found", "verdict", "what to do"]).set_index("what")


def _package(need: Requirement) -> tuple[str, str, str]:
    try:
        found = version(need.name)
    except PackageNotFoundError:
        return "missing", "WRONG", INSTALL
    if need.specifier.contains(found, prereleases=True):
        return found, "ok", ""
    return found, "WRONG", f"needs {need.specifier}: {INSTALL}"


if __name__ == "__main__":
    report = environment_report()
    print(report.to_string())
    sys.exit(int((report.verdict != "ok").any()))

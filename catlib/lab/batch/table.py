"""One table of all runs below a folder, joined with their parameters."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from ...training import Record
from ..runs import REPLACED, settings_beside


def table_of(root: Path) -> pd.DataFrame:
    """A row a run: its name, its status, its parameters, and what came out.

    Of a trial that is its last record and what was measured at its end; of a notebook the rows of
    its ``table.csv``, if it wrote one. A run.json that cannot be read is a row that says so. A
    parameter with the name of a result, such as loss, is called setting_loss; a result called
    "run" or "status" is called result_run or result_status.

    Returns: the table, whose ``attrs["parameters"]`` are the names of the parameters.
    """
    tables = []
    parameters: dict[str, None] = {}
    for path in sorted([*root.glob("*/run.json"), *root.glob("*/notebook.json")]):
        if REPLACED in path.parent.name:
            continue
        try:
            rows, names = rows_of(path)
            tables.append(rows)
            parameters |= dict.fromkeys(names)
        except Exception as error:  # a foreign or damaged file must not hide the other runs
            bad = {"run": path.parent.name, "status": "unreadable", "error": str(error)}
            tables.append(pd.DataFrame([bad]))
    for path in sorted(root.glob("*/error.txt")):
        if not (path.with_name("run.json").exists() or path.with_name("notebook.json").exists()):
            tables.append(pd.DataFrame([failed(path.parent)]))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    table.attrs["parameters"] = list(parameters)
    return table


def parameters_in(info: dict) -> dict[str, Any]:
    """The parameters of a run, from its run.json or notebook.json."""
    return info["trial"] if "trial" in info else info["parameters"]


def rows_of(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a run, and the names that its parameters have in them."""
    folder = path.parent
    info = json.loads(path.read_text())
    parameters = parameters_in(info)
    if (folder / "error.txt").exists():
        measured = [field.name for field in fields(Record)] if "trial" in info else []
        settings = settings_beside(measured, parameters)
        return pd.DataFrame([failed(folder) | settings]), list(settings)
    results = trial_results(folder, info) if "trial" in info else notebook_results(folder, info)
    results = results.rename(columns={name: f"result_{name}" for name in ("run", "status")})
    settings = settings_beside(results, parameters)
    known = {"run": folder.name, "status": info["status"]} | settings
    left = pd.DataFrame([known.values()] * len(results), columns=list(known), index=results.index)
    return left.join(results), list(settings)


def failed(folder: Path) -> dict[str, str]:
    error = (folder / "error.txt").read_text(encoding="utf-8").split("\n\n")[0]
    return {"run": folder.name, "status": "failed", "error": " ".join(error.split())}


def trial_results(folder: Path, info: dict) -> pd.DataFrame:
    records = folder / "records.csv"
    last = pd.read_csv(records).tail(1) if records.exists() else pd.DataFrame(index=[0])
    final = {f"final_{name}": value for name, value in info.get("final", {}).items()}
    return last.drop(columns="iteration", errors="ignore").assign(**final).reset_index(drop=True)


def notebook_results(folder: Path, info: dict) -> pd.DataFrame:
    table = folder / "table.csv"
    rows = pd.read_csv(table, comment="#") if table.exists() else pd.DataFrame(index=[0])
    return rows.assign(seconds=info["seconds"])


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """A table of :func:`table_of` without the parameters that are the same in every run, and
    without the results that no run has.
    """
    if len(table) < 2:
        return table
    # pandas keeps a missing value missing as a text, and counts it only if it is told to
    same = [name for name in table if table[name].astype(str).nunique(dropna=False) == 1]
    given_alike = [name for name in same if name in table.attrs["parameters"]]
    empty = [name for name in same if table[name].isna().all()]
    return table.drop(columns={*given_alike, *empty})

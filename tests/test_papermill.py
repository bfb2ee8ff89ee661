"""The notebooks under plain papermill, as docs/papermill.md shows it, and what it is given."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from catlib.lab.batch.notebooks import course_notebooks, parameters_of
from catlib.lab.batch.parameters import check_parameters
from catlib.lab.paths import ROOT

pytestmark = pytest.mark.no_device("its notebooks are those that nbval runs")

DECLARED = (
    "from typing import Optional\n\n"
    "alpha: float = 0.5  # memory\n"
    "seeds: list[int] = [0, 1]  # of the runs\n"
    "epsilon: Optional[float] = None  # radius\n"
    "data: str = 'digits'  # name"
)
DEFAULTS = {"alpha": 0.5, "seeds": [0, 1], "epsilon": None, "data": "digits"}


def namespace(cells=(), **values):
    return DEFAULTS | values | {"In": ["", DECLARED, *cells]}


@pytest.mark.parametrize(
    "values", [{}, {"alpha": 1}, {"epsilon": 0.1}, {"seeds": []}, {"data": "mnist"}, {"other": "x"}]
)
def test_values_of_the_right_type_pass(values):
    check_parameters(namespace(**values))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"seeds": "[0]"},
            r"seeds is '\[0\]', of type str; it must be list of int.*-y 'seeds: \[0\]'",
        ),
        ({"epsilon": "8/255"}, "epsilon is '8/255'.*must be float or None.*-y 'epsilon: 0.0313"),
        ({"alpha": "high"}, "alpha is 'high'.*must be float.*Give alpha another value"),
        ({"alpha": True}, "alpha is True, of type bool; it must be float"),
        ({"seeds": [0.5]}, "it must be list of int"),
        ({"data": 5}, "data is 5, of type int; it must be str"),
    ],
)
def test_values_of_another_type_are_refused_with_what_to_write(values, says):
    with pytest.raises(TypeError, match=says):
        check_parameters(namespace(**values))


def test_a_misspelt_name_is_refused():
    check_parameters(namespace(["# Parameters\nalpha = 0.9\n"]))
    check_parameters(namespace(["# a cell of one's own\nalhpa = 0.9\n", "not: python:"]))
    with pytest.raises(ValueError, match=r"no parameter 'alhpa' \(did you mean 'alpha'\?\)"):
        check_parameters(namespace(["# Parameters\nalhpa = 0.9\n"]))


def test_a_notebook_that_declares_nothing_is_left_alone():
    check_parameters({"alpha": "x"})
    check_parameters({"alpha": "x", "In": ["", "alpha = 'x'", "# Parameters\nbeta = 1\n"]})


def plain_papermill(arguments, folder):
    """Run papermill in a process, with no word of catlib's in its environment."""
    hidden = ("CATLIB_HEADLESS", "CATLIB_LIVE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    command = [sys.executable, "-m", "papermill", *arguments, "--no-progress-bar"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


# other than what the lessons declare, and less to do
CHANGED = {
    "alpha": 0.9,
    "count": 50,
    "examples": 300,
    "images_compared": 40,
    "iterations": 20,
    "live_iterations": 10,
    "long_iterations": 20,
    "passes": 4000,
    "real_datasets": [],
    "sampling_numbers": [16, 64],
    "seeds": [0],
    "stale_iterations": 60,
    "strong_iterations": 40,
    "toy_iterations": 40,
    "watched_iterations": 40,
}


@pytest.mark.slow
@pytest.mark.parametrize("path", course_notebooks(), ids=lambda path: path.stem)
def test_plain_papermill_leaves_pictures_and_no_dead_widgets(path, tmp_path):
    given = {name: CHANGED[name] for name in CHANGED if name in parameters_of(path)}
    done = plain_papermill([str(path), "out.ipynb", "-y", json.dumps(given)], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    executed = nbformat.read(tmp_path / "out.ipynb", 4)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert not executed.metadata.get("widgets")
    panels = [cell for cell in executed.cells if re.search(r"anel\.display\(\)", cell.source)]
    for cell in panels:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source


# ------------------------------------------------------------------ docs/papermill.md


def commands() -> list[str]:
    """The papermill commands of docs/papermill.md."""
    text = (ROOT / "docs" / "papermill.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if re.match("papermill .*notebooks/", line)]


def arguments_of(command: str, folder: Path) -> list[str]:
    """What the command gives to papermill, with the output in another folder."""
    words = shlex.split(command)[1:]
    return [str(folder / word) if word == "out.ipynb" else word for word in words]


def test_the_document_names_parameters_that_there_are():
    assert len(commands()) >= 4
    for command in commands():
        notebook = re.search(r"notebooks/\S+", command)[0]
        names = re.findall(r"-p (\w+)|-y '(\w+):", command)
        assert {a or b for a, b in names} <= set(parameters_of(ROOT / notebook)), command


def test_the_document_lists_the_parameters_of_a_notebook(tmp_path):
    [command] = [command for command in commands() if "--help-notebook" in command]
    done = plain_papermill(arguments_of(command, tmp_path), ROOT)
    assert "epsilon: Optional[float] (default None)" in done.stdout
    assert "memory of Eq. 4" in done.stdout and "Unknown type" not in done.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_takes_the_environment_it_is_given(tmp_path):
    command = ["make", "-n", "run", f"VENV={tmp_path}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path}/bin/python -m catlib.lab run" in said
    assert ".venv" not in said.replace(str(tmp_path), "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (["-p", "epsilon", "8/255"], "TypeError: epsilon is '8/255'"),
        (["-p", "epsilom", "0.1"], "ValueError: The notebook has no parameter 'epsilom'"),
    ],
)
def test_a_mistake_ends_the_run_at_the_set_up_cell(mistake, says, tmp_path):
    notebook = str(ROOT / "notebooks" / "00_start_here.ipynb")
    done = plain_papermill([notebook, "out.ipynb", *mistake], tmp_path)
    assert done.returncode != 0 and says in done.stderr

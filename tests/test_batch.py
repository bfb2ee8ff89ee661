"""How notebooks are executed: what is refused, what reaches the kernel, what is left behind."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import psutil
import pytest
from nbclient.exceptions import CellTimeoutError

from catlib.lab import __main__ as command_line
from catlib.lab import batch
from catlib.lab.batch import notebooks, series

pytestmark = pytest.mark.no_device("its notebooks train nothing")

CODE = (
    "import json, os\n"
    "seen = {'alpha': alpha, 'numbers': numbers, 'cwd': os.getcwd()}\n"
    "seen |= {'data': os.environ['CATLIB_DATA'], 'headless': os.environ['CATLIB_HEADLESS']}\n"
    "json.dump(seen, open(output, 'w'))"
)


def notebook(
    path: Path, *codes: str, parameters: str | None = "alpha = 0.5\nnumbers = [1]\noutput = ''"
) -> Path:
    node = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
    )
    node.cells.append(
        nbformat.v4.new_markdown_cell(
            "# A title\n\nWhat it is about, with $w_t = \\alpha w_{t-1}$."
        )
    )
    if parameters is not None:
        node.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    node.cells += [nbformat.v4.new_code_cell(code) for code in codes]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(node, path)
    return path


def test_parameters_reach_the_kernel_whatever_folder_it_was_started_from(tmp_path, monkeypatch):
    source, output = notebook(tmp_path / "book" / "a.ipynb", CODE), tmp_path / "seen.json"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    before = dict(os.environ)
    executed = batch.execute(
        source,
        tmp_path / "new" / "a.ipynb",
        {"alpha": np.float32(0.75), "numbers": (1, 2), "output": str(output)},
    )
    seen = json.loads(output.read_text())
    assert seen["alpha"] == 0.75 and seen["numbers"] == [1, 2] and seen["headless"] == "1"
    assert Path(seen["cwd"]) == source.parent and Path(seen["data"]).is_absolute()
    assert "widgets" not in executed.metadata and dict(os.environ) == before
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.ipynb"]


@pytest.mark.parametrize(
    ("parameters", "given", "error", "says"),
    [
        (
            "alpha = 0.5",
            {"alhpa": 0.9},
            ValueError,
            r"no parameter 'alhpa' \(did you mean 'alpha'\?\); it has: alpha",
        ),
        (None, {"alpha": 0.9}, ValueError, "no cell with the tag 'parameters'"),
        (
            "alpha = 0.5\nbeta = 2 * alpha",
            {"alpha": 0.9},
            ValueError,
            "not a literal: beta = 2 \\* alpha",
        ),
        ("alpha = 0.5", {"alpha": Path("x")}, TypeError, "alpha.*no notebook can be given"),
        (
            "alpha = 0.5",
            {"alpha": np.ones(2)},
            TypeError,
            "allowed are None, bool, int, float, str",
        ),
    ],
)
def test_what_papermill_would_swallow_is_refused_before_a_kernel_starts(
    tmp_path, monkeypatch, parameters, given, error, says
):
    monkeypatch.setattr(
        papermill, "execute_notebook", lambda *_, **__: pytest.fail("the notebook was executed")
    )
    source = notebook(tmp_path / "a.ipynb", "1", parameters=parameters)
    with pytest.raises(error, match=says):
        batch.execute(source, tmp_path / "out" / "a.ipynb", given)
    assert not (tmp_path / "out").exists()


def test_a_failed_notebook_is_left_beside_and_the_old_output_stays(tmp_path):
    source, output = notebook(tmp_path / "a.ipynb", "1 / 0"), tmp_path / "out" / "a.ipynb"
    output.parent.mkdir()
    output.write_text("the old one")
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        batch.execute(source, output)
    assert output.read_text() == "the old one"
    assert {p.name for p in output.parent.iterdir()} == {"a.ipynb", "a.failed.ipynb"}


def test_a_cell_has_a_time_limit(tmp_path):
    source = notebook(tmp_path / "a.ipynb", "import time; time.sleep(60)")
    with pytest.raises(CellTimeoutError):
        batch.execute(source, tmp_path / "out.ipynb", timeout=1)


def test_a_series_goes_on_after_a_failure_and_says_where(tmp_path, monkeypatch, capsys):
    good = notebook(tmp_path / "00_good.ipynb", "print(dataset)", parameters="dataset = 'digits'")
    bad = notebook(tmp_path / "01_bad.ipynb", "undefined", parameters="seed = 0")
    monkeypatch.setattr(series, "course_notebooks", lambda: [good, bad])
    assert command_line.execute_course("digits", tmp_path / "runs") == ["01_bad"]
    printed, folder = capsys.readouterr().out, tmp_path / "runs" / "digits"
    assert "NameError: name 'undefined' is not defined" in printed and "00_good" in printed
    assert nbformat.read(folder / "00_good.ipynb", 4).cells[-1].outputs[0].text == "digits\n"
    assert (folder / "index.html").exists() and not (folder / "01_bad.html").exists()


def test_notebooks_of_a_series_run_side_by_side_with_one_thread_each(tmp_path, monkeypatch):
    meeting = (
        "import os, time\n"
        "from pathlib import Path\n"
        "Path(mine).touch()\n"
        "deadline = time.monotonic() + 60\n"
        "while not Path(other).exists() and time.monotonic() < deadline:\n"
        "    time.sleep(0.05)\n"
        "print(Path(other).exists(), os.environ['OMP_NUM_THREADS'])"
    )
    here, there = tmp_path / "a", tmp_path / "b"
    pair = [
        notebook(
            tmp_path / f"0{n}.ipynb",
            meeting,
            parameters=f"mine = {str(mine)!r}\nother = {str(other)!r}",
        )
        for n, (mine, other) in enumerate([(here, there), (there, here)])
    ]
    monkeypatch.setattr(series, "course_notebooks", lambda: pair)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ran = batch.run_series("digits", tmp_path / "runs", workers=2)
    assert not ran.failed
    for path in ran.executed:
        assert nbformat.read(path, 4).cells[-1].outputs[0].text == "True 1\n"


def test_ctrl_c_in_a_series_ends_the_kernels(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    code = (
        "import os, time\n"
        "from pathlib import Path\n"
        "Path(where + '.new').write_text(str(os.getpid()))\n"
        "os.rename(where + '.new', where)\n"
        "time.sleep(600)"
    )
    endless = notebook(tmp_path / "00.ipynb", code, parameters=f"where = {str(pid)!r}")
    monkeypatch.setattr(series, "course_notebooks", lambda: [endless])

    def interrupt():
        while not pid.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        batch.run_series("digits", tmp_path / "runs", workers=1)
    assert not psutil.pid_exists(int(pid.read_text()))


def test_refreshed_notebooks_carry_no_trace_of_the_machine(tmp_path, monkeypatch):
    source = notebook(tmp_path / "00_a.ipynb", "print(seed)", parameters="seed = 3")
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    batch.refresh([source])
    node, text = nbformat.read(source, 4), source.read_text()
    assert node.cells[-1].outputs[0].text == "3\n" and node.cells[-1].execution_count
    assert "papermill" not in text and str(tmp_path) not in text
    assert node.cells[1].metadata.tags == ["parameters"]

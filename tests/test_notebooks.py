"""What holds for every notebook of the course as it is committed, and for the exercises.

nbval runs the notebooks.
"""

import ast
import json
import re
import subprocess
import sys
from collections import Counter

import nbformat
import papermill
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from catlib.lab import exercises, lessons, paths
from catlib.lab.__main__ import main
from catlib.lab.batch import parameters

pytestmark = pytest.mark.no_device("it reads the notebooks, which nbval runs")

LESSONS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted(paths.SOLUTIONS.glob("*.ipynb"))
SECTIONS = ["Map", "Check yourself", "Recap", "Exercises", "References"]
# a folder of somebody's machine, on any of the usual systems
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|Users|root|tmp|work|opt|usr|mnt|var|private|srv|content)/\w"
    r"|\b[A-Z]:\\+\w"
)

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
each_notebook = pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def headings(notebook, level):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(rf"^#{{{level}}} (.+)$", text, re.M)


def test_every_lesson_has_its_solutions():
    assert [path.name[:2] for path in LESSONS] == [path.name[:2] for path in SOLUTIONS]
    assert len(LESSONS) == len({path.name[:2] for path in LESSONS}) > 0


@each_notebook
def test_the_file_is_a_clean_valid_notebook(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5), (
        "cells need ids: save it in format 4.5"
    )
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"widgets", "papermill"} & set(notebook.metadata), (
        "widget state or papermill's records were saved"
    )
    assert not any("papermill" in cell.metadata for cell in notebook.cells)
    assert path.stat().st_size < 300_000


@each_notebook
def test_it_was_run_once_from_top_to_bottom_without_an_error(path):
    cells = [cell for cell in code_cells(nbformat.read(path, 4)) if cell.source.strip()]
    counts = [cell.execution_count for cell in cells]
    # a run that was given parameters begins at 2, when the cell that held them is gone
    assert counts in [list(range(first, first + len(cells))) for first in (1, 2)], (
        "restart the kernel, run all cells, save"
    )
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [
        output.text
        for output in outputs
        if output.output_type == "stream" and output.name == "stderr"
    ]


@each_notebook
def test_it_names_no_folder_of_the_machine_it_ran_on(path):
    notebook = nbformat.read(path, 4)
    shown = [notebook.metadata] + [cell.metadata for cell in notebook.cells]
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    shown += [
        data
        for output in outputs
        for kind, data in output.get("data", {}).items()
        if not kind.startswith("image/")
    ]
    shown += [output.get("text", "") for output in outputs]
    sources = [cell.source for cell in notebook.cells]
    found = [
        match.group()
        for part in shown + sources
        for match in [MACHINE_PATH.search(json.dumps(part))]
        if match
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("/home/ann/catlib", True),
        ("see /tmp/x", True),
        ("C:\\Users\\ann", True),
        ("https://a.org/home/x", False),
        ("8/255", False),
        ("runs/digits", False),
        ("and/or /usr", False),
    ],
)
def test_the_search_for_machine_paths_finds_them(text, bad):
    assert bool(MACHINE_PATH.search(json.dumps(text))) == bad


@each_lesson
def test_cells_are_short_and_keep_clear_of_what_hangs_without_a_browser(path):
    for cell in code_cells(nbformat.read(path, 4)):
        assert len(cell.source.splitlines()) <= 30, cell.source
        assert not re.search(r"\binteract(_manual)?\(|\bOutput\(\)", cell.source), cell.source


@each_lesson
def test_the_order_is_that_of_every_lesson(path):
    notebook = nbformat.read(path, 4)
    assert notebook.cells[0].source.startswith(f"# {path.name[:2]} · ")
    sections = headings(notebook, 2)
    assert [name for name in sections if name in SECTIONS] == SECTIONS
    assert sections[0] == "Map", "the map comes before the story"
    assert sections[-4:] == SECTIONS[1:], "the story ends before 'Check yourself'"
    kinds = [
        "parameters" if "parameters" in cell.metadata.get("tags", []) else cell.cell_type
        for cell in notebook.cells
    ]
    assert kinds.count("parameters") == 1
    first = kinds.index("parameters")
    assert "code" not in kinds[:first] and kinds[first + 1] == "code"
    assert "import" in notebook.cells[first + 1].source, "the set-up cell follows the parameters"


@each_lesson
def test_parameters_are_names_with_types_literals_and_meanings(path):
    """What `papermill --help-notebook` lists."""
    cells = nbformat.read(path, 4).cells
    cell = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    declared = parameters.declared_in(cell.source)
    listed = papermill.inspect_notebook(str(path))
    assert declared and list(declared) == list(listed)
    for name, parameter in declared.items():
        # papermill writes what it is given as a literal, and turns a tuple into a string
        assert not isinstance(parameter.default, tuple)
        assert parameter.kinds, f"{name}: its type is not one that can be checked"
        parameter.checked(parameter.default)
        assert listed[name]["inferred_type_name"] != "None", f"papermill sees no type of {name}"
        assert listed[name]["help"], f"what {name} means is said nowhere"


@each_lesson
def test_the_set_up_cell_checks_the_parameters_before_it_uses_them(path):
    cells = nbformat.read(path, 4).cells
    kinds = [cell.metadata.get("tags", []) for cell in cells]
    setup = cells[next(i for i, tags in enumerate(kinds) if "parameters" in tags) + 1]
    before = setup.source.partition("check_parameters(globals())\n")[0]
    assert before != setup.source
    allowed = (ast.Import, ast.ImportFrom, ast.Try)
    assert all(isinstance(statement, allowed) for statement in ast.parse(before).body)


@each_lesson
def test_every_picture_has_a_caption(path):
    cells = nbformat.read(path, 4).cells
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            assert following is not None and following.source.startswith("*Figure"), cell.source


@each_lesson
def test_at_least_three_cells_are_compared_by_nbval(path):
    checked = [
        cell
        for cell in code_cells(nbformat.read(path, 4))
        if cell.source.startswith("# NBVAL_CHECK_OUTPUT\n")
    ]
    assert len([cell for cell in checked if cell.outputs]) >= 3
    for output in (output for cell in checked for output in cell.outputs):
        assert not re.search(r"0x[0-9a-f]{6,}", json.dumps(output)), (
            "a memory address differs in every run"
        )


@each_notebook
def test_links_lead_to_files(path):
    text = "\n".join(
        cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"
    )
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert links
    for link in links:
        assert path.parent.joinpath(link).exists(), link


@each_lesson
def test_it_ends_with_exercises_that_are_in_step_with_their_solutions(path):
    lesson = nbformat.read(path, 4)
    solutions = nbformat.read(paths.SOLUTIONS / f"{path.name[:2]}_solutions.ipynb", 4)
    assert lessons.updated(lesson, solutions) == lesson, (
        "run python -m catlib.lab exercises, then the notebook"
    )


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_are_strict_and_every_exercise_is_checked(path):
    notebook = nbformat.read(path, 4)
    assert any("exercises.STRICT = True" in cell.source for cell in code_cells(notebook))
    starts = [i for i, cell in enumerate(notebook.cells) if cell.source.startswith("### Exercise")]
    assert len(starts) >= 4
    for begin, end in zip(starts, [*starts[1:], len(notebook.cells)], strict=True):
        sources = [
            cell.source for cell in notebook.cells[begin + 1 : end] if cell.cell_type == "code"
        ]
        assert any("### BEGIN SOLUTION" in source for source in sources), notebook.cells[
            begin
        ].source
        assert any(re.search(r"^\s*check\(", source, re.M) for source in sources), notebook.cells[
            begin
        ].source


def test_the_imports_of_the_lessons_do_not_load_the_notebook_stack():
    setups = set()
    for path in LESSONS:
        for cell in code_cells(nbformat.read(path, 4)):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    setups.add(ast.unparse(node))
    assert "from catlib.lab.exercises import check" in setups
    # jsonschema alone, which nbformat loads, takes two seconds of every kernel's start
    script = [*sorted(setups), "import sys", "print({'nbformat', 'jsonschema'} & set(sys.modules))"]
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"


# ----- the exercises' own machinery


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("answer", "right", "on", "verdict"),
    [
        ((None, None), (1, 2), None, "not yet"),
        ((1, None), (1, 2), None, "✗"),
        (5, 5, None, "✓"),
        (4, 5, None, "✗"),
        (..., 5, None, "not yet"),
        (None, 5, None, "not yet"),
        (0.5, lambda a: a < 1, None, "✓"),
        (2, lambda a: a < 1, None, "✗"),
        ("text", lambda a: a < 1, None, "✗"),
        (double, torch.tensor([2.0, 4.0]), (torch.tensor([1.0, 2.0]),), "✓"),
        (double, 5, (2,), "✗"),
        (lambda x: ..., 5, (2,), "not yet"),
        (lambda x: x / 0, 5, (2,), "✗"),
        ([1, 2], [1, 2], None, "✓"),
        ([1], [1, 2], None, "✗"),
        ("a", "a", None, "✓"),
        ("a", "b", None, "✗"),
        (1 + 1e-4, 1, None, "✗"),
        (float("nan"), 1, None, "✗"),
    ],
)
def test_a_check_says_what_holds_and_never_raises(answer, right, on, verdict, capsys, monkeypatch):
    monkeypatch.setattr(exercises, "STRICT", False)
    exercises.check(answer, right, "because", on=on)
    said = capsys.readouterr().out
    assert said.startswith(verdict)
    assert ("because" in said) == (verdict != "not yet")


def test_an_answer_may_change_what_it_is_given_in_place(capsys):
    given = torch.tensor([1.0, 2.0])
    exercises.check(lambda x: x.mul_(2), lambda found: found.tolist() == [2, 4], "2x", on=(given,))
    assert capsys.readouterr().out == "✓ 2x\n"
    assert given.tolist() == [1, 2]


@pytest.mark.parametrize("answer", [4, None, ...])
def test_a_strict_check_raises_unless_the_answer_is_right(answer, monkeypatch):
    monkeypatch.setattr(exercises, "STRICT", True)
    exercises.check(5, 5, "because")
    with pytest.raises(AssertionError):
        exercises.check(answer, 5, "because")


@pytest.fixture
def hinted(monkeypatch, capsys):
    """Asks a check with two hints; returns what it prints."""
    monkeypatch.setattr(exercises, "STRICT", False)
    monkeypatch.setattr(exercises, "_TRIES", Counter())

    def ask(answer, hint="look at b", stronger="add b", **options):
        exercises.check(answer, 5, "because", hint=hint, stronger=stronger, **options)
        return capsys.readouterr().out

    return ask


def test_a_wrong_answer_gets_a_hint_then_a_stronger_one_then_the_answer(hinted):
    first, second, third, fourth = hinted(4), hinted(3), hinted(2), hinted(1)
    assert "look at b" in first and "add b" not in first and "because" not in first
    assert "add b" in second and "because" not in second
    assert "because" in third and "because" in fourth
    assert all(said.startswith("✗") for said in (first, second, third, fourth))


def test_blank_answers_are_no_tries_and_a_right_one_begins_anew(hinted):
    assert hinted(None) == hinted(...) == "not yet: fill in the cell above\n"
    assert "look at b" in hinted(4)
    assert hinted(5) == "✓ because\n"
    assert "look at b" in hinted(4), "the tries begin anew"


def test_the_tries_of_two_checks_are_counted_apart(hinted):
    assert "look at b" in hinted(4)
    assert "look at c" in hinted(4, hint="look at c")
    assert "add b" in hinted(4)


@pytest.mark.parametrize("answer", ["?", " ? ", (1, "?"), [1, "?"]])
def test_a_question_mark_is_told_the_answer_and_is_no_try(hinted, answer):
    assert hinted(answer) == "The answer: because\n"
    assert hinted(answer, on=(1,)) == "The answer: because\n", "it is not called"
    assert hinted(double, on=(answer,)) == "The answer: because\n", "the check calls the answer"
    assert hinted(lambda x: answer, on=(1,)) == "The answer: because\n", "the function's blank"
    assert "look at b" in hinted(4)


def test_a_hint_that_is_missing_is_skipped(hinted):
    assert "because" in hinted(4, hint="", stronger="")
    assert "add b" in hinted(4, hint="") and "because" in hinted(4, hint="")


def test_what_an_answer_raised_is_said_beside_the_hint(hinted):
    said = hinted(lambda x: x / 0, on=(1,))
    assert "ZeroDivisionError" in said and "look at b" in said and "because" not in said


def test_a_strict_check_raises_for_a_question_mark(hinted, monkeypatch):
    monkeypatch.setattr(exercises, "STRICT", True)
    with pytest.raises(AssertionError, match="because"):
        hinted("?")


def solved(code="f = ...\n### BEGIN SOLUTION\nf = 1\n### END SOLUTION\nprint(f)"):
    return new_notebook(
        cells=[
            new_markdown_cell("# title"),
            new_code_cell("setup"),
            new_markdown_cell("### Exercise 1 · one"),
            new_code_cell(code),
            new_code_cell("check(f, 1, 'one')"),
        ]
    )


def lesson():
    return new_notebook(
        cells=[
            new_markdown_cell("# 01"),
            new_markdown_cell("## Exercises\nsome"),
            new_code_cell("old"),
            new_markdown_cell("## References"),
        ]
    )


def test_students_get_the_exercises_without_the_solutions():
    solution = "    ### BEGIN SOLUTION\n    y = 2 * x\n    ### END SOLUTION\n"
    code = f"def f(x):\n    y = ...\n{solution}    return y"
    cells = lessons.student_cells(solved(code))
    assert [cell.source for cell in cells] == [
        "### Exercise 1 · one",
        "def f(x):\n    y = ...\n    # your code here\n    return y",
        f"{lessons._FOLDED}check(f, 1, 'one')",
    ]
    assert [cell.metadata.get("jupyter") for cell in cells] == [
        None,
        None,
        {"source_hidden": True},
    ], "a check tells the answer"


def test_a_link_of_the_solutions_leads_to_the_same_file_from_a_lesson():
    solutions = solved()
    solutions.cells[2].source += ", see [00](../00_start_here.ipynb#pass)"
    first = lessons.student_cells(solutions)[0]
    assert first.source == "### Exercise 1 · one, see [00](00_start_here.ipynb#pass)"


@pytest.mark.parametrize("code", ["### BEGIN SOLUTION\nf = 1", "f = 1\n### END SOLUTION"])
def test_a_solution_without_both_ends_is_refused_rather_than_given_away(code):
    with pytest.raises(ValueError, match="do not match"):
        lessons.student_cells(solved(code))


def test_an_update_replaces_the_section_and_nothing_else_and_is_stable():
    before = lesson()
    after = lessons.updated(before, solved())
    code = "f = ...\n# your code here\nprint(f)"
    assert [cell.source for cell in after.cells] == [
        "# 01",
        "## Exercises\nsome",
        "### Exercise 1 · one",
        code,
        f"{lessons._FOLDED}check(f, 1, 'one')",
        "## References",
    ]
    assert len(before.cells) == 4, "what was given is left as it was"
    after.cells[3].outputs, after.cells[3].execution_count = (
        [nbformat.v4.new_output("stream", text="Ellipsis")],
        7,
    )
    assert lessons.updated(after, solved()) == after, "outputs stay where the code did"
    assert lessons.updated(after, solved("g = ...\n### BEGIN SOLUTION\n### END SOLUTION")) != after


def test_the_command_says_which_lessons_are_out_of_step_and_mends_them(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    path = tmp_path / "notebooks" / "01_a.ipynb"
    nbformat.write(lesson(), path)
    nbformat.write(solved(), tmp_path / "notebooks" / "solutions" / "01_solutions.ipynb")
    monkeypatch.setattr(lessons, "NOTEBOOKS", path.parent)
    monkeypatch.setattr(lessons, "SOLUTIONS", path.parent / "solutions")
    before = path.read_text()
    assert main(["exercises", "--check"]) == 1 and "01_a.ipynb" in capsys.readouterr().out
    assert path.read_text() == before
    assert main(["exercises"]) == 0
    assert main(["exercises", "--check"]) == 0

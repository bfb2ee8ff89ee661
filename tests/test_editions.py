"""The course for a class: without outputs, as assignments for nbgrader, and as slides."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from catlib.lab import editions, paths
from catlib.lab.batch import course_notebooks

pytestmark = pytest.mark.no_device("it writes notebooks")

LESSONS = course_notebooks()
FIELDS = {"grade", "grade_id", "locked", "schema_version", "solution", "task"}


def test_students_get_every_lesson_without_outputs_and_otherwise_as_it_is(tmp_path):
    editions.write_student(LESSONS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in LESSONS]
    for path in LESSONS:
        before, after = nbformat.read(path, 4), nbformat.read(tmp_path / path.name, 4)
        nbformat.validate(after)
        assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
        code = [cell for cell in after.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)
        assert "### BEGIN SOLUTION" not in (tmp_path / path.name).read_text(encoding="utf-8")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_an_assignment_is_in_the_form_of_nbgrader(lesson, tmp_path):
    editions.write_graded([lesson], tmp_path)
    assignment = nbformat.read(tmp_path / "source" / lesson.stem / lesson.name, 4)
    nbformat.validate(assignment)
    kinds = [cell.metadata.nbgrader for cell in assignment.cells]
    names = [kind.grade_id for kind in kinds]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[\w-]+", name) for name in names)
    for kind in kinds:
        assert set(kind) - {"points"} == FIELDS and kind.schema_version == 3
        assert ("points" in kind) == kind.grade
        assert not (kind.solution and (kind.grade or kind.locked))
    solutions = nbformat.read(paths.SOLUTIONS / f"{lesson.name[:2]}_solutions.ipynb", 4)
    text = "\n".join(cell.source for cell in solutions.cells)
    answers = [cell for cell in assignment.cells if cell.metadata.nbgrader.solution]
    checks = [cell for cell in assignment.cells if cell.metadata.nbgrader.grade]
    assert sum(cell.source.count("### BEGIN SOLUTION") for cell in answers) == text.count(
        "### BEGIN SOLUTION"
    )
    assert len(checks) >= text.count("### Exercise"), "every exercise gives points"
    for cell in checks:
        assert cell.metadata.nbgrader.points > 0 and cell.metadata.nbgrader.locked
        lines = cell.source.splitlines()
        assert (lines[0], lines[-1]) == ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")


def test_a_graded_check_fails_for_a_wrong_answer_and_passes_for_a_right_one():
    cells = [
        new_markdown_cell("# 01: solutions"),
        new_code_cell(
            "from catlib.lab import exercises\nfrom catlib.lab.exercises import check\n"
            "exercises.STRICT = True"
        ),
        new_markdown_cell("### Exercise 1.1 · One"),
        new_code_cell("a = None\n### BEGIN SOLUTION\na = 1\n### END SOLUTION"),
        new_code_cell("check(a, 1, 'one', hint='not two')"),
    ]
    assignment = editions.graded(new_notebook(cells=cells), "01_adversarial_training")
    code = [cell.source for cell in assignment.cells if cell.cell_type == "code"]
    exec("\n".join(code), {})
    blank = re.sub(r"### BEGIN SOLUTION.*?### END SOLUTION", "", "\n".join(code), flags=re.DOTALL)
    from catlib.lab import exercises

    try:
        with pytest.raises(AssertionError):
            exec(blank, {})
    finally:
        exercises.STRICT = False


def test_slides_show_the_story_and_leave_out_what_is_folded():
    hidden = new_code_cell("import x", metadata={"jupyter": {"source_hidden": True}})
    cells = [
        (new_markdown_cell("# 01 · Title"), "slide"),
        (new_code_cell("seed = 0", metadata={"tags": ["parameters"]}), "skip"),
        (hidden, "skip"),
        (new_markdown_cell("## The ball"), "slide"),
        (new_code_cell("draw()", outputs=[new_output("stream", text="0.1")]), "-"),
        (new_markdown_cell("*Figure: the ball.*"), "-"),
        (new_markdown_cell("What lies in it?"), "subslide"),
        (new_markdown_cell("## Exercises"), "skip"),
        (new_markdown_cell("### Exercise 1.1"), "skip"),
        (new_markdown_cell("## References"), "skip"),
    ]
    slides = editions.as_slides(new_notebook(cells=[cell for cell, _ in cells]))
    places = [cell.metadata.slideshow.slide_type for cell in slides.cells]
    assert places == [place for _, place in cells]


def test_slides_are_written_without_a_network(tmp_path):
    editions.write_slides(LESSONS[:1], tmp_path)
    text = (tmp_path / f"{LESSONS[0].stem}.slides.html").read_text(encoding="utf-8")
    assert text.count("<section") > 10 and "reveal.js" in text

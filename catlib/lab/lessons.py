"""Lessons that are kept in step with their worked solutions.

    python -m catlib.lab exercises            # rewrite the Exercises section of every lesson
    python -m catlib.lab exercises --check    # only say which lessons are out of step

The master is notebooks/solutions/NN_solutions.ipynb. A lesson gets the same cells, with what stands
between the lines `### BEGIN SOLUTION` and `### END SOLUTION` replaced by `# your code here`.
"""

import re

import nbformat

from .paths import NOTEBOOKS, SOLUTIONS

# JupyterLab shows the first line of a folded cell
_FOLDED = "# The check. It tells the answer, so it is folded.\n"
_SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION$", re.M | re.S)


def student_cells(solutions) -> list:
    """The cells of the exercises, without their solutions or outputs.

    The code of a check is folded, as it tells the answer.

    Args:
        solutions: a notebook (nbformat node); its exercises are all cells from the first `###
            Exercise` on.

    Raises: ValueError: there is no exercise, or a solution does not end.
    """
    first = _first(solutions.cells, "### Exercise")
    if first is None:
        raise ValueError("the notebook has no markdown cell that begins with '### Exercise'.")
    # numbered ids stay the same when the solutions are written anew
    return [
        _student_cell(cell, id=f"exercise-{number:02d}")
        for number, cell in enumerate(solutions.cells[first:], 1)
    ]


def _student_cell(cell, id: str):
    source = _SOLUTION.sub(r"\1# your code here", cell.source)
    if "### BEGIN SOLUTION" in source or "### END SOLUTION" in source:
        raise ValueError(
            f"'### BEGIN SOLUTION' and '### END SOLUTION' do not match in: {cell.source[:80]!r}"
        )
    if cell.cell_type == "markdown":
        from_the_lesson = source.replace("](../", "](")  # the solutions lie one folder deeper
        return nbformat.v4.new_markdown_cell(from_the_lesson, id=id)
    tells_the_answer = source == cell.source and "check(" in source
    if not tells_the_answer:
        return nbformat.v4.new_code_cell(source, id=id)
    folded = nbformat.v4.new_code_cell(_FOLDED + source, id=id)
    folded.metadata.jupyter = {"source_hidden": True}
    return folded


def _first(cells, heading: str) -> int | None:
    """The number of the first cell that begins with a heading."""
    for number, cell in enumerate(cells):
        if cell.cell_type == "markdown" and cell.source.startswith(heading):
            return number
    return None


def updated(lesson, solutions):
    """The lesson (nbformat node) with its Exercises section made from the solutions.

    Outputs stay where the code stays the same.
    """
    begin = _first(lesson.cells, "## Exercises")
    if begin is None:
        raise ValueError("the lesson has no markdown cell that begins with '## Exercises'.")
    length = _first(lesson.cells[begin + 1 :], "## ")
    end = len(lesson.cells) if length is None else begin + 1 + length
    old = {cell.source: cell for cell in lesson.cells[begin + 1 : end]}
    new = student_cells(solutions)
    for cell in new:
        if cell.cell_type == "code" and cell.source in old:
            before = old[cell.source]
            cell.outputs = before.outputs
            cell.execution_count = before.execution_count
    lesson = nbformat.from_dict(lesson)
    lesson.cells[begin + 1 : end] = new
    return lesson


def update_lessons(*, check: bool = False) -> int:
    """Rewrite the lessons whose exercises differ from their solutions; returns how many.

    Args:
        check: change nothing.
    """
    stale = 0
    for path in sorted(SOLUTIONS.glob("[0-9][0-9]_solutions.ipynb")):
        for lesson_path in NOTEBOOKS.glob(f"{path.name[:2]}_*.ipynb"):
            lesson = nbformat.read(lesson_path, 4)
            fresh = updated(lesson, nbformat.read(path, 4))
            if fresh == lesson:
                continue
            stale += 1
            if check:
                print(f"{lesson_path.name} is out of step with its solutions")
            else:
                nbformat.write(fresh, lesson_path)
                print(f"{lesson_path.name}: Exercises rewritten; run it again")
    return stale

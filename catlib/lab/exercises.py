"""Exercises: checks that say why, and lessons that are kept in step with their worked solutions.

    python -m catlib.lab exercises            # rewrite the Exercises section of every lesson
    python -m catlib.lab exercises --check    # only say which lessons are out of step

The master is notebooks/solutions/NN_solutions.ipynb. A lesson gets the same cells, with what stands
between the lines `### BEGIN SOLUTION` and `### END SOLUTION` replaced by `# your code here`.
"""

import re
from collections import Counter

import nbformat
import torch

from .paths import NOTEBOOKS, SOLUTIONS

STRICT = False  # the solutions' notebooks set it to True: anything but a right answer then raises
# JupyterLab shows the first line of a folded cell
_FOLDED = "# The check. It tells the answer, so it is folded.\n"
_TRIES: Counter[tuple[str, str]] = Counter()  # wrong tries so far; a check is known by its hints
_SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION$", re.M | re.S)


def check(
    answer, right, why: str, *, hint: str = "", stronger: str = "", on: tuple | None = None
) -> None:
    """Print whether an answer is right; to a wrong one a hint, a stronger one, then the answer.

    The first wrong try shows the hint, the second the stronger hint, the third why the right answer
    is right. A hint that is not given is skipped, so that a check without hints tells the answer at
    the first wrong try. The answer "?", or a function that returns it, asks for it at once. After a
    right answer the tries begin anew. What the answer raises is printed too; only with STRICT does
    anything but a right answer raise.

    Args:
        answer: what the student gave; None, ... and a tuple of nothing else count as blank, which
            is no try.
        right: the right answer (numbers, lists and tensors are compared to 1e-6), or a function of
            the answer that returns True if it is right.
        why: the right answer and the reason behind it, in words that help someone whose answer is
            wrong.
        hint: where to look, without the answer.
        stronger: the step that leads there, still without the answer.
        on: where the answer is a function: the arguments to call it with. What it returns is then
            judged. One of them may be the student's answer, so a "?" among them asks as well.

    Raises: AssertionError: STRICT, and the answer is not right.
    """
    asked = _asks(answer) or _asks(on)
    blank = _blank(answer)
    good = False
    error = ""
    try:
        if on is not None and not blank and not asked:
            answer = answer(*(_copied(argument) for argument in on))
            asked = _asks(answer)
            blank = _blank(answer)
        if not blank and not asked:
            good = bool(right(answer) if callable(right) else _same(answer, right))
    except Exception as problem:  # a student's code may raise anything
        error = f" (your answer raised {type(problem).__name__}: {problem})"
    if asked:
        verdict = f"The answer: {why}"
    elif blank:
        verdict = "not yet: fill in the cell above"
    elif good:
        _TRIES.pop((hint, stronger), None)
        verdict = f"✓ {why}"
    else:
        verdict = _help(why, hint, stronger, error)
    if STRICT and not good:
        raise AssertionError(verdict)
    print(verdict)


def _help(why: str, hint: str, stronger: str, error: str) -> str:
    """What a wrong try is told, by how many there were before it."""
    hints = []
    if hint:
        hints.append(f"Hint: {hint}")
    if stronger:
        hints.append(f"Stronger hint: {stronger}")
    tries = _TRIES[hint, stronger]
    _TRIES[hint, stronger] += 1
    if tries >= len(hints):
        return f"✗ not right{error}. The answer: {why}"
    again = 'Try again, or put "?" in place of your answer to be told.'
    return f"✗ not right yet{error}. {hints[tries]}\n  {again}"


def _copied(argument):
    """A tensor that an answer may change in place, which it would else do in the notebook, too."""
    return argument.clone() if isinstance(argument, torch.Tensor) else argument


def _asks(answer) -> bool:
    """Whether the answer, or a part of it, is a question mark: the student asks to be told."""
    if isinstance(answer, (tuple, list)):
        return any(_asks(part) for part in answer)
    return isinstance(answer, str) and answer.strip() == "?"


def _blank(answer) -> bool:
    if isinstance(answer, tuple) and len(answer) > 0:
        return all(_blank(part) for part in answer)
    return answer is None or answer is ...


def _same(answer, right) -> bool:
    try:
        answer, right = (torch.as_tensor(value, dtype=torch.float64) for value in (answer, right))
    except (TypeError, ValueError, RuntimeError):  # not numbers
        return answer == right
    if answer.numel() == right.numel() == 1:  # a number is right in a shape (1,) too
        answer = answer.flatten()
        right = right.flatten()
    return answer.shape == right.shape and torch.allclose(answer, right, rtol=1e-6, atol=1e-6)


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

"""Exercises: checks that say why, and lessons that are kept in step with their worked solutions.

    python -m catlib.lab.exercises            # rewrite the Exercises section of every lesson
    python -m catlib.lab.exercises --check    # only say which lessons are out of step

The master is notebooks/solutions/NN_solutions.ipynb. A lesson gets the same cells, with what stands between the lines
`### BEGIN SOLUTION` and `### END SOLUTION` replaced by `# your code here`.
"""

import argparse
import re
import sys

import nbformat
import torch

from ..data import ROOT

STRICT = False  # the solutions' notebooks set it to True: anything but a right answer then raises
_FOLDED = "# The check. It tells the answer, so it is folded.\n"  # the line that JupyterLab shows of a folded cell
_SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION$", re.M | re.S)


def check(answer, right, why: str, *, on: tuple | None = None) -> None:
    """Print whether an answer is right, or not there yet, and if it is wrong, why. Raises nothing, unless STRICT.

    Args:
        answer: what the student gave; None, ... and a tuple of nothing else count as blank.
        right: the right answer (numbers, lists and tensors are compared to 1e-6), or a function of the answer that
            returns True if it is right.
        why: the reason behind the right answer, in words that help someone whose answer is wrong.
        on: where the answer is a function: the arguments to call it with. What it returns is then judged.

    Raises: AssertionError: STRICT, and the answer is not right.
    """
    blank, error, good = _blank(answer), None, False
    try:
        if on is not None and not blank:
            answer = answer(*on)
            blank = _blank(answer)
        good = not blank and bool(right(answer) if callable(right) else _same(answer, right))
    except Exception as problem:  # a student's code may raise anything
        error = f" (your answer raised {type(problem).__name__}: {problem})"
    verdict = (
        "not yet: fill in the cell above"
        if blank
        else f"✓ {why}"
        if good
        else f"✗ not right: {why}{error or ''}"
    )
    if STRICT and not good:
        raise AssertionError(verdict)
    print(verdict)


def _blank(answer) -> bool:
    return (
        answer is None
        or answer is ...
        or (isinstance(answer, tuple) and len(answer) > 0 and all(map(_blank, answer)))
    )


def _same(answer, right) -> bool:
    try:
        answer, right = (torch.as_tensor(value, dtype=torch.float64) for value in (answer, right))
    except (TypeError, ValueError, RuntimeError):  # not numbers
        return answer == right
    return answer.shape == right.shape and torch.allclose(answer, right, rtol=1e-6, atol=1e-6)


def student_cells(solutions) -> list:
    """The cells of the exercises, without their solutions or outputs; the code of a check is folded, as it tells the answer.

    Args:
        solutions: a notebook (nbformat node); its exercises are all cells from the first `### Exercise` on.

    Raises: ValueError: there is no exercise, or a solution does not end.
    """
    first = next(
        (i for i, cell in enumerate(solutions.cells) if cell.source.startswith("### Exercise")),
        None,
    )
    if first is None:
        raise ValueError("the notebook has no markdown cell that begins with '### Exercise'.")
    cells = []
    for number, cell in enumerate(solutions.cells[first:], 1):
        source = _SOLUTION.sub(r"\1# your code here", cell.source)
        if "### BEGIN SOLUTION" in source or "### END SOLUTION" in source:
            raise ValueError(
                f"'### BEGIN SOLUTION' and '### END SOLUTION' do not match in: {cell.source[:80]!r}"
            )
        new = (
            nbformat.v4.new_markdown_cell
            if cell.cell_type == "markdown"
            else nbformat.v4.new_code_cell
        )
        # numbered ids: they stay the same when the solutions are written anew
        told = cell.cell_type == "code" and source == cell.source and "check(" in source
        cells.append(new(_FOLDED * told + source, id=f"exercise-{number:02d}"))
        if told:
            cells[-1].metadata.jupyter = {"source_hidden": True}
    return cells


def updated(lesson, solutions):
    """The lesson (nbformat node) with its Exercises section made from the solutions; outputs stay where the code did."""
    starts = [
        cell.cell_type == "markdown" and cell.source.startswith("## ") for cell in lesson.cells
    ]
    begin = next(
        (
            i
            for i, cell in enumerate(lesson.cells)
            if starts[i] and cell.source.startswith("## Exercises")
        ),
        None,
    )
    if begin is None:
        raise ValueError("the lesson has no markdown cell that begins with '## Exercises'.")
    end = next((i for i in range(begin + 1, len(starts)) if starts[i]), len(starts))
    old, new = (
        {cell.source: cell for cell in lesson.cells[begin + 1 : end]},
        student_cells(solutions),
    )
    for cell in new:
        if cell.cell_type == "code" and cell.source in old:
            cell.outputs, cell.execution_count = (
                old[cell.source].outputs,
                old[cell.source].execution_count,
            )
    lesson = nbformat.from_dict(lesson)
    lesson.cells[begin + 1 : end] = new
    return lesson


def main(arguments=None) -> int:
    """The command line; returns the number of lessons out of step, with --check."""
    parser = argparse.ArgumentParser(
        prog="python -m catlib.lab.exercises", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    options, stale = parser.parse_args(arguments), 0
    for path in sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_solutions.ipynb")):
        for lesson_path in (ROOT / "notebooks").glob(f"{path.name[:2]}_*.ipynb"):
            lesson = nbformat.read(lesson_path, 4)
            fresh = updated(lesson, nbformat.read(path, 4))
            if fresh == lesson:
                continue
            stale += 1
            if options.check:
                print(f"{lesson_path.name} is out of step with its solutions")
            else:
                nbformat.write(fresh, lesson_path)
                print(f"{lesson_path.name}: Exercises rewritten; run it again")
    return stale if options.check else 0


if __name__ == "__main__":
    sys.exit(main())

"""The course for a class: without outputs, as assignments to be graded, and as slides.

All three are made from the notebooks of the course and their worked solutions; nothing is executed.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat.v4 import new_markdown_cell

from .paths import SOLUTIONS

POINTS = 1  # for each cell of checks; a lecturer may change them in nbgrader's toolbar
_EXERCISE = "### Exercise"
_HIDDEN = "### BEGIN HIDDEN TESTS\n{}\n### END HIDDEN TESTS"


def write_student(lessons: Iterable[Path], folder: Path) -> None:
    """Write the lessons without outputs, for a class that runs them itself.

    Args:
        lessons: paths of the notebooks.
        folder: of the new notebooks; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in lessons:
        nbformat.write(without_outputs(nbformat.read(path, 4)), folder / path.name)


def without_outputs(notebook):
    """A copy of a notebook (nbformat node) as it was before its first run."""
    bare = nbformat.from_dict(notebook)
    for cell in bare.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None
    return bare


# ------------------------------------------------------------------ assignments for nbgrader


def write_graded(lessons: Iterable[Path], folder: Path) -> None:
    """Write the exercises of every lesson as an assignment in the form of nbgrader.

    `nbgrader generate_assignment NN_name` then removes the solutions and the checks from the copies
    that students get, and `nbgrader autograde` gives the points.

    Args:
        lessons: paths of the notebooks; their worked solutions are the source of the exercises.
        folder: of the course in nbgrader; an assignment is written to source/NN_name there.
    """
    for path in lessons:
        solutions = nbformat.read(SOLUTIONS / f"{path.name[:2]}_solutions.ipynb", 4)
        assignment = folder / "source" / path.stem
        assignment.mkdir(parents=True, exist_ok=True)
        nbformat.write(graded(solutions, path.stem), assignment / path.name)


def graded(solutions, lesson: str):
    """The exercises of a lesson as nbgrader wants them.

    A cell with a solution can be edited and is not graded itself. A cell of checks is locked,
    gives points, and stands between the marks of hidden tests, since a check tells the answer; its
    checks raise where an answer is not right. Other cells are locked.

    Args:
        solutions: the worked solutions of the lesson (nbformat node).
        lesson: name of the lesson's file, without the ending.
    """
    assignment = without_outputs(solutions)
    assignment.cells[0] = new_markdown_cell(
        f"# Assignment for {lesson.replace('_', ' ')}\n\n"
        "Fill in what is marked. What you wrote is checked when the assignment is graded.",
        id=assignment.cells[0].id,
    )
    exercise = 0
    for number, cell in enumerate(assignment.cells):
        exercise += cell.source.startswith(_EXERCISE)
        name = f"{lesson[:2]}-{exercise}-{number:02d}"
        has_solution = "### BEGIN SOLUTION" in cell.source
        is_check = cell.cell_type == "code" and exercise > 0 and "check(" in cell.source
        if has_solution:
            cell.metadata.nbgrader = _kind(f"answer-{name}", solution=True)
        elif is_check:
            cell.metadata.nbgrader = _kind(f"check-{name}", locked=True, points=POINTS)
            cell.source = _HIDDEN.format(cell.source)
        else:
            cell.metadata.nbgrader = _kind(f"given-{name}", locked=True)
    return assignment


def _kind(name: str, *, solution: bool = False, locked: bool = False, points: int = 0) -> dict:
    """What nbgrader keeps of a cell, in the third version of its form."""
    kind = {
        "grade": points > 0,
        "grade_id": name,
        "locked": locked,
        "schema_version": 3,
        "solution": solution,
        "task": False,
    }
    if points > 0:
        kind["points"] = points
    return kind


# ------------------------------------------------------------------ slides


def write_slides(lessons: Iterable[Path], folder: Path) -> None:
    """Write every lesson as slides for a browser.

    Nothing is fetched here; the browser that opens the slides fetches reveal.js and MathJax from
    the network.

    Args:
        lessons: paths of the notebooks.
        folder: of the slides; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    exporter = SlidesExporter(reveal_scroll=True)  # some slides are higher than a screen
    for path in lessons:
        html, _ = exporter.from_notebook_node(as_slides(nbformat.read(path, 4)))
        (folder / f"{path.stem}.slides.html").write_text(html, encoding="utf-8")


def as_slides(notebook):
    """A copy of a notebook (nbformat node) in which every cell knows its place among the slides.

    A chapter begins a slide, any other text a slide below it, and code with what it gives stays on
    the slide of the text before it. Folded cells, exercises and references are left out.
    """
    slides = nbformat.from_dict(notebook)
    chapter = ""
    for cell in slides.cells:
        heading = re.match(r"#{1,2} (.+)", cell.source)
        if cell.cell_type == "markdown" and heading:
            chapter = heading[1]
        cell.metadata.slideshow = {"slide_type": _place(cell, chapter)}
    return slides


def _place(cell, chapter: str) -> str:
    """Where a cell stands, in the words of nbconvert: slide, subslide, skip, or - to go on."""
    if chapter in ("Exercises", "References"):
        return "skip"
    if cell.cell_type == "code":
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        parameters = "parameters" in cell.metadata.get("tags", [])
        return "skip" if hidden or parameters else "-"
    if re.match(r"#{1,2} ", cell.source):
        return "slide"
    caption = cell.source.startswith("*Figure")
    return "-" if caption else "subslide"

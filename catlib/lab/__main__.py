"""The command line: `catlib` where the package is installed, `python -m catlib.lab` everywhere.

It stands above every other room of the laboratory and joins those that do not know each other, such
as the notebooks that batch executes and the site that shows them. `catlib --help` lists the
commands.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PAUSED = 3  # exit status of a study whose time was up: the same command goes on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = command_line().parse_args(given)
    options.given = given
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on with what is not done yet.", file=sys.stderr)
        sys.stderr.flush()
        # A normal exit would wait for the notebooks that still run in threads.
        # Their kernels end with this process.
        os._exit(130)


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands; what it returns carries the function to run as ``run``."""
    parser = argparse.ArgumentParser(
        prog="catlib",
        description="Case-aware adversarial training: notebooks, study and results.",
        epilog="`catlib COMMAND --help` explains a command and shows an example.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = add(commands, "run", run_course, "execute the notebooks of the course on a dataset")
    add_series_options(run)

    course = add(commands, "course", build_course, "write the executed notebooks as a site")
    add_series_options(course)

    refresh = add(commands, "refresh", refresh_notebooks, "execute the committed notebooks anew")
    refresh.add_argument("notebooks", nargs="*", type=Path, help="default: all of them")

    add_study_options(add(commands, "study", run_study, "run the study of the paper's claims"))

    pages = add(commands, "pages", write_pages, "write the pages of claims from the study's tables")
    pages.add_argument("--results", type=Path, help="folder of the tables (default: data/results)")

    exercises = add(commands, "exercises", update_exercises, "copy exercises into the lessons")
    exercises.add_argument(
        "--check", action="store_true", help="change nothing; only name the lessons out of step"
    )

    add(commands, "check", check_environment, "say what this machine lacks for the course")
    return parser


def add(commands, name: str, run: Callable, summary: str) -> argparse.ArgumentParser:
    """A command that is explained by the docstring of the function that runs it."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=explanation(run),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def explanation(function: Callable) -> str:
    """The docstring of a function without the indentation of its lines."""
    first, *rest = (function.__doc__ or "").strip().splitlines()
    return "\n".join([first, *(line.removeprefix("    ") for line in rest)])


def add_series_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        default="digits",
        help="digits, mnist, fashion_mnist or cifar10 (default: digits)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder for what is made (default: runs)"
    )


def add_study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default="smoke", help="size of the study: smoke, cpu or paper (default: smoke)"
    )
    parser.add_argument(
        "--piece", action="append", default=[], help="only this piece; may be given again"
    )
    parser.add_argument(
        "--scale",
        choices=("full", "tiny"),
        default="full",
        help="tiny: the paper profile from end to end, in minutes",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"stop, saved, after so long; the exit status is then {PAUSED}",
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs and their checkpoints")
    parser.add_argument("--results", type=Path, help="folder of the tables")
    parser.add_argument("--list", action="store_true", help="show the pieces and what is done")


# ------------------------------------------------------------------ the commands


def run_course(options: argparse.Namespace) -> int:
    """Execute the notebooks of the course on a dataset, and write them as linked pages.

    example:
      catlib run --dataset mnist

    what comes out, in OUT/DATASET (here runs/mnist):
      NN_*.ipynb   the executed notebooks; one that failed is left as NN_*.failed.ipynb
      index.html   the same as pages, readable without a network
      table.csv    AT against CAT, printed at the end
    The exit status is 1 if a notebook failed.
    """
    return 1 if execute_course(options.dataset, options.out) else 0


def build_course(options: argparse.Namespace) -> int:
    """Write the executed notebooks as a site to publish; execute them first where that is missing.

    example:
      catlib course --dataset digits

    what comes out: OUT/course/index.html and a page for each notebook, readable without a network.
    The exit status is 1 if a notebook failed.
    """
    from .batch import course_notebooks
    from .site import write_site

    executed = [options.out / options.dataset / path.name for path in course_notebooks()]
    failed = []
    if not all(path.exists() for path in executed):
        failed = execute_course(options.dataset, options.out)
    site = options.out / "course"
    write_site([path for path in executed if path.exists()], site)
    print(f"Read: {(site / 'index.html').resolve()}")
    return 1 if failed else 0


def execute_course(dataset: str, out: Path) -> list[str]:
    """Execute the series, write its site, print AT against CAT.

    Returns: the names of the notebooks that failed.
    """
    from .batch import run_series
    from .site import write_site

    series = run_series(dataset, out)
    write_site(series.executed, series.folder)
    table = series.folder / "table.csv"
    if table.exists():
        import pandas as pd

        rows = pd.read_csv(table, comment="#")
        print(f"\nAT against CAT on {dataset}\n{rows.to_string(index=False, na_rep='')}")
    print(f"\nRead: {series.folder / 'index.html'}   (tables and records lie beside it)")
    return series.failed


def refresh_notebooks(options: argparse.Namespace) -> int:
    """Execute the committed notebooks anew, in place, with their default parameters.

    example:
      catlib refresh notebooks/06_cat_versus_at.ipynb

    what comes out: the same files with fresh outputs and no trace of this machine, and the
    README's map of the course with their covers.
    """
    from .batch import course_notebooks, refresh
    from .site import write_course_map

    refresh(options.notebooks)
    write_course_map(course_notebooks())
    return 0


def run_study(options: argparse.Namespace) -> int:
    """Run the study of the paper's claims, or go on with it: what is done is not done again.

    examples:
      catlib study --profile smoke           every kind of piece, on the embedded digits
      catlib study --profile paper --list    the pieces, and how much of each is done
      catlib study --profile cpu --piece mnist_tables --minutes 9

    what comes out: one table data/results/PROFILE_PIECE.csv for each piece, and the runs behind
    it in runs/study/PROFILE. The profile smoke and the scale tiny write their tables beside their
    runs. `catlib pages` then writes what the tables say about each claim.
    """
    from .study import study
    from .study.work import progress

    try:
        if options.list:
            for piece, done in progress(options.profile, options.scale, options.runs):
                print(f"{piece.name:<26}{done:>4}/{len(piece.trials):<4} {piece.about}")
            return 0
        done = study(
            options.profile,
            options.piece,
            scale=options.scale,
            minutes=options.minutes,
            runs=options.runs,
            results=options.results,
        )
    except ValueError as error:
        return refuse(error)
    if done:
        return 0
    print(f"The time is up. The same command goes on: catlib {shlex.join(options.given)}")
    return PAUSED


def write_pages(options: argparse.Namespace) -> int:
    """Write the pages that put every claim of the paper beside what was measured.

    example:
      catlib pages

    what comes out: data/results/summary.csv and final.csv, computed from the other tables there;
    data/results/README.md, a row a claim; and the results in the project's README.md.
    """
    from . import pages
    from .paths import RESULTS

    pages.write_pages(options.results or RESULTS)
    return 0


def update_exercises(options: argparse.Namespace) -> int:
    """Rewrite the Exercises section of every lesson from its worked solutions.

    examples:
      catlib exercises
      catlib exercises --check

    what comes out: the lessons whose exercises had changed, without the outputs of new cells;
    execute those lessons again. With --check nothing is written, and the exit status is 1 if a
    lesson is out of step.
    """
    from .exercises import update_lessons

    stale = update_lessons(check=options.check)
    return 1 if stale and options.check else 0


def check_environment(options: argparse.Namespace) -> int:
    """Say what this machine has of what the course needs, and what to do about the rest.

    example:
      catlib check

    what comes out: a table with a row for Python, each package, the device, each dataset and
    the widgets. The exit status is 1 if something that is needed is missing.
    """
    from .environment import environment_report

    report = environment_report()
    print(report.to_string())
    return 1 if (report.verdict != "ok").any() else 0


def refuse(error: Exception) -> int:
    """Say why the command cannot be run; returns the exit status of a command given wrongly."""
    print(f"catlib: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `catlib` where the package is installed, `python -m catlib.lab` everywhere.

It stands above every other room of the laboratory and joins those that do not know each other, such
as the notebooks that batch executes and the site that shows them. `catlib --help` lists the
commands.
"""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .batch.engine import Failure, full_disk, speaks_of_a_full_disk

# exit statuses beside 0
FAILED = 1  # some runs failed; the others are done
REFUSED = 2  # what was asked for is not possible
PAUSED = 3  # the time of a study was up: the same command goes on
STOPPED = 130  # by Ctrl-C or SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = command_line().parse_args(given)
    options.given = given
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's end is like Ctrl-C
    try:
        return options.run(options)
    except Failure as error:
        print(f"catlib {given[0]}: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        if not speaks_of_a_full_disk(str(error)):
            raise
        where = Path(error.filename or ".").parent
        print(f"catlib {given[0]}: {full_disk(where)}", file=sys.stderr)
        return FAILED
    except ValueError as error:
        print(f"catlib {given[0]}: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on with what is not done yet.", file=sys.stderr)
        return STOPPED


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
    course.add_argument(
        "--base-url",
        default="",
        help="where the site will be published; pages then name that address",
    )
    course.add_argument(
        "--repository",
        default="",
        help="OWNER/NAME on GitHub for Colab and Binder (default: from a github.io base URL)",
    )

    editions = add(commands, "editions", write_editions, "write the course for a class")
    editions.add_argument("edition", choices=("student", "graded", "slides"))
    editions.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder for what is made (default: runs)"
    )

    add_batch_options(add(commands, "batch", run_batch, "run trials or a notebook over a grid"))

    refresh = add(commands, "refresh", refresh_notebooks, "execute the committed notebooks anew")
    refresh.add_argument("notebooks", nargs="*", type=Path, help="default: all of them")

    add_study_options(add(commands, "study", run_study, "run the study of the paper's claims"))

    gpu = add(commands, "gpu", examine_gpu, "check and measure a GPU, and say what the study takes")
    gpu.add_argument(
        "--device",
        default="cuda",
        help="cuda, or cpu to try the same in small (default: cuda)",
    )
    gpu.add_argument("--report", type=Path, help="file of the report (default: runs/gpu.json)")

    pages = add(commands, "pages", write_pages, "write the claims page and what follows from it")
    pages.add_argument("--results", type=Path, help="folder of the tables (default: data/results)")

    add_train_options(add(commands, "train", train_model, "train a robust model, and judge it"))
    add_judge_options(add(commands, "judge", judge_model, "say how robust a model is"))

    add(commands, "trained", train_models, "train the two MNIST models of the course anew")

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


def add_train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, help="name of a data set, or a path to your own")
    parser.add_argument("--model", required=True, help="cnn, resnet18 or module:function")
    parser.add_argument("--epsilon", required=True, help="radius of the attack, such as 8/255")
    parser.add_argument(
        "--passes", help="how much to train: images through the network, such as 2e6; or --minutes"
    )
    parser.add_argument("--minutes", type=float, help="how long to train on this machine")
    parser.add_argument("--out", help="folder for all of it (default: runs/train/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    parser.add_argument(
        "--device", default="auto", help="cpu or cuda (default: a GPU if there is one)"
    )
    parser.add_argument("--images", type=int, help="judge by so many test images (default: all)")
    parser.add_argument(
        "--autoattack", type=int, default=1000, help="images for AutoAttack (default: 1000)"
    )
    add_if_code_changed(parser)


def train_model(options: argparse.Namespace) -> int:
    """Train a robust model with a recipe for its images, keep the best weights, and judge them.

    examples:
      catlib train --data digits --model cnn --epsilon 0.1 --passes 2e5
      catlib train --data photos --model my_models:small --epsilon 8/255 --minutes 10 --out photos-1

    what comes out, in OUT: model.pt, the weights that were most robust on held-out training images;
    report.txt and report.json, the judge's report on the test images; train.json, what was asked
    for and the settings that followed; and the run. The same command goes on where it was stopped,
    or says that it is done. docs/train.md says what is known of the recipes.
    """
    from .train import train_command

    return train_command(options)


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="module:function, cnn or resnet18")
    parser.add_argument("--width", type=int, help="of resnet18: its first channels (default: 64)")
    parser.add_argument("--weights", help="file of a state dict, or the folder of a run")
    parser.add_argument("--data", required=True, help="name of a data set, or a path to your own")
    parser.add_argument("--epsilon", required=True, help="radius of the attack, such as 8/255")
    parser.add_argument("--norm", default="linf", help="linf or l2 (default: linf)")
    parser.add_argument("--images", type=int, help="so many test images (default: all)")
    parser.add_argument(
        "--autoattack", type=int, default=1000, help="images for AutoAttack (default: 1000)"
    )
    parser.add_argument("--json", help="file for the report as JSON")


def judge_model(options: argparse.Namespace) -> int:
    """Say how robust a model is, and whether to believe it.

    example:
      catlib judge --model my_models:small --weights small.pt --data my.npz --epsilon 8/255

    what comes out: accuracy, robust accuracy under PGD and AutoAttack, the worst class, and what
    would make these numbers untrustworthy, as a table, and with --json FILE as JSON too.
    """
    from .judge import judge_command

    return judge_command(options)


def add_series_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        default="digits",
        help="digits, mnist, fashion_mnist or cifar10 (default: digits)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder for what is made (default: runs)"
    )
    add_workers(parser)


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=positive,
        help="runs at a time, each in a process with one thread "
        "(default: as many as cores and memory allow; with GPUs, one for each)",
    )


def add_scheduler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of a Dask scheduler, such as tcp://10.0.0.1:8786, "
        "in place of processes here",
    )


def add_shard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard", metavar="I/N", help="run only the I-th of N parts")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def add_batch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", help="trial, a notebook, or a .toml or .yaml file that describes a batch"
    )
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="values to try: 0,0.5,0.9 or 0:5 (0 to 4) or 8/255; may be given again",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/batch"),
        help="folder of the runs (default: runs/batch)",
    )
    add_workers(parser)
    add_scheduler(parser)
    add_shard(parser)
    parser.add_argument("--limit", type=float, help="seconds that one run may take")
    parser.add_argument(
        "--cell-timeout", type=positive, default=3600, help="seconds that one cell may take"
    )
    add_if_code_changed(parser)
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what is done")
    parser.add_argument(
        "--settings",
        action="store_true",
        help="only list what -p can set, with types, defaults and meanings",
    )
    parser.add_argument(
        "--table", action="store_true", help="only write and show the table of all runs in --out"
    )


def add_if_code_changed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--if-code-changed",
        choices=("refuse", "repeat", "reuse"),
        default="refuse",
        help="what to do with runs that other code made (default: refuse)",
    )


def add_study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default="smoke", help="size of the study: smoke, cpu or paper (default: smoke)"
    )
    parser.add_argument(
        "--piece", action="append", default=[], help="only this piece; may be given again"
    )
    parser.add_argument(
        "--seed",
        type=int,
        action="append",
        default=[],
        help="only the runs of this seed; may be given again",
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
    parser.add_argument(
        "--workers",
        type=positive,
        help="runs at a time, each in a process with one thread (default: one after another "
        "in this process with all its threads, so that nothing disturbs the times)",
    )
    add_scheduler(parser)
    add_shard(parser)
    add_if_code_changed(parser)
    parser.add_argument("--runs", type=Path, help="folder of the runs and their checkpoints")
    parser.add_argument("--results", type=Path, help="folder of the tables")
    parser.add_argument("--list", action="store_true", help="show the pieces and what is done")
    parser.add_argument(
        "--choose",
        action="store_true",
        help="only write which settings won the searches, for the pieces that take them",
    )


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
    return FAILED if execute_course(options.dataset, options.out, options.workers) else 0


def run_batch(options: argparse.Namespace) -> int:
    """Run trials, or a notebook, with every combination of the values of their parameters.

    examples:
      catlib batch trial --settings    what can be set, and what it means
      catlib batch trial -p alpha=0,0.5,0.9 -p seed=0:5 -p iterations=100
      catlib batch notebooks/06_cat_versus_at.ipynb -p alpha=0,0.9 -p seeds=[0],[1]
      catlib batch sweep.toml --shard 1/4
      catlib batch sweep.toml --scheduler tcp://10.0.0.1:8786 --out /shared/runs
      catlib batch --table

    what comes out: a folder OUT/NAME for each run, named by its parameters; OUT/table.csv, all
    runs joined with their parameters. What is done is not done again, what failed is tried again.
    A run that fails leaves error.txt (and a notebook NAME.failed.ipynb) and never stops the others.
    The exit status is 1 if a run failed.
    """
    from .batch import units
    from .batch.engine import run_jobs
    from .batch.parameters import described
    from .batch.place import check_choice, place

    if options.table and not options.what:
        write_batch_table(options.out)
        return 0
    check_choice(options.workers, options.scheduler)
    what, given = batch_asked_for(options)
    if options.settings:
        print(described(units.parameters_for(what).values()))
        return 0
    values = units.values_for(what, given)
    chosen = units.units_for(
        what,
        values,
        options.out.resolve(),
        cell_timeout=options.cell_timeout,
        if_code_changed=options.if_code_changed,
    )
    if options.shard:
        chosen = units.shard(chosen, options.shard)
    left = units.to_do(chosen, options.if_code_changed)
    if options.dry_run:
        for unit in chosen:
            print(f"{'to do' if unit in left else 'done':<6} {unit.name}")
    print(f"{len(left)} to do, {len(chosen) - len(left)} done", flush=True)
    if options.dry_run:
        units.check_datasets((unit.dataset for unit in left), download=False)
        return 0
    failed = []
    if left and not options.table:
        units.check_datasets(unit.dataset for unit in left)
        where = place(
            len(left),
            options.out,
            workers=options.workers,
            scheduler=options.scheduler,
            limit=options.limit,
        )
        units.check_folder(options.out)
        with where:
            failed = [result for result in run_jobs(left, where) if result.failed]
    for result in failed:
        print(f"failed: {result.job.name}, see {result.job.error_file}", file=sys.stderr)
    write_batch_table(options.out)
    return FAILED if failed else 0


def batch_asked_for(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """What to run, and the values of its parameters: those of a file, then those of -p."""
    from .batch.units import read_sweep

    if options.what is None:
        raise ValueError("say what to run: trial, a notebook, or a .toml or .yaml file")
    what = options.what
    given: dict[str, Any] = {}
    named: set[str] = set()
    if Path(what).suffix in (".toml", ".yaml", ".yml"):
        what, given = read_sweep(Path(what))
    for text in options.parameter:
        name, _, listed = text.partition("=")
        if not listed:
            raise ValueError(f"-p {text}: write NAME=VALUES, as in -p alpha=0,0.5,0.9")
        if name in named:
            raise ValueError(
                f"-p {text}: {name} is given twice; list its values, as in -p {name}=A,B"
            )
        named.add(name)
        given[name] = listed
    return what, given


def write_batch_table(out: Path) -> None:
    """Write OUT/table.csv, and print its columns that differ."""
    from ..files import write_whole
    from .batch.table import table_of, telling

    table = table_of(out)
    if table.empty:
        print(f"no run in {out} is done")
        return
    write_whole(out / "table.csv", table.to_csv(index=False).encode())
    print(telling(table).to_string(index=False, na_rep=""))
    print(f"\n{len(table)} rows: {out / 'table.csv'}")


def build_course(options: argparse.Namespace) -> int:
    """Write the executed notebooks as a site to publish; execute them first where that is missing.

    examples:
      catlib course --dataset digits
      catlib course --base-url https://owner.github.io/name

    what comes out: OUT/course/index.html, a page for each notebook, and api.html, the reference of
    the public names; readable without a network.
    With a base URL the pages name their published address; where the repository is known too, they
    have buttons that open the notebook in Colab and Binder. The exit status is 1 if a notebook
    failed.
    """
    from .batch import course_notebooks, series_folder
    from .reference import reference
    from .site import home, write_site

    published = home(options.base_url, options.repository)
    folder = series_folder(options.dataset, options.out)
    executed = [folder / path.name for path in course_notebooks()]
    failed = []
    if not all(path.exists() for path in executed):
        failed = execute_course(options.dataset, options.out, options.workers)
    site = options.out / "course"
    write_site([path for path in executed if path.exists()], site, published, reference())
    print(f"Read: {(site / 'index.html').resolve()}")
    return FAILED if failed else 0


def write_editions(options: argparse.Namespace) -> int:
    """Write the course for a class: without outputs, to be graded, or as slides.

    examples:
      catlib editions student    the lessons without outputs and worked solutions
      catlib editions graded     the exercises as assignments for nbgrader
      catlib editions slides     every notebook as slides

    what comes out: OUT/student/NN_*.ipynb; or OUT/graded/source/NN_*/NN_*.ipynb, the folder source
    of an nbgrader course; or OUT/slides/NN_*.slides.html, which fetch reveal.js from the network
    when a browser opens them.
    """
    from . import editions
    from .batch import course_notebooks

    write = {
        "student": editions.write_student,
        "graded": editions.write_graded,
        "slides": editions.write_slides,
    }[options.edition]
    folder = options.out / options.edition
    write(course_notebooks(), folder)
    print(f"Written: {folder.resolve()}")
    return 0


def execute_course(dataset: str, out: Path, workers: int | None = None) -> list[str]:
    """Execute the series, write its site, print AT against CAT.

    Returns: the names of the notebooks that failed.
    """
    from .batch import run_series

    series = run_series(dataset, out, workers=workers)

    # what writes pages takes no memory while the notebooks need it
    from .reference import reference
    from .site import write_site

    write_site(series.executed, series.folder, reference=reference())
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
    table of the course in README.md and docs/instructors.md.
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
      catlib study --profile paper --list    the pieces, how much of each is done, and the commands
      catlib study --profile cpu --piece mnist_tables --minutes 9
      catlib study --profile cpu --shard 1/4 --runs /shared/runs    one machine of four

    what comes out: one table data/results/PROFILE_PIECE.csv for each piece, and the runs behind
    it in runs/study/PROFILE. The profile smoke and the scale tiny write their tables beside their
    runs. `catlib pages` then writes what the tables say about each claim. A piece of kind "search"
    tries settings; `catlib study --choose` writes those that won into catlib/lab/study/chosen.toml.
    """
    from .study import study
    from .study.work import progress

    if options.choose:
        choose_settings(options.results)
        return 0
    if options.list:
        for piece, done, count in progress(options.profile, options.scale, options.runs):
            print(f"{piece.name:<26}{done:>4}/{count:<4} {piece.about}")
        if options.profile == "paper":
            print_commands()
        return 0
    speed = None
    if options.profile == "paper" and options.scale == "full":
        speed = speed_of_gpu()
    done = study(
        options.profile,
        options.piece,
        scale=options.scale,
        minutes=options.minutes,
        runs=options.runs,
        results=options.results,
        workers=options.workers,
        seeds=options.seed,
        speed=speed,
        scheduler=options.scheduler,
        part=options.shard,
        if_code_changed=options.if_code_changed,
    )
    if done:
        return 0
    print(f"The time is up. The same command goes on: catlib {shlex.join(options.given)}")
    return PAUSED


def choose_settings(results: Path | None) -> None:
    """Write chosen.toml from the tables of the searches, and say what was left out."""
    from .paths import RESULTS
    from .study.choices import choose
    from .study.plan import CHOSEN

    left_out = choose(results or RESULTS)
    print(f"Written: {CHOSEN}")
    for sentence in left_out:
        print(f"Left out: {sentence}")


def print_commands() -> None:
    """The commands of the profile "paper", each with its time, on this GPU or on an H200."""
    import torch

    from . import gpu
    from .study.cost import H200

    speed = gpu.known_speed(torch.device("cuda")) if torch.cuda.is_available() else None
    where = "this GPU, as `catlib gpu` measured it" if speed else "an H200, by estimate"
    print(f"\nOn {where}:")
    print("\n".join(gpu.time_table("paper", speed or H200)))


def speed_of_gpu() -> Any:
    """The speed of this machine's GPU, which is examined first if it has not been.

    Raises: ValueError: there is no GPU. Failure: it does not compute what the CPU does.
    """
    import torch

    from . import gpu

    if not torch.cuda.is_available():
        raise ValueError(
            "the profile paper trains a ResNet-18 some hundred times, which takes a GPU, and there "
            "is none here that torch can use. --profile cpu is the study for a CPU; --scale tiny "
            "tries this one in minutes."
        )
    device = torch.device("cuda")
    speed = gpu.known_speed(device)
    if speed is None:
        report = gpu.examine(device, gpu.ON_GPU, print_now)
        gpu.save(report)
        if not report.passed:
            raise Failure("this GPU does not compute what the CPU does; see WRONG above.")
        speed = report.speed
    return speed


def print_now(line: str) -> None:
    print(line, flush=True)


def examine_gpu(options: argparse.Namespace) -> int:
    """Check that a GPU computes what the CPU does, measure it, and say what the study takes on it.

    examples:
      catlib gpu
      catlib gpu --device cpu    the same in small, to try it where there is no GPU

    what comes out: what the machine is; the differences from the CPU in attack, gain, draw,
    training and resume; the times of an iteration, eager and compiled, a draw, an evaluation, a
    checkpoint; and how long each command of the study's profile paper takes. runs/gpu.json has the
    same. The exit status is 1 if a number is wrong, and 2 without a GPU.

    After four minutes no further measurement begins, and those that are left out are named. How
    long the last one takes after that is not known: this has not been run on a GPU yet.
    """
    import torch

    from . import gpu

    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    report = gpu.examine(device, gpu.ON_GPU if on_gpu else gpu.ON_CPU, print_now)
    if on_gpu:
        print_now("\nThe study's profile paper on this GPU:")
        print_now("\n".join(gpu.time_table("paper", report.speed)))
    if on_gpu or options.report:
        gpu.save(report, options.report or gpu.REPORT)
    return 0 if report.passed else FAILED


def write_pages(options: argparse.Namespace) -> int:
    """Write the pages that put every claim of the paper beside what was measured.

    example:
      catlib pages

    what comes out: data/results/summary.csv and final.csv, computed from the other tables there;
    data/results/README.md, a row a claim; docs/tables.md, the paper's Tables 1 and 2 beside ours;
    and the results in the project's README.md.
    """
    from . import pages
    from .paths import RESULTS

    pages.write_pages(options.results or RESULTS)
    return 0


def train_models(options: argparse.Namespace) -> int:
    """Train the two MNIST models that the lessons look at, one by AT and one by CAT.

    example:
      catlib trained

    what comes out, in catlib/lab/trained: the weights of both, and models.toml with how robust
    they are. It takes some minutes, and needs MNIST; see data/README.md.
    """
    from . import trained

    trained.train_models()
    for name, facts in trained.described().items():
        robust = facts["robust_accuracy"]
        print(f"{name}: accuracy {facts['accuracy']:.1%}, under PGD-20 {robust:.1%}")
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
    from .lessons import update_lessons

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


if __name__ == "__main__":
    sys.exit(main())

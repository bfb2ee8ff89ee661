"""The runs of a batch, named by their parameters: trials, and notebooks with their values."""

import hashlib
import json
import re
import shutil
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ...data import find_data, load_data
from ..runs import Trial, changed_code, is_done, run, write_json
from ..sources import code_of, differing
from .engine import Failure, free_memory, surroundings_of_this_thread
from .notebooks import code_in, execute, failure_in_words, parameters_of
from .parameters import Parameter, parameters_of_trials, unknown_name, values_in

TRIAL = "trial"
LEAST_FREE = 50 * 2**20  # bytes of disk below which nothing is started
LEAST_MEMORY = 300 * 2**20  # bytes that PyTorch alone takes in a process
HEAVIER = {"resnet18": 100}  # how many times as long as in the cnn an image takes, about


@dataclass(frozen=True)
class TrialUnit:
    """A trial, run without a notebook and without a kernel."""

    trial: Trial
    root: Path
    if_code_changed: str = "refuse"

    @property
    def name(self) -> str:
        return self.trial.id

    @property
    def folder(self) -> Path:
        return inside(self.root, self.trial.id)

    @property
    def error_file(self) -> Path:
        return self.folder / "error.txt"

    @property
    def record(self) -> Path:
        return self.folder / "run.json"

    @property
    def dataset(self) -> str:
        return self.trial.dataset

    @property
    def cost(self) -> float | None:
        """How many images go through the model, about; more for a larger model."""
        trial = self.trial
        iterations = trial.iterations or 1
        images = float(iterations * trial.sampling_number * (trial.steps * trial.restarts + 1))
        if trial.evaluate_every:
            evaluations = iterations / trial.evaluate_every
            images += evaluations * trial.evaluation_size * (trial.evaluation_steps + 2)
        images += trial.final_restarts * (trial.final_size or 10_000) * trial.evaluation_steps
        return images * HEAVIER.get(trial.model, 1)

    def is_done(self) -> bool:
        return is_done(self.folder)

    def changed_code(self) -> list[str]:
        return changed_code(self.folder)

    def run(self) -> str | None:
        run(self.trial, self.root, if_code_changed=self.if_code_changed)
        return None


@dataclass(frozen=True)
class NotebookUnit:
    """A notebook with values for some of its parameters, in a folder named by them.

    The folder gets the executed notebook and a notebook.json, written last; a notebook with a
    parameter ``output_dir`` is given the folder.
    """

    notebook: Path
    values: dict[str, Any]
    root: Path
    cell_timeout: int = 3600
    cost: ClassVar[None] = None

    @property
    def name(self) -> str:
        return self.id

    @property
    def id(self) -> str:
        """The name of its folder: the notebook's, its parameters, and a digest of these."""
        chosen = "-".join(f"{name}={value}" for name, value in self.values.items())
        readable = re.sub(r"[^\w.=+-]+", "_", chosen)[:80]
        digest = hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:8]
        return "-".join(filter(None, [self.notebook.stem, readable, digest]))

    @property
    def folder(self) -> Path:
        return inside(self.root, self.id)

    @property
    def output(self) -> Path:
        return self.folder / self.notebook.name

    @property
    def error_file(self) -> Path:
        return self.folder / "error.txt"

    @property
    def dataset(self) -> str | None:
        return self._value_of("dataset")

    def _value_of(self, name: str) -> Any:
        """What a parameter of the notebook is in this run; None if there is no such parameter."""
        known = parameters_of(self.notebook)
        if name not in known:
            return None
        return self.values.get(name, known[name].default)

    @property
    def record(self) -> Path:
        return self.folder / "notebook.json"

    def is_done(self) -> bool:
        return self.record.exists()

    def code(self) -> dict[str, str | None]:
        """What decides the results: the files of :func:`code_of`, and the notebook's code."""
        text = code_in(self.notebook)
        files = code_of(self._value_of("model") or "cnn", self.dataset or "digits")
        return files | {self.notebook.name: hashlib.sha256(text.encode()).hexdigest()[:12]}

    def changed_code(self) -> list[str]:
        return differing(json.loads(self.record.read_text())["code"], self.code())

    def run(self) -> None:
        self.record.unlink(missing_ok=True)
        values = dict(self.values)
        if "output_dir" in parameters_of(self.notebook):
            values.setdefault("output_dir", str(self.folder.resolve()))
        for old in (self.output, self.folder / "table.csv"):
            old.unlink(missing_ok=True)  # lest an earlier run's results pass for this one's
        code = self.code()  # before it runs, as a notebook may be edited meanwhile
        started = time.perf_counter()
        execute_or_fail(self.notebook, self.output, values, self.cell_timeout)
        info = {
            "status": "done",
            "notebook": self.notebook.name,
            "parameters": self.values,
            "seconds": round(time.perf_counter() - started, 2),
            "code": code,
        }
        write_json(self.record, info)


Unit = TrialUnit | NotebookUnit


@dataclass(frozen=True)
class SeriesUnit:
    """A notebook of a series: all of them write into one folder, and none is left out."""

    notebook: Path
    values: dict[str, Any]
    folder: Path
    cell_timeout: int = 3600
    cost: ClassVar[None] = None

    @property
    def name(self) -> str:
        return self.notebook.stem

    @property
    def output(self) -> Path:
        return self.folder / self.notebook.name

    @property
    def error_file(self) -> Path:
        return self.output.with_suffix(".error.txt")

    def run(self) -> None:
        self.output.unlink(missing_ok=True)  # lest an earlier run's page pass for this one's
        execute_or_fail(self.notebook, self.output, self.values, self.cell_timeout)


def execute_or_fail(notebook: Path, output: Path, values: dict, cell_timeout: int) -> None:
    """Execute a notebook; what goes wrong in it is raised as a Failure, in words."""
    try:
        execute(notebook, output, values, cell_timeout, environment=surroundings_of_this_thread())
    except Exception as error:
        raise Failure(failure_in_words(error, output)) from error


def inside(root: Path, name: str) -> Path:
    """The folder of that name in ``root``.

    Raises: ValueError: the name would lead elsewhere.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"{name!r} cannot name a folder in {root}: give a plain name")
    return root / name


# ------------------------------------------------------------------ what is asked for, as units


def parameters_for(what: str) -> dict[str, Parameter]:
    """The parameters of trials or of a notebook.

    Raises: ValueError: ``what`` is neither "trial" nor a notebook with a usable parameters cell.
    """
    if what == TRIAL:
        return parameters_of_trials()
    if not what.endswith(".ipynb"):
        raise ValueError(f"{what!r} is neither 'trial', nor a notebook, nor a .toml or .yaml file")
    return parameters_of(what)


def values_for(what: str, given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values to try of each parameter, checked.

    Args:
        what: "trial" or a path of a notebook.
        given: by name, a text such as "0,0.5,0.9" or "0:5", a list of values, or one value.

    Raises: ValueError: a name is not known, or a value has a type that does not fit.
    """
    known = parameters_for(what)
    values = {}
    for name, listed in given.items():
        if name not in known:
            raise ValueError(unknown_name(Path(what).name, name, known))
        if isinstance(listed, str):
            listed = values_in(listed, known[name])
        elif not isinstance(listed, list):
            listed = [listed]
        if not listed:
            raise ValueError(f"{name} has no values; give at least one, as in {name}=1,2")
        values[name] = [known[name].checked(value) for value in listed]
    return values


def read_sweep(path: Path) -> tuple[str, dict[str, Any]]:
    """What a .toml or .yaml file asks for: ``run`` ("trial" or a notebook) and ``parameters``.

    Raises: ValueError: the file cannot be read, or says something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or set(content) != {"run", "parameters"}:
        raise ValueError(
            f"{path} must have two entries: run, which is trial or the path of a notebook, "
            "and parameters, a table of names and values"
        )
    if not isinstance(content["parameters"], dict):
        raise ValueError(
            f"{path}: parameters is {content['parameters']!r}; it must be a table of names and "
            "values, such as alpha: [0, 0.5]"
        )
    what = content["run"]
    if what != TRIAL:
        what = str(path.parent / what)
    return what, content["parameters"]


def _yaml(text: str) -> Any:
    """What a YAML text says, but for a whole number with a colon, which stays as it is written.

    YAML 1.1 takes 1:5 for a number of base 60, here 65; in a sweep it is a range.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_yaml_int(self, node):
            if ":" in node.value:
                return node.value
            return super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    return yaml.load(text, Loader)


def units_for(
    what: str,
    values: Mapping[str, list[Any]],
    root: Path,
    *,
    cell_timeout: int = 3600,
    if_code_changed: str = "refuse",
) -> list[Unit]:
    """A unit for every combination of the values, each once; the last parameter changes first.

    Args:
        what: "trial" or a path of a notebook.
        values: to try, a list for each parameter; see :func:`values_for`.
        root: the folder of the runs.
        cell_timeout: seconds that one cell of a notebook may take.
        if_code_changed: what to do with a trial that other code began; see :func:`run`.

    Raises: ValueError: a trial cannot have such settings.
    """
    units: dict[str, Unit] = {}
    for combination in combinations(values):
        unit: Unit
        if what == TRIAL:
            unit = TrialUnit(Trial(**combination), root, if_code_changed)
        else:
            if "dataset" in combination:
                combination["dataset"] = from_anywhere(combination["dataset"])
            unit = NotebookUnit(Path(what).resolve(), combination, root, cell_timeout)
        units.setdefault(unit.name, unit)
    return list(units.values())


def combinations(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the values of each name; the last name in the alphabet changes first."""
    names = sorted(values)
    for chosen in product(*(values[name] for name in names)):
        yield dict(zip(names, chosen, strict=True))


def from_anywhere(dataset: str) -> str:
    """The name of a dataset, or its path for a kernel that runs in another folder.

    Raises: ValueError: there is no such dataset.
    """
    path = find_data(dataset)
    return dataset if path is None else str(path)


def to_do(units: list[Unit], if_code_changed: str) -> list[Unit]:
    """The units that are not done yet, the longest first, lest one of them is left at the end.

    Args:
        if_code_changed: what to do with those that other code finished: "refuse", "repeat", or
            "reuse" them as they are.

    Raises: ValueError: there are such, and they are to be refused.
    """
    left = [unit for unit in units if not unit.is_done()]
    if if_code_changed == "reuse":
        return sorted(left, key=by_cost)
    changed = {unit.name: unit.changed_code() for unit in units if unit.is_done()}
    other = [unit for unit in units if changed.get(unit.name)]
    if other and if_code_changed == "refuse":
        files = ", ".join(changed[other[0].name][:5])
        raise ValueError(
            f"{len(other)} runs were finished by other code, such as {other[0].name}; "
            f"what differs: {files}. Say what to do with them: "
            "--if-code-changed repeat (run them anew) or reuse (take them as they are); "
            "or choose another folder with --out"
        )
    return sorted(left + other, key=by_cost)


def by_cost(unit: Unit) -> float:
    """A key that sorts the longest first."""
    return -(unit.cost or 0)


T = TypeVar("T")


def shard(units: list[T], part: str) -> list[T]:
    """The units of one of n machines that share a batch: "2/5" is the second of five.

    Raises: ValueError: the text is not of that form.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard is {part!r}; it must be i/n with i from 1 to n, such as 1/4")
    return units[int(found[1]) - 1 :: int(found[2])]


# ------------------------------------------------------------------ checks before anything starts


def check_datasets(names: Iterable[str | None], *, download: bool = True) -> None:
    """Load each dataset once, which downloads it where it is not there.

    Args:
        download: False leaves out the datasets that have a name of their own, and checks files and
            folders alone.

    Raises: ValueError: one cannot be used.
    """
    asked_for = {name for name in names if name is not None}
    for name in sorted(asked_for - {"digits"}):  # which are embedded
        try:
            if download or find_data(name) is not None:
                load_data(name)
        except Exception as error:
            why = " ".join(str(error).split())  # that of a download has many lines
            raise ValueError(f"the dataset {name!r} cannot be used: {why}") from error


def check_folder(root: Path, option: str = "--out") -> None:
    """Make the folder of the output.

    Args:
        option: of the command, with which people choose the folder.

    Raises: ValueError: nothing can be written there, or its disk is nearly full.
    """
    probe = root / f".writable-{time.time_ns()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise ValueError(
            f"nothing can be written to {root} ({error.strerror}); "
            f"choose another folder with {option}"
        ) from error
    if free < LEAST_FREE:
        raise ValueError(
            f"the disk of {root} has only {free / 2**20:.0f} MB free; "
            f"make room, or choose another folder with {option}"
        )


def check_memory(count: int) -> None:
    """See whether this machine can hold so many processes.

    Raises: ValueError: its free memory cannot.
    """
    free = free_memory()
    if free is not None and free < count * LEAST_MEMORY:
        raise ValueError(
            f"{free / 2**20:.0f} MB of memory are free, and {count} runs at a time need at least "
            f"{count * LEAST_MEMORY / 2**20:.0f} MB; end other programs, or choose fewer --workers"
        )

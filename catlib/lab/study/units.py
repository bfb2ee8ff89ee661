"""The units of the study: each is measured once, saved, and used again, whatever is killed.

They are units of a batch (catlib.lab.batch.units) that stop, saved, when the time is up.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from catlib import PGD, Training
from catlib.training import Record

from ...files import write_whole
from ..batch.engine import Failure, Pause
from ..batch.units import NotebookUnit, TrialUnit
from ..judge import AUTOATTACK_PART, Measurement, autoattack_is_installed, measurements
from ..runs import (
    Trial,
    build_training,
    is_done,
    judged_images,
    only_one_process,
    provenance,
    read_run,
    run,
    save_if_best,
    write_json,
)
from ..similarity import neighbour_similarity, staleness

CELL_TIMEOUT = 3600  # seconds that one cell of a notebook may take


def stop_at(deadline: float) -> None:
    """Raise Pause once the clock is past ``deadline``, in seconds since 1970.

    That is a time on which the machines of a cluster agree.
    """
    if time.time() > deadline:
        raise Pause


def time_left(deadline: float) -> float | None:
    """Seconds until ``deadline``; None if there is none."""
    if deadline == float("inf"):
        return None
    return max(0.0, deadline - time.time())


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What every unit of the study has besides what it has as a unit of a batch.

    Attributes:
        label: how people tell it from the others.
        deadline: when it stops, saved; see :func:`stop_at`.
    """

    label: str = ""
    deadline: float = float("inf")

    @property
    def name(self) -> str:
        return self.label

    def is_ready(self) -> bool:
        """Whether all is there that it needs of other units."""
        return True


@dataclass(frozen=True)
class StudyTrial(Labelled, TrialUnit):
    """What is measured of one trial of a piece.

    Runs of other code were refused, put aside or accepted before anything began.
    """

    if_code_changed: str = "reuse"

    @property
    def place(self) -> Path:
        """The name of the lock that a process holds while it measures; none need be there."""
        return self.folder

    def measure_alone(self) -> None:
        """Measure what is missing, unless another process has done so in the meantime.

        Raises: Pause: the time was up, here or while another process measured.
        """
        try:
            with only_one_process(self.place, time_left(self.deadline)):
                if not self.is_done():
                    self._measure()
        except TimeoutError:
            raise Pause from None

    def _measure(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not say what it measures.")


# ------------------------------------------------------------------ train: the usual piece


@dataclass(frozen=True)
class TrainUnit(StudyTrial):
    """A trial of a piece of kind "train".

    Attributes:
        keep_best: keep its best and its last weights; otherwise no weights stay.
        finals: the options of the piece that judges its final model where no weights stay: it is
            then judged at the end of the run, as a machine that is lent keeps nothing. None where
            there is no such piece.
    """

    keep_best: bool = False
    finals: dict[str, Any] | None = None

    def is_done(self) -> bool:
        return super().is_done() and all(unit.is_done() for unit in self.judgements())

    def judgements(self) -> list["FinalUnit"]:
        """What is measured of the final model at the end of the run."""
        if self.finals is None:
            return []
        return [
            FinalUnit(
                self.trial,
                self.root,
                label=f"{self.label}, {model} model",
                deadline=self.deadline,
                model=model,
                options=self.finals,
            )
            for model in final_models(self.finals)
        ]

    def run(self) -> str:
        """Run the trial to its end, and judge it there; "done", or "diverged".

        Raises: Pause: the time was up; the run goes on from its checkpoint, or is judged from it.
        """
        stop_at(self.deadline)
        try:
            outcome = self._train()
            if outcome == "done":
                self._judge()
        except TimeoutError:  # another process has this run, of this piece or of one that shares it
            raise Pause from None
        if not self.keep_best:
            # 90 MB for a ResNet-18, and a run that is done does not need it again
            (self.folder / "checkpoint.pt").unlink(missing_ok=True)
        return outcome

    def _train(self) -> str:
        try:
            run(
                self.trial,
                self.root,
                observe=self._observe,
                if_code_changed=self.if_code_changed,
                wait=time_left(self.deadline),
            )
        except FloatingPointError as error:  # a result of the study, not a failure of the run
            record_divergence(self.trial, self.folder, error)
            return "diverged"
        return "done"

    def _judge(self) -> None:
        judgements = self.judgements()
        if not judgements:
            return
        with only_one_process(self.folder, time_left(self.deadline)):
            for unit in judgements:
                if not unit.is_done():
                    unit.run()

    def _observe(self, training: Training, record: Record) -> None:
        if record.robust_accuracy is None:  # only iterations that are evaluated are saved
            return
        if self.keep_best:
            save_if_best(training, record, self.folder / "best.pt")
        stop_at(self.deadline)


def record_divergence(trial: Trial, folder: Path, error: Exception) -> None:
    """A run whose loss became NaN or infinite ends there: it is done, with its records so far."""
    info = provenance(trial, build_training(trial))
    ending = {"diverged": str(error), "final": {}}
    with only_one_process(folder, wait=None):
        if not (folder / "records.csv").exists():
            columns = [field.name for field in fields(Record)]
            columns += ["batch_accuracy", "drawn_accuracy", "met_again"]
            write_whole(folder / "records.csv", (",".join(columns) + "\n").encode())
        write_json(folder / "run.json", {"status": "done", **info, **ending})


# ------------------------------------------------------------------ similarity: Fig. 1; and draws


@dataclass(frozen=True)
class Part:
    """One of the tables that are measured of every trial of such a piece."""

    name: str
    suffix: str  # of the piece's table
    measure: Callable[[Training, Trial, dict], pd.DataFrame]


@dataclass(frozen=True)
class PartsUnit(StudyTrial):
    """What is measured along trainings of one trial, one for each part.

    Attributes:
        kind: of the piece; PARTS says what is measured.
        options: of the piece.
    """

    kind: str = "similarity"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.root / f"{self.kind}-{self.trial.id}"

    def run(self) -> None:
        """Measure the parts that the folder lacks.

        The run.json is there from the beginning, with the digests of the code, so that parts which
        a killed study left are not used again in silence by other code.

        Raises: Pause: the time was up.
        """
        stop_at(self.deadline)
        self.measure_alone()

    def _measure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = self.record.exists()
        stretches = read_run(self.folder).get("stretches", []) if begun else []
        known = provenance(self.trial, build_training(self.trial))
        info = {**known, "stretches": [*stretches, known]}
        write_json(self.record, {"status": "running", **info})
        for part in PARTS[self.kind]:
            path = self.folder / f"{part.name}.csv"
            if begun and path.exists():
                continue
            stop_at(self.deadline)
            training = build_training(self.trial)
            training.evaluate_every = 0
            table = part.measure(training, self.trial, self.options)
            write_whole(path, table.to_csv(index=False).encode())
        write_json(self.record, {"status": "done", **info})


def measure_neighbours(training: Training, trial: Trial, options: dict) -> pd.DataFrame:
    count = 16 if options["tiny"] else options.get("images", 200)
    images, labels = training.data.test(slice(count))
    return neighbour_similarity(training, images, labels, gaps=(1, 10), attack=trial.attack())


def measure_staleness(training: Training, trial: Trial, options: dict) -> pd.DataFrame:
    count = 64 if options["tiny"] else 1000
    examples = torch.arange(min(count, len(training.data.y_train)))
    if trial.iterations is None:
        raise ValueError("iterations is None; staleness is measured over a given number of them.")
    return staleness(training, examples=examples, every=max(1, trial.iterations // 6))


def measure_draw(training: Training, trial: Trial, options: dict) -> pd.DataFrame:
    """The draw that would come after the last iteration: a row for each drawn image.

    Columns: seed, alpha; image (its index), label, weight (w of Eq. 4); below, the share of its
    class's images that weigh less; class_median, the median weight of its class.
    """
    for _ in training:
        pass
    weights = training.sampler.weights.cpu()
    labels = training.data.y_train.cpu()
    rows = []
    for image in training.sampler.draw().tolist():
        of_class = weights[labels == labels[image]]
        row = {"seed": trial.seed, "alpha": trial.alpha, "image": image}
        row |= {"label": labels[image].item(), "weight": weights[image].item()}
        row["below"] = (of_class < weights[image]).double().mean().item()
        rows.append(row | {"class_median": of_class.median().item()})
    return pd.DataFrame(rows)


PARTS = {
    "similarity": (
        Part("neighbours", "", measure_neighbours),
        Part("staleness", "_staleness", measure_staleness),
    ),
    "draws": (Part("draw", "", measure_draw),),
}


# ------------------------------------------------------------------ notebook


@dataclass(frozen=True)
class StudyNotebook(Labelled, NotebookUnit):
    """A notebook of the course at the scale of the study.

    Its own runs are what takes long. They go on from their checkpoints, so it may be cut off in any
    cell.
    """

    def run(self) -> None:
        """Execute the notebook.

        Raises: Pause: the time was up.
        """
        stop_at(self.deadline)
        seconds = min(self.deadline - time.time(), CELL_TIMEOUT)
        try:
            NotebookUnit(self.notebook, self.values, self.root, max(int(seconds), 1)).run()
        except Failure:
            stop_at(self.deadline)  # a cell that was cut off then is no failure
            raise


# ------------------------------------------------------------------ finals, after a long run


@dataclass(frozen=True)
class FinalUnit(StudyTrial):
    """What is said of one of the final models of a long run.

    Attributes:
        model: "best" or "last", see :func:`final_models`.
        options: of the piece: its "images", "restarts", "autoattack_size" and "attacks".
    """

    model: str = "last"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """Its own: two processes may judge the best and the last model of a run at once."""
        return self.root / f"finals-{self.model}-{self.trial.id}"

    @property
    def record(self) -> Path:
        return self.folder / f"finals-{self.model}.json"

    @property
    def error_file(self) -> Path:
        return self.folder / f"finals-{self.model}.error.txt"

    @property
    def cost(self) -> None:
        return None

    def is_ready(self) -> bool:
        return is_done(self.folder)

    def is_done(self) -> bool:
        return self.found()["status"] == "done" or self._has_diverged()

    def _asked(self) -> dict[str, Any]:
        """The options, as a file of JSON gives them back."""
        return json.loads(json.dumps(self.options))

    def _has_diverged(self) -> bool:
        """Whether the run ended with a loss that is not finite, and has no final model."""
        return is_done(self.folder) and "diverged" in read_run(self.folder)

    def found(self) -> dict[str, Any]:
        """What has been measured so far: "status", "iteration" and, by name, "measured".

        What was measured with other options does not count. "autoattack" is the number of images
        that AutoAttack was given, by what was installed then.
        """
        nothing = {"status": "running", "measured": {}}
        if not self.record.exists():
            return nothing
        found = json.loads(self.record.read_text())
        return found if found.get("options", self._asked()) == self._asked() else nothing

    def changed_code(self) -> list[str]:
        """None: the long run, in the same folder, is asked, and put aside with what is here."""
        return []

    def run(self) -> None:
        """Measure what is missing, and save it after each measurement.

        Raises:
            Pause: the time was up.
            Failure: its weights are gone, or AutoAttack is.
        """
        self.measure_alone()

    def _measure(self) -> None:
        training = build_training(self.trial)
        saved = read_weights(self.folder, self.model, training.device)
        training.model.load_state_dict(saved["model"])
        found = self.found() | {"iteration": saved["iteration"], "options": self._asked()}
        size = autoattack_size(self.options)
        if found.get("autoattack", size) > size:
            raise Failure(
                f"{self.record} was begun with AutoAttack, and pyautoattack is missing here; "
                "install it, or delete this file to measure without it."
            )
        found["autoattack"] = size
        for name, measure in final_measurements(training, self.trial, self.options):
            if name in found["measured"]:
                continue
            stop_at(self.deadline)
            found["measured"][name] = measure()
            write_json(self.record, found)
        write_json(self.record, found | {"status": "done"})


# the file that has the weights of a final model
WEIGHTS = {"best": "best.pt", "last": "checkpoint.pt"}


def final_models(options: dict) -> Sequence[str]:
    """The final models that a piece of kind "finals" judges, of these options."""
    return options.get("models", tuple(WEIGHTS))


def read_weights(folder: Path, model: str, device: torch.device) -> dict[str, Any]:
    """The weights of a finished run ("model"), and after which "iteration" they were saved.

    Raises: Failure: there are none.
    """
    path = folder / WEIGHTS[model]
    if not path.exists():
        raise Failure(
            f"{folder} has no {path.name}, the weights that are to be judged; delete the folder to "
            "run it anew."
        )
    state = torch.load(path, weights_only=True, map_location=device)
    if model == "best":
        return state
    last = pd.read_csv(folder / "records.csv").iteration.iloc[-1]
    return {"model": state["training"]["model"], "iteration": int(last)}


def autoattack_size(options: dict) -> int:
    """How many test images AutoAttack is given; none where it is not installed."""
    if not autoattack_is_installed():
        return 0
    return 8 if options["tiny"] else options["autoattack_size"]


def final_measurements(
    training: Training, trial: Trial, options: dict
) -> Iterator[tuple[str, Measurement]]:
    """What is measured of a final model; at the scale "tiny" on a few images, by one attack."""
    tiny = options["tiny"]
    images, labels = judged_images(trial, training, 32 if tiny else options.get("images"))
    attack = trial.judge(restarts=2 if tiny else options.get("restarts", 10))
    if not isinstance(attack, PGD):
        raise ValueError(f"a final model is judged by PGD, not by {type(attack).__name__}.")
    return measurements(
        training.judged_model(),
        images,
        labels,
        attack,
        autoattack=autoattack_size(options),
        part=4 if tiny else AUTOATTACK_PART,
        attacks=["apgd-ce"] if tiny else options.get("attacks"),
    )

"""Training in the background: trials side by side, to pause, stop and change while they run."""

import threading
import time
import traceback
from dataclasses import replace
from typing import Any

from ..collapse import Guard
from ..training import Record, Training
from .runs import (
    Trial,
    build_guard,
    build_training,
    is_undone,
    records_of,
    training_attack,
)

# settings that count from the next iteration
LIVE = ("alpha", "epsilon", "steps", "sampling_number")
AT_START = ("dataset", "device")  # settings that count from the next start

# torch's random state and matplotlib's caches belong to all threads: these take turns
TURN = threading.Lock()


class BackgroundTraining:
    """Trials by name that train in turns, one iteration each, in a thread of their own.

    ``state`` is "ready", "running", "paused", "stopped", "finished" or "failed"; ``error`` then
    says why. ``trainings`` and ``records`` (by name) stay as they are until the next start. An
    iteration that has begun is ended: pausing, stopping and new settings take effect within one
    iteration.
    """

    state: str
    error: Exception | None
    traceback: str
    changes: list[tuple[int, str, Any]]  # (iteration, setting, new value), for the picture
    begun: dict[str, Trial]  # the trials as they were at the start
    trainings: dict[str, Training]
    guards: dict[str, Guard | None]  # None where the trial asks for none
    records: dict[str, list[Record]]

    def __init__(self, trials: Trial | dict[str, Trial]):
        if isinstance(trials, Trial):
            trials = {trials.method: trials}
        self.trials = dict(trials)
        self.moves = {setting: self._moved_by(setting) for setting in LIVE + AT_START}
        # an epsilon that grows is set by the trial itself in every iteration
        epsilon_grows = any(trial.epsilon_warm_up for trial in self.trials.values())
        self.live = ("alpha", "sampling_number") if epsilon_grows else LIVE
        self._lock = threading.RLock()
        self._go = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._reset("ready")

    def _moved_by(self, setting: str) -> list[str]:
        """Names of the trials that a change of this setting moves.

        A setting in which the trials differ is what they compare: it moves the last trial only.
        """
        names = list(self.trials)
        values = {getattr(trial, setting) for trial in self.trials.values()}
        if len(values) > 1:
            return names[-1:]
        return names

    def _reset(self, state: str) -> None:
        self.state = state
        self.error = None
        self.traceback = ""
        self.changes = []
        self.begun = dict(self.trials)
        self.trainings = {}
        self.guards = {}
        self.records = {name: [] for name in self.trials}
        self._stopping.clear()
        self._go.set()

    @property
    def active(self) -> bool:
        return self.state in ("running", "paused")

    @property
    def iteration(self) -> int:
        return max((training.iteration for training in self.trainings.values()), default=0)

    def set(self, **settings: Any) -> None:
        """Change settings of the trials: one of LIVE or AT_START.

        Those in ``live`` count from the next iteration, the others from the next start.

        Raises: ValueError: another setting.
        """
        for setting in settings:
            if setting not in self.moves:
                raise ValueError(
                    f"{setting} cannot be changed here; what can is {', '.join(self.moves)}. "
                    "For another setting make a new trial."
                )
        with self._lock:
            for setting, value in settings.items():
                for name in self.moves[setting]:
                    self.trials[name] = replace(self.trials[name], **{setting: value})
                if self.active and self.iteration and setting in self.live:
                    self._note_change(setting, value)

    def _note_change(self, setting: str, value: Any) -> None:
        """Keep the last change of a setting in an iteration."""
        moment = (self.iteration, setting)
        earlier = [change for change in self.changes if change[:2] != moment]
        self.changes = [*earlier, (*moment, value)]

    def start(self) -> None:
        """Begin anew in the background; nothing while it is running or paused."""
        if self._stopping.is_set():
            self.wait()
        with self._lock:
            if self.active:
                return
            self._reset("running")
            self._thread = threading.Thread(target=self._work, name="catlib training", daemon=True)
            self._thread.start()

    def run(self, iterations: int | None = None) -> None:
        """Begin anew and go to the end in the foreground, or for so many iterations.

        Errors are raised.
        """
        endless = any(trial.iterations is None for trial in self.trials.values())
        if endless and not iterations:
            raise ValueError(
                "iterations is None: in the foreground training would never end; say how many."
            )
        self.stop()
        self.wait()
        self._reset("running")
        if iterations:
            for name, trial in self.begun.items():
                self.begun[name] = replace(trial, iterations=iterations)
        self._work()
        if self.error:
            raise self.error

    def pause(self) -> None:
        self._go.clear()

    def resume(self) -> None:
        self._go.set()

    def stop(self) -> None:
        with self._lock:
            if self.active:
                self._stopping.set()
                self._go.set()

    def wait(self, timeout: float | None = None) -> None:
        """Until training has ended, or for so many seconds."""
        if self._thread:
            self._thread.join(timeout)

    def _work(self) -> None:
        try:
            self.changed(new=True)
            with TURN:  # initial weights come of a seed set in the global state
                self.trainings = {name: build_training(trial) for name, trial in self.begun.items()}
            for name, trial in self.begun.items():
                self.guards[name] = build_guard(trial, self.trainings[name])
            finished = self._train()
            self._end("finished" if finished else "stopped")
        except Exception as error:
            self.error = error
            self.traceback = traceback.format_exc()
            self._end("failed")
        except BaseException:  # Ctrl-C in the foreground
            self._end("stopped")
            raise

    def _train(self) -> bool:
        """Iterations of the trials in turn, until all have ended (True) or are stopped (False)."""
        streams = {
            name: records_of(self.begun[name], training, self.guards[name])
            for name, training in self.trainings.items()
        }
        while streams:
            for name in list(streams):
                self._rest_if_paused()
                if self._stopping.is_set():
                    return False
                self._apply(self.trials[name], self.trainings[name])
                guard = self.guards[name]
                if guard is not None:
                    self.trainings[name].attack = guard.milder(self.trainings[name].attack)
                with TURN:
                    record = next(streams[name], None)
                if record is None:
                    del streams[name]
                    continue
                self._keep(name, record)
                self.changed(new=record.accuracy is not None)
                time.sleep(0.001)  # a lock is not fair: the next one in line may take it now
        return True

    @staticmethod
    def _apply(trial: Trial, training: Training) -> None:
        """Bring the sampler and the attack of training to what the trial says now."""
        training.sampler.sampling_number = trial.sampling_number
        if trial.method == "CAT":
            training.sampler.alpha = trial.alpha
        training.attack = training_attack(trial)

    def _keep(self, name: str, record: Record) -> None:
        """Add a record, or drop those of iterations that a guard has just undone."""
        records = self.records[name]
        training = self.trainings[name]
        if is_undone(record, training):
            self.records[name] = [one for one in records if one.iteration <= training.iteration]
        else:
            records.append(record)

    def _rest_if_paused(self) -> None:
        while not self._go.is_set():
            self.state = "paused"
            self.changed(new=True)
            self._go.wait()
            self.state = "running"
            self.changed(new=True)

    def _end(self, state: str) -> None:
        with self._lock:
            self.state = state
            self._stopping.clear()
        self.changed(new=True)

    def changed(self, new: bool) -> None:
        """For subclasses: called in the thread after every iteration.

        ``new`` is True if the iteration was evaluated or the state is another one.
        """

"""Training in the background: trials side by side, that one can pause, stop and change while they run."""

import threading
import time
import traceback
from dataclasses import replace

from .runs import Trial, build_training, records_of

LIVE, AT_START = ("alpha", "epsilon", "steps"), ("sampling_number", "dataset", "device")
TURN = (
    threading.Lock()
)  # torch's random state and matplotlib's caches belong to all threads: these take turns


class BackgroundTraining:
    """Trials by name that train in turns, one iteration each, in a thread of their own.

    ``state`` is "ready", "running", "paused", "stopped", "finished" or "failed"; ``error`` then says why.
    ``trainings`` and ``records`` (by name) stay as they are until the next start. An iteration that has begun
    is ended: pausing, stopping and settings take effect within one iteration.
    """

    def __init__(self, trials: Trial | dict[str, Trial]):
        self.trials = {trials.method: trials} if isinstance(trials, Trial) else dict(trials)
        # a setting in which the trials differ is what they compare: changing it moves the last trial only
        self.moves = {
            setting: list(self.trials)
            if len({getattr(trial, setting) for trial in self.trials.values()}) == 1
            else list(self.trials)[-1:]
            for setting in LIVE + AT_START
        }
        # an epsilon that grows is set by the trial itself in every iteration
        self.live = (
            ("alpha",) if any(trial.epsilon_warm_up for trial in self.trials.values()) else LIVE
        )
        self._lock, self._go, self._stopping = (
            threading.RLock(),
            threading.Event(),
            threading.Event(),
        )
        self._thread = None
        self._reset("ready")

    def _reset(self, state: str) -> None:
        self.state, self.error, self.traceback, self.changes = state, None, "", []
        self.begun, self.trainings, self.records = (
            dict(self.trials),
            {},
            {name: [] for name in self.trials},
        )
        self._stopping.clear()
        self._go.set()

    @property
    def active(self) -> bool:
        return self.state in ("running", "paused")

    @property
    def iteration(self) -> int:
        return max((training.iteration for training in self.trainings.values()), default=0)

    def set(self, **settings) -> None:
        """Change settings of the trials: those in ``live`` count from the next iteration, others from the next start."""
        with self._lock:
            for setting, value in settings.items():
                for name in self.moves[setting]:
                    self.trials[name] = replace(self.trials[name], **{setting: value})
                if self.active and self.iteration and setting in self.live:
                    earlier = [
                        change for change in self.changes if change[:2] != (self.iteration, setting)
                    ]
                    self.changes = [*earlier, (self.iteration, setting, value)]

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
        """Begin anew and go to the end in the foreground, or for so many iterations; errors are raised."""
        self.stop()
        self.wait()
        self._reset("running")
        if iterations:
            self.begun = {
                name: replace(trial, iterations=iterations) for name, trial in self.begun.items()
            }
        if any(trial.iterations is None for trial in self.begun.values()):
            raise ValueError(
                "iterations is None: in the foreground training would never end; say how many."
            )
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
            streams = {
                name: records_of(self.begun[name], training)
                for name, training in self.trainings.items()
            }
            while streams and not self._stopping.is_set():
                for name in list(streams):
                    self._rest_if_paused()
                    if self._stopping.is_set():
                        break
                    self._apply(self.trials[name], self.trainings[name])
                    with TURN:
                        record = next(streams[name], None)
                    if record is None:
                        del streams[name]
                        continue
                    self.records[name].append(record)
                    self.changed(new=record.accuracy is not None)
                    time.sleep(0.001)  # a lock is not fair: the next one in line may take it now
            self._end("stopped" if streams else "finished")
        except Exception as error:
            self.error, self.traceback = error, traceback.format_exc()
            self._end("failed")

    @staticmethod
    def _apply(trial: Trial, training) -> None:
        if trial.method == "CAT":
            training.sampler.alpha = trial.alpha
        training.attack = trial.attack()

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
        """For subclasses; called in the thread after every iteration, ``new`` if it was evaluated or the state is another."""

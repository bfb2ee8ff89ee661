"""Live controls: sliders, Start, Pause and Stop around trainings, and curves that grow while they run.

    panel = TrainingPanel({"AT": Trial(method="AT"), "CAT": Trial(method="CAT")})
    panel.display()     # widgets in JupyterLab; without a front end it trains to the end and leaves a picture

    panel.records["CAT"]        # list of Record, so far
    panel.trainings["CAT"]      # the Training itself, its model and sampler
    panel.set(alpha=0.8)        # what a slider does
    panel.start(); panel.pause(); panel.resume(); panel.stop(); panel.wait()    # what the buttons do

Training runs in a thread of its own and the cell returns at once, so the kernel stays free to hear the
buttons. The thread sets traits of widgets and nothing else: it prints nothing and leaves pyplot alone.
"""

import html
import io
import os
import threading
import time
import traceback
from dataclasses import replace

import ipywidgets as w
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data import CLASSES, data_root
from .figures import COLOURS, PALETTE
from .runs import Trial, build_training, records_of

LIVE, AT_START = ("alpha", "epsilon", "steps"), ("sampling_number", "dataset", "device")
CONTROLS = ("alpha", "epsilon", "sampling_number", "dataset", "device")
LABELS = {"alpha": "α, memory (Eq. 4)", "epsilon": "ε, attack strength", "steps": "steps of the attack",
          "sampling_number": "sampling number", "dataset": "data", "device": "device"}
AXES = {"iteration": "iterations", "passes": "forward-backward passes", "seconds": "seconds of training"}
_TURN = threading.Lock()  # torch's random state and matplotlib's caches belong to all threads: panels take turns
_SHOWN = []  # (panel, cell, execution of the cell)


def interactive() -> bool:
    """Whether somebody may be looking: a Jupyter kernel, and CATLIB_HEADLESS is not 1 (as papermill and nbval set it)."""
    return os.environ.get("CATLIB_HEADLESS") != "1" and hasattr(get_ipython(), "kernel")


class BackgroundTraining:
    """Trials that train in turns, one iteration each, in a thread that can be paused and stopped.

    ``state`` is "ready", "running", "paused", "stopped", "finished" or "failed"; then ``error`` says why, and
    records and trainings stay as they were. Iterations that have begun are ended: Stop and Pause take effect
    within one iteration.
    """

    def __init__(self, trials: Trial | dict[str, Trial]):
        self.trials = {trials.method: trials} if isinstance(trials, Trial) else dict(trials)
        # a setting in which the trials differ is what they compare: changing it moves the last trial only
        self.moves = {name: list(self.trials) if len({getattr(t, name) for t in self.trials.values()}) == 1
                      else list(self.trials)[-1:] for name in LIVE + AT_START}
        warm_up = any(trial.epsilon_warm_up for trial in self.trials.values())
        self.live = ("alpha",) if warm_up else LIVE  # a growing epsilon is set by the trial in every iteration
        self._lock, self._go, self._stopping, self._thread = threading.RLock(), threading.Event(), threading.Event(), None
        self._reset("ready")

    def _reset(self, state: str) -> None:
        self.state, self.error, self.traceback, self.changes = state, None, "", []
        self.begun, self.trainings, self.records = dict(self.trials), {}, {name: [] for name in self.trials}
        self._stopping.clear()
        self._go.set()

    @property
    def iteration(self) -> int:
        return max((training.iteration for training in self.trainings.values()), default=0)

    def set(self, **settings) -> None:
        """Change settings of the trials: those in ``live`` from the next iteration on, others from the next start."""
        with self._lock:
            for setting, value in settings.items():
                for name in self.moves[setting]:
                    self.trials[name] = replace(self.trials[name], **{setting: value})
                if setting in self.live and self.iteration and self.state in ("running", "paused"):
                    self.changes = [c for c in self.changes if c[:2] != (self.iteration, setting)] + [(self.iteration, setting, value)]

    def start(self) -> None:
        """Begin anew, in the background; does nothing while it is running or paused."""
        if self._stopping.is_set():
            self.wait()
        with self._lock:
            if self.state in ("running", "paused"):
                return
            self._reset("running")
            self._thread = threading.Thread(target=self._work, name="catlib-panel", daemon=True)
        self.changed(new=True)
        self._thread.start()

    def run(self) -> None:
        """Begin anew and go to the end in the foreground; an error is raised as usual."""
        self.stop()
        self.wait()
        self._reset("running")
        self._work()
        if self.error:
            raise self.error

    def pause(self) -> None:
        self._go.clear()

    def resume(self) -> None:
        self._go.set()

    def stop(self) -> None:
        if self.state in ("running", "paused"):
            self._stopping.set()
            self._go.set()

    def wait(self, timeout: float | None = None) -> None:
        """Until training has ended."""
        if self._thread:
            self._thread.join(timeout)

    def _work(self) -> None:
        try:
            for name, trial in self.begun.items():
                self.trainings[name] = build_training(trial)
            streams = {name: records_of(self.begun[name], training) for name, training in self.trainings.items()}
            while streams and not self._stopping.is_set():
                for name in list(streams):
                    self._pause_here()
                    if self._stopping.is_set():
                        break
                    training, trial = self.trainings[name], self.trials[name]
                    if trial.method == "CAT":
                        training.sampler.alpha = trial.alpha
                    training.attack = trial.attack()
                    with _TURN:
                        record = next(streams[name], None)
                    if record is None:
                        del streams[name]
                        continue
                    self.records[name].append(record)
                    self.changed(new=record.accuracy is not None)
                    time.sleep(0.001)  # locks are not fair: let other panels have their turn
            self._end("stopped" if streams else "finished")
        except Exception as error:
            self.error, self.traceback = error, traceback.format_exc()
            self._end("failed")

    def _pause_here(self) -> None:
        if not self._go.is_set():
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
        """Called after every iteration, ``new`` if it was evaluated or the state is another; for subclasses."""


class TrainingPanel(BackgroundTraining):
    """The controls and the picture of a :class:`BackgroundTraining`.

    Args:
        trials: one Trial, or several by name; "AT" and "CAT" have their colours. Short iterations and
            evaluations (evaluation_size, evaluate_every) make curves that grow before one's eyes.
        controls: which of alpha, epsilon, steps, sampling_number, dataset and device to offer. A setting in
            which the trials differ moves the last trial only, and the label says so.
        show_batch: also draw the last trial's batch and the histogram of its weights.
        title: above the controls.
    """

    def __init__(self, trials: Trial | dict[str, Trial], *, controls: tuple[str, ...] = CONTROLS, show_batch: bool = False,
                 title: str = ""):
        if unknown := [name for name in controls if name not in LABELS]:
            raise ValueError(f"controls has {', '.join(map(repr, unknown))}; allowed are {', '.join(LABELS)}.")
        super().__init__(trials)
        others = iter([colour for colour in PALETTE if colour not in {COLOURS.get(name) for name in self.trials}] * len(self.trials))
        self.colours = {name: COLOURS.get(name) or next(others) for name in self.trials}
        self.controls, self.show_batch, self.title, self.against, self.box = controls, show_batch, title, "iteration", None
        self._drawn, self._told, self._stale = 0.0, 0.0, False

    def display(self) -> None:
        """Show the controls; without a front end train to the end instead, and leave the picture."""
        if not interactive():
            self.run()
            if get_ipython():
                display(Image(self.picture(), alt=self.summary()))
            return
        parent = get_ipython().get_parent()
        cell, execution = parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id")
        for panel, its_cell, its_execution in _SHOWN:
            if panel is not self and cell == its_cell and execution != its_execution:
                panel.stop()  # its controls went away when the cell was run again
        _SHOWN.append((self, cell, execution))
        self.build()
        display(self.box)

    # ---- the picture ----

    def figure(self) -> Figure:
        """Accuracy and robust accuracy so far; with ``show_batch`` the last batch and the weights below."""
        rows = 1 + self.show_batch
        figure = Figure(figsize=(8.4, 2.8 * rows), dpi=110)
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, 2, squeeze=False)
        # margins by hand: to find them anew for every frame would take as long as drawing it
        figure.subplots_adjust(left=0.07, right=0.985, top=1 - 0.1 / rows, bottom=0.175 / rows, hspace=0.42, wspace=0.18)
        judge = next(iter(self.begun.values()))
        titles = {"accuracy": "Accuracy", "robust_accuracy": f"Robust accuracy (PGD-{judge.evaluation_steps}, ε = {judge.epsilon:.3g})"}
        for (what, title), curves in zip(titles.items(), axes[0], strict=True):
            for name, records in self.records.items():
                points = [(getattr(r, self.against), 100 * getattr(r, what)) for r in list(records) if r.accuracy is not None]
                curves.plot(*np.array(points or np.empty((0, 2))).T, "o-", color=self.colours[name], markersize=3.5, label=name)
            for iteration, setting, value in self.changes if self.against == "iteration" else ():
                curves.axvline(iteration, color="0.5", linestyle=":", linewidth=1)
                curves.text(iteration, 3, f" {LABELS[setting].split(',')[0]} {value:.3g}", color="0.35", fontsize=8)
            curves.set(xlabel=AXES[self.against], ylabel="% of test images", ylim=(0, 101))
            curves.set_xlim(left=0, right=None if self.iteration else 1)
            curves.set_title(title, loc="left")
            curves.grid(color="0.9")
        if len(self.records) > 1:
            axes[0, 0].legend(loc="lower right")
        if self.show_batch:
            self._draw_batch(*axes[1])
        return figure

    def _draw_batch(self, images, weights) -> None:
        """The last trial's batch as a contact sheet, and where the weights of all images lie."""
        name, training = next(reversed(self.trainings.items()), (None, None))
        images.axis("off")
        images.set_title("Drawn batch, largest information gain first", loc="left")
        weights.set(xlabel="w (Eq. 4)", ylabel="images")
        weights.set_title("Weights of all training images", loc="left")
        if training is None or training.batch is None:
            return
        across = 10
        order = training.batch.gain.argsort(descending=True)[:6 * across].cpu()
        sheet = training.batch.adversarial[order].float().cpu().permute(0, 2, 3, 1).numpy()
        sheet = np.pad(sheet, ((0, -len(sheet) % across), (1, 1), (1, 1), (0, 0)), constant_values=1)
        n, height, width, channels = sheet.shape
        sheet = sheet.reshape(n // across, across, height, width, channels).swapaxes(1, 2)
        images.imshow(sheet.reshape(n // across * height, across * width, channels).squeeze(), cmap="gray", vmin=0, vmax=1)
        if hasattr(training.sampler, "weights"):
            values, seen = training.sampler.weights.cpu().numpy(), training.seen.cpu().numpy()
            weights.hist([values[seen], values[~seen]], bins=40, stacked=True, color=[self.colours[name], "0.75"],
                         label=["drawn before", f"never drawn, w = 1: {(~seen).sum()}"])
            weights.legend(loc="upper left", fontsize=8)

    def picture(self) -> bytes:
        """The figure as PNG."""
        with _TURN:
            buffer = io.BytesIO()
            self.figure().canvas.print_png(buffer)
        return buffer.getvalue()

    def summary(self) -> str:
        """State and last evaluation in words, for those who do not see the picture."""
        last = {name: [r for r in records if r.accuracy is not None][-1:] for name, records in self.records.items()}
        return "; ".join([self.status()] + [f"{name}: accuracy {r.accuracy:.1%}, robust {r.robust_accuracy:.1%} at iteration {r.iteration}"
                                            for name, point in last.items() for r in point])

    def status(self) -> str:
        total = max((trial.iterations or 0 for trial in self.begun.values()), default=0)
        where = f"iteration {self.iteration}" + f" of {total}" * bool(total)
        if self._stopping.is_set():
            return f"stopping after this iteration · {where}"
        if self.state == "running" and not self.iteration:
            return "running · loading data and model"
        return {"ready": "ready · press Start", "running": f"running · {where}", "paused": f"paused · {where}",
                "stopped": f"stopped at {where}", "finished": f"finished · {where}", "failed": f"failed at {where}"}[self.state]

    # ---- the widgets ----

    def build(self) -> w.Widget:
        """Make the widgets, once; ``box`` holds them all."""
        if self.box:
            return self.box
        trial = next(reversed(self.trials.values()))
        wide, style = w.Layout(width="100%"), {"description_width": "150px"}
        self.start_button = w.Button(description="Start", button_style="success", icon="play", tooltip="Begin anew with the settings shown")
        self.pause_button = w.Button(icon="pause", tooltip="Halt before the next iteration, and go on from there")
        self.stop_button = w.Button(description="Stop", button_style="danger", icon="stop", tooltip="End after the current iteration")
        self.status_line, self.note, self.readings, self.error_box = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.curves = w.Image(format="png", layout=w.Layout(width="100%", max_width="924px"))
        self.start_button.on_click(lambda _: self.start())
        self.pause_button.on_click(lambda _: self.resume() if self.state == "paused" else self.pause())
        self.stop_button.on_click(lambda _: (self.stop(), self.changed(new=True)))

        def slider(kind, name, low, high, step, **more):
            return kind(getattr(trial, name), min=low, max=max(high, 2 * getattr(trial, name)), step=step, continuous_update=False, **more)

        numbers = sorted({16, 32, 64, 128, 256, 512, 1024, trial.sampling_number})
        data = [name for name in CLASSES if name in ("digits", trial.dataset) or (data_root() / f"{name}.npz").exists()]
        devices = ["auto", "cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
        make = {"alpha": lambda: w.FloatSlider(trial.alpha, min=0, max=1, step=0.05, continuous_update=False),
                "epsilon": lambda: slider(w.FloatSlider, "epsilon", 0.0, 0.5, 0.005, readout_format=".3f"),
                "steps": lambda: slider(w.IntSlider, "steps", 1, 20, 1),
                "sampling_number": lambda: w.SelectionSlider(options=numbers, value=trial.sampling_number, continuous_update=False),
                "dataset": lambda: w.Dropdown(options=data, value=trial.dataset),
                "device": lambda: w.Dropdown(options=sorted({*devices, trial.device}), value=trial.device)}
        self.inputs = {}
        for name in self.controls:
            control = self.inputs[name] = make[name]()
            only = "" if len(self.moves[name]) == len(self.trials) else f" of {self.moves[name][0]}"
            control.description, control.style, control.layout = LABELS[name] + only, style, wide
            control.observe(lambda change, name=name: self._moved(name, change["new"]), "value")
        self.inputs["against"] = w.Dropdown(options=[(text, name) for name, text in AXES.items()], description="curves against",
                                            style=style, layout=wide)
        self.inputs["against"].observe(lambda change: self._moved("against", change["new"]), "value")
        groups = [("Takes effect at the next iteration", self.live), ("Takes effect at the next Start", AT_START + LIVE),
                  ("The picture", ("against",))]
        columns, placed = [], set()
        for title, names in groups:
            found = [name for name in names if name in self.inputs and name not in placed]
            placed.update(found)
            if found:
                columns.append(w.VBox([w.HTML(f"<b>{title}</b>")] + [self.inputs[name] for name in found],
                                      layout=w.Layout(flex="1 1 290px", min_width="280px", max_width="420px", margin="0 16px 0 0")))
        named = {"start": self.start_button, "pause": self.pause_button, "stop": self.stop_button, "status": self.status_line,
                 "note": self.note, "readings": self.readings, "error": self.error_box, "curves": self.curves, **self.inputs}
        for name, widget in named.items():
            widget.add_class(f"catlib-{name.replace('_', '-')}")
        title = [w.HTML(f"<h3 style='margin:4px 0'>{html.escape(self.title)}</h3>")] if self.title else []
        self.box = w.VBox([*title, w.HBox(columns, layout=w.Layout(flex_flow="row wrap")),
                           w.HBox([self.start_button, self.pause_button, self.stop_button, self.status_line],
                                  layout=w.Layout(flex_flow="row wrap", align_items="center", margin="8px 0")),
                           self.note, self.error_box, self.curves, self.readings], layout=w.Layout(max_width="960px"))
        self.box.add_class("catlib-panel")
        self.changed(new=True)
        return self.box

    def _moved(self, name: str, value) -> None:
        if name == "against":
            self.against = value
        else:
            self.set(**{name: value})
        self.changed(new=name == "against")

    def changed(self, new: bool) -> None:
        """Bring the widgets up to date, a few times a second at most; at once where training does not go on."""
        if self.box is None:
            return
        moving, now = self.state == "running", time.monotonic()
        self._stale |= new or self.show_batch
        if moving and now - self._told < 0.2:
            return
        self._told = now
        waits = [LABELS[name] for name in self.controls if name not in self.live and self.state in ("running", "paused")
                 and any(getattr(self.trials[t], name) != getattr(self.begun[t], name) for t in self.trials)]
        self.note.value = f"<i>{' and '.join(waits)}: from the next Start on</i>" if waits else ""
        self.status_line.value = f"<span style='margin-left:12px'>{html.escape(self.status())}</span>"
        active = self.state in ("running", "paused")
        self.start_button.disabled, self.stop_button.disabled, self.pause_button.disabled = active, not active, not active
        self.pause_button.description, self.pause_button.icon = ("Resume", "play") if self.state == "paused" else ("Pause", "pause")
        self.error_box.value = "" if self.error is None else (
            f"<div role='alert'><b>Training failed at iteration {self.iteration}: {type(self.error).__name__}.</b> "
            f"{html.escape(str(self.error))} <br>Records and models so far are kept in the panel.<details><summary>Traceback</summary>"
            f"<pre>{html.escape(self.traceback)}</pre></details></div>")
        if self._stale and (not moving or now >= self._drawn):
            self._stale = False
            self.curves.value, self.readings.value = self.picture(), self._table()
            # drawing may take a fifth of the time
            self._drawn = time.monotonic() + max(0.4, 4 * (time.monotonic() - now))

    def _table(self) -> str:
        rows = []
        for name, records in self.records.items():
            points = [r for r in list(records) if r.accuracy is not None]
            values = [f"{points[-1].iteration}", f"{points[-1].accuracy:.1%}", f"{points[-1].robust_accuracy:.1%}", f"{points[-1].passes:,}",
                      f"{points[-1].seconds:.1f}"] if points else ["–"] * 5
            rows.append(f"<tr data-points='{len(points)}'><th style='color:{self.colours[name]};text-align:left'>{html.escape(name)}</th>"
                        + "".join(f"<td style='text-align:right;padding:0 12px'>{value}</td>" for value in values) + "</tr>")
        heads = ("last evaluation", "iteration", "accuracy", "robust accuracy", "passes", "seconds")
        return f"<table><tr>{''.join(f'<th style=padding-right:12px>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"

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
import time

import ipywidgets as w
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ..data import CLASSES, data_root
from .background import TURN, BackgroundTraining
from .figures import COLOURS, PALETTE
from .runs import Trial

CONTROLS = ("alpha", "epsilon", "sampling_number", "dataset", "device")
LABELS = {
    "alpha": "α, memory (Eq. 4)",
    "epsilon": "ε, attack strength",
    "steps": "steps of the attack",
    "sampling_number": "sampling number",
    "dataset": "data",
    "device": "device",
}
AXES = {
    "iteration": "iterations",
    "passes": "forward-backward passes",
    "seconds": "seconds of training",
}
ACROSS, DOWN = 10, 6  # images in the contact sheet
_SHOWN = []  # (panel, cell, execution of the cell)


def interactive() -> bool:
    """Whether somebody may be looking: in a Jupyter kernel, and CATLIB_HEADLESS is not 1."""
    return os.environ.get("CATLIB_HEADLESS") != "1" and hasattr(get_ipython(), "kernel")


class TrainingPanel(BackgroundTraining):
    """Controls and a picture for trials that train side by side.

    Args:
        trials: one Trial, or several by name; "AT" and "CAT" have their colours. Quick evaluations
            (evaluation_size, evaluate_every) make curves that grow before one's eyes.
        controls: which of alpha, epsilon, steps, sampling_number, dataset and device to offer. A setting in
            which the trials differ moves the last trial only, and the label says so.
        show_batch: also draw the last trial's batch and the histogram of its weights.
        title: above the controls.
    """

    def __init__(
        self,
        trials: Trial | dict[str, Trial],
        *,
        controls: tuple[str, ...] = CONTROLS,
        show_batch: bool = False,
        title: str = "",
    ):
        if unknown := [name for name in controls if name not in LABELS]:
            raise ValueError(
                f"controls has {', '.join(map(repr, unknown))}; allowed are {', '.join(LABELS)}."
            )
        super().__init__(trials)
        spare = iter(PALETTE[2:] * len(self.trials))  # AT's and CAT's colours are theirs alone
        self.colours = {name: COLOURS.get(name) or next(spare) for name in self.trials}
        self._first = dict(self.trials)
        self.controls, self.show_batch, self.title, self.against, self.box = (
            controls,
            show_batch,
            title,
            "iteration",
            None,
        )
        self._next_words = self._next_picture = 0.0
        self._outdated = False

    def display(self, headless_iterations: int | None = None) -> None:
        """Show the controls. Without a front end train to the end, or for so many iterations, and leave the picture."""
        if not interactive():
            self.run(headless_iterations)
            if get_ipython():
                display(Image(self.picture(), alt=self.summary()))
            return
        request = get_ipython().get_parent()
        cell, execution = (
            request.get("metadata", {}).get("cellId"),
            request.get("header", {}).get("msg_id"),
        )
        for panel, its_cell, its_execution in _SHOWN:
            if panel is not self and cell == its_cell and execution != its_execution:
                panel.stop()  # its controls went away when the cell was run again
        _SHOWN.append((self, cell, execution))
        display(self.widgets())

    # ---- the picture ----

    def figure(self) -> Figure:
        """Accuracy and robust accuracy so far; with ``show_batch`` the last batch and the weights below."""
        rows = 1 + self.show_batch
        figure = Figure(figsize=(8.4, 2.75 * rows), dpi=110, layout="none")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, 2, squeeze=False)
        # margins by hand: to find them anew for every frame would take as long as drawing it
        figure.subplots_adjust(
            left=0.045,
            right=0.985,
            top=1 - 0.1 / rows,
            bottom=0.175 / rows,
            hspace=0.42,
            wspace=0.12,
        )
        trial = next(iter(self.begun.values()))
        judge = f"PGD-{trial.evaluation_steps}, ε = {trial.epsilon:.3g}"
        self._draw_curves(axes[0, 0], "accuracy", "Accuracy (% of test images)")
        self._draw_curves(axes[0, 1], "robust_accuracy", f"Robust accuracy (%, {judge})")
        if len(self.records) > 1:
            axes[0, 1].legend(loc="lower right", frameon=True, edgecolor="none")
        if self.show_batch:
            name, training = next(reversed(self.trainings.items()), (None, None))
            self._draw_batch(axes[1, 0], training)
            self._draw_weights(axes[1, 1], training, self.colours.get(name))
        return figure

    def _draw_curves(self, axes: Axes, what: str, title: str) -> None:
        for name, records in self.evaluated().items():
            points = [(getattr(r, self.against), 100 * getattr(r, what)) for r in records]
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, "o-", color=self.colours[name], markersize=3.5, label=self.label(name))
        for iteration, setting, value in self.changes if self.against == "iteration" else ():
            axes.axvline(iteration, color="0.5", linestyle=":", linewidth=1)
            axes.text(
                iteration,
                2,
                f" {LABELS[setting].split(',')[0]} {value:.3g}",
                color="0.35",
                fontsize=8,
            )
        axes.set(xlabel=AXES[self.against], ylim=(0, 101))
        axes.set_xlim(left=0, right=None if self.iteration else 1)
        if self.against == "passes":
            axes.xaxis.set_major_formatter(
                EngFormatter(sep="")
            )  # 60k, not 60000, which the margin would cut
        axes.set_title(title, loc="left")
        axes.grid(color="0.9")

    @staticmethod
    def _draw_batch(axes: Axes, training) -> None:
        axes.axis("off")
        axes.set_anchor("W")
        axes.set_title("Drawn batch, largest information gain first", loc="left")
        if training and training.batch:
            order = training.batch.gain.argsort(descending=True)[: ACROSS * DOWN]
            sheet = training.batch.adversarial[order].float().cpu().permute(0, 2, 3, 1).numpy()
            sheet = np.pad(
                sheet, ((0, -len(sheet) % ACROSS), (1, 1), (1, 1), (0, 0)), constant_values=1
            )
            n, height, width, channels = sheet.shape
            sheet = sheet.reshape(n // ACROSS, ACROSS, height, width, channels).swapaxes(1, 2)
            sheet = sheet.reshape(n // ACROSS * height, ACROSS * width, channels).squeeze()
            axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")

    @staticmethod
    def _draw_weights(axes: Axes, training, colour: str) -> None:
        axes.set_title("Weights w of all training images (Eq. 4)", loc="left")
        axes.set_xlabel("w")
        if hasattr(training, "sampler") and hasattr(training.sampler, "weights"):
            weights, seen = training.sampler.weights.cpu().numpy(), training.seen.cpu().numpy()
            axes.hist(
                [weights[seen], weights[~seen]],
                bins=40,
                stacked=True,
                color=[colour, "0.7"],
                label=[f"drawn before: {seen.sum()}", f"never drawn, w = 1: {(~seen).sum()}"],
            )
            axes.legend(loc="upper left", fontsize=8)

    def picture(self) -> bytes:
        """The figure as PNG."""
        buffer = io.BytesIO()
        with TURN:
            self.figure().canvas.print_png(buffer)
        return buffer.getvalue()

    # ---- the words ----

    def label(self, name: str) -> str:
        """The trial's name, and what was moved for it alone: its name may not be true any more."""
        moved = [
            f"{LABELS[setting]} {getattr(self.begun[name], setting)}"
            for setting, names in self.moves.items()
            if names != list(self.trials)
            and getattr(self.begun[name], setting) != getattr(self._first[name], setting)
        ]
        return f"{name} (now {', '.join(moved)})" if moved else name

    def evaluated(self) -> dict[str, list]:
        """The records that were evaluated, by name."""
        return {
            name: [r for r in list(records) if r.accuracy is not None]
            for name, records in self.records.items()
        }

    def summary(self) -> str:
        """State and last evaluation in words, for those who do not see the picture."""
        return "; ".join(
            [
                self.status(),
                *(
                    f"{name}: accuracy {r.accuracy:.1%}, robust accuracy {r.robust_accuracy:.1%}"
                    for name, records in self.evaluated().items()
                    for r in records[-1:]
                ),
            ]
        )

    def status(self) -> str:
        total = max((trial.iterations or 0 for trial in self.begun.values()), default=0)
        where = f"iteration {self.iteration}" + f" of {total}" * bool(total)
        if self._stopping.is_set():
            return f"stopping after {where}"
        if self.state == "running" and not self.iteration:
            return "running · preparing data and model"
        return {
            "ready": "ready · press Start",
            "stopped": f"stopped at {where}",
            "failed": f"failed at {where}",
        }.get(self.state, f"{self.state} · {where}")

    def _waiting(self) -> str:
        waiting = [
            LABELS[name]
            for name in self.controls
            if self.active
            and name not in self.live
            and any(
                getattr(self.trials[trial], name) != getattr(self.begun[trial], name)
                for trial in self.trials
            )
        ]
        return f"<i>From the next Start on: {', '.join(waiting)}.</i>" if waiting else ""

    def _failure(self) -> str:
        if self.error is None:
            return ""
        return (
            f"<div role='alert'><b>Training failed at iteration {self.iteration}: {type(self.error).__name__}.</b> "
            f"{html.escape(str(self.error))}<br>What was trained so far is kept in <code>records</code> and "
            f"<code>trainings</code>.<details><summary>Traceback</summary><pre>{html.escape(self.traceback)}</pre></details></div>"
        )

    def _table(self) -> str:
        heads = ("last evaluation", "iteration", "accuracy", "robust accuracy", "passes", "seconds")
        rows = "".join(f"<th style='padding:0 12px 0 0'>{head}</th>" for head in heads)
        for name, records in self.evaluated().items():
            values = [
                f"<th style='color:{self.colours[name]};text-align:left'>{html.escape(self.label(name))}</th>"
            ]
            for r in records[-1:]:
                numbers = (
                    r.iteration,
                    f"{r.accuracy:.1%}",
                    f"{r.robust_accuracy:.1%}",
                    f"{r.passes:,}",
                    f"{r.seconds:.1f}",
                )
                values += [
                    f"<td style='text-align:right;padding:0 12px'>{number}</td>"
                    for number in numbers
                ]
            rows += f"<tr data-points='{len(records)}'>{''.join(values)}</tr>"
        return f"<table style='line-height:1.5'>{rows}</table>"

    # ---- the widgets ----

    def widgets(self) -> w.Widget:
        """All widgets in one box, made once; each has the class "catlib-" and its name."""
        if self.box:
            return self.box
        self.start_button = w.Button(
            description="Start",
            button_style="success",
            icon="play",
            tooltip="Begin anew with the settings shown",
        )
        self.pause_button = w.Button(tooltip="Halt before the next iteration; go on from there")
        self.stop_button = w.Button(
            description="Stop",
            button_style="danger",
            icon="stop",
            tooltip="End with the current iteration",
        )
        self.status_line, self.note, self.readings, self.failure = (
            w.HTML(),
            w.HTML(),
            w.HTML(),
            w.HTML(),
        )
        self.curves = w.Image(
            format="png", layout=w.Layout(width="100%", max_width="924px", margin="0")
        )
        self.inputs = self._inputs()
        self.start_button.on_click(lambda _: self.start())
        self.pause_button.on_click(
            lambda _: self.resume() if self.state == "paused" else self.pause()
        )
        self.stop_button.on_click(lambda _: self.stop() or self._tell())
        named = {
            "start": self.start_button,
            "pause": self.pause_button,
            "stop": self.stop_button,
            "status": self.status_line,
            "note": self.note,
            "readings": self.readings,
            "error": self.failure,
            "curves": self.curves,
            **self.inputs,
        }
        for name, widget in named.items():
            widget.add_class(f"catlib-{name.replace('_', '-')}")
        columns = []
        for heading, names in (
            ("next iteration", self.live),
            ("next Start", [n for n in LABELS if n not in self.live]),
        ):
            if found := [self.inputs[name] for name in names if name in self.inputs]:
                columns.append(
                    w.VBox(
                        [w.HTML(f"<b>Takes effect at the {heading}</b>"), *found],
                        layout=w.Layout(flex="1 1 400px", max_width="460px"),
                    )
                )
        row = w.Layout(flex_flow="row wrap", align_items="center")
        self.box = w.VBox(
            [w.HTML(f"<h3 style='margin:4px 0'>{html.escape(self.title)}</h3>")] * bool(self.title)
            + [
                w.HBox(columns, layout=w.Layout(flex_flow="row wrap")),
                w.HBox(
                    [self.start_button, self.pause_button, self.stop_button, self.status_line],
                    layout=row,
                ),
                self.note,
                self.failure,
                self.curves,
                w.HBox([self.readings, self.inputs["against"]], layout=row),
            ]
        )
        self.box.layout.max_width = "940px"
        self.box.add_class("catlib-panel")
        self._tell()
        self._draw()
        return self.box

    def _inputs(self) -> dict[str, w.Widget]:
        trial = next(reversed(self.trials.values()))
        numbers = sorted({16, 32, 64, 128, 256, 512, 1024, trial.sampling_number})
        data = [
            name
            for name in CLASSES
            if name in ("digits", trial.dataset) or (data_root() / f"{name}.npz").exists()
        ]
        devices = [
            "auto",
            "cpu",
            *["cuda"] * torch.cuda.is_available(),
            *["mps"] * torch.backends.mps.is_available(),
        ]
        make = {
            "alpha": lambda: w.FloatSlider(trial.alpha, min=0, max=1, step=0.05),
            "epsilon": lambda: w.FloatSlider(
                trial.epsilon,
                min=0,
                max=max(0.5, 2 * trial.epsilon),
                step=0.005,
                readout_format=".3f",
            ),
            "steps": lambda: w.IntSlider(trial.steps, min=1, max=max(20, trial.steps)),
            "sampling_number": lambda: w.SelectionSlider(
                options=numbers, value=trial.sampling_number
            ),
            "dataset": lambda: w.Dropdown(options=data, value=trial.dataset),
            "device": lambda: w.Dropdown(
                options=sorted({*devices, trial.device}), value=trial.device
            ),
        }
        inputs = {name: make[name]() for name in self.controls}
        inputs["against"] = w.Dropdown(
            options=[(text, name) for name, text in AXES.items()],
            description="curves against",
            style={"description_width": "initial"},
        )
        for name, control in inputs.items():
            if name in LABELS:
                only = self.moves[name] != list(self.trials)
                control.description = LABELS[name] + f" of {self.moves[name][0]}" * only
                control.layout.width, control.style.description_width = (
                    "97%",
                    "210px" if only else "130px",
                )
                if hasattr(control, "continuous_update"):
                    control.continuous_update = False  # one change when the handle is let go
            control.observe(lambda change, name=name: self._moved(name, change["new"]), "value")
        return inputs

    def _moved(self, name: str, value) -> None:
        if name == "against":
            self.against = value
            if not self.active:
                self._draw()
        else:
            self.set(**{name: value})
            self._tell()

    def changed(self, new: bool) -> None:
        """Bring the widgets up to date: words five times a second at most, the picture when there is something new."""
        if self.box is None:
            return
        self._outdated |= new or self.show_batch
        now, moving = time.monotonic(), self.state == "running"
        if not moving or now >= self._next_words:
            self._tell()
            self._next_words = now + 0.2
        if self._outdated and (not moving or now >= self._next_picture):
            self._draw()
            drawn = time.monotonic()
            self._next_picture = drawn + max(
                0.4, 4 * (drawn - now)
            )  # drawing may take a fifth of the time

    def _tell(self) -> None:
        with self._lock:  # what is written last is what is true
            self.status_line.value = (
                f"<span style='margin-left:12px'>{html.escape(self.status())}</span>"
            )
            self.note.value, self.failure.value = self._waiting(), self._failure()
            self.start_button.disabled = self.active
            self.stop_button.disabled = self.pause_button.disabled = not self.active
            paused = self.state == "paused"
            self.pause_button.description, self.pause_button.icon = (
                ("Resume", "play") if paused else ("Pause", "pause")
            )

    def _draw(self) -> None:
        self._outdated = False
        self.curves.value, self.readings.value = self.picture(), self._table()

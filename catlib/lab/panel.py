"""Live controls: sliders and buttons around trainings, and curves that grow while they run.

    panel = TrainingPanel({"AT": Trial(method="AT"), "CAT": Trial(method="CAT")})
    panel.display()     # widgets in JupyterLab; without a front end it trains to the end,
                        # and leaves a picture

    panel.records["CAT"]        # list of Record, so far
    panel.trainings["CAT"]      # the Training itself, its model and sampler
    panel.set(alpha=0.8)        # what a slider does
    # what the buttons do
    panel.start(); panel.pause(); panel.resume(); panel.stop(); panel.wait()

Training runs in a thread of its own and the cell returns at once, so the kernel stays free to hear
the buttons. The thread sets traits of widgets and nothing else: it prints nothing and leaves pyplot
alone.
"""

import html
import io
import os
import time
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd
import PIL.Image
import torch
from IPython import get_ipython
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.ticker import EngFormatter

from ..data import CLASSES, is_here
from ..training import Record, Training
from .background import TURN, BackgroundTraining
from .compare import COSTS
from .figures import COLOURS, PALETTE, small_png
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
READINGS = ("iteration", "accuracy", "robust accuracy", "passes", "seconds")
ACROSS = 10  # images in a row of the contact sheet
DOWN = 6  # rows of it

# (panel, cell, execution of the cell) of every panel that was displayed
_SHOWN: list[tuple["TrainingPanel", str | None, str | None]] = []


def interactive() -> bool:
    """Whether somebody may be looking at this cell and can move its widgets.

    JupyterLab, Notebook 7 and VS Code name the cell when they ask the kernel to run it; papermill,
    nbclient and nbconvert do not. Colab is known by its shell. Elsewhere the environment variables
    decide: CATLIB_LIVE=1 means yes. CATLIB_HEADLESS=1 means no, and comes first.
    """
    shell = get_ipython()
    if os.environ.get("CATLIB_HEADLESS") == "1" or not hasattr(shell, "kernel"):
        return False
    in_colab = type(shell).__module__.startswith("google.colab")
    return os.environ.get("CATLIB_LIVE") == "1" or in_colab or running_cell() is not None


def running_cell() -> str | None:
    """The name that the front end gave to the cell that runs; None if it gave none."""
    request = get_ipython().get_parent()
    return request.get("metadata", {}).get("cellId")


class TrainingPanel(BackgroundTraining):
    """Controls and a picture for trials that train side by side.

    Args:
        trials: one Trial, or several by name; "AT" and "CAT" have their colours. Quick evaluations
            (evaluation_size, evaluate_every) make curves that grow before one's eyes.
        controls: which of alpha, epsilon, steps, sampling_number, dataset and device to offer. A
            setting in which the trials differ moves the last trial only, and the label says so.
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
        unknown = [name for name in controls if name not in LABELS]
        if unknown:
            raise ValueError(
                f"controls has {', '.join(map(repr, unknown))}; allowed are {', '.join(LABELS)}."
            )
        super().__init__(trials)
        spare = iter(PALETTE[2:] * len(self.trials))  # AT's and CAT's colours are theirs alone
        self.colours = {name: COLOURS.get(name) or next(spare) for name in self.trials}
        self.controls = controls
        self.show_batch = show_batch
        self.title = title
        self.against = "iteration"  # what the curves are drawn against
        self.box: w.VBox | None = None
        self._first = dict(self.trials)
        self._outdated = False  # whether there is more to draw than the picture shows
        self._next_words = 0.0  # when the words may be renewed, by time.monotonic()
        self._next_picture = 0.0

    def display(self, headless_iterations: int | None = None) -> None:
        """Show the controls.

        Without a front end train to the end, or for so many iterations, and leave the picture.
        """
        if not interactive():
            self.run(headless_iterations)
            if get_ipython():
                drawn = PIL.Image.open(io.BytesIO(self.picture()))
                display(Image(small_png(drawn), alt=self.summary()))
            return
        cell = running_cell()
        execution = get_ipython().get_parent().get("header", {}).get("msg_id")
        for panel, its_cell, its_execution in _SHOWN:
            if panel is not self and cell == its_cell and execution != its_execution:
                panel.stop()  # its controls went away when the cell was run again
        _SHOWN.append((self, cell, execution))
        display(self.widgets())

    # ---- the picture ----

    def figure(self) -> Figure:
        """The curves so far; with ``show_batch`` the last batch and the weights below them."""
        rows = 2 if self.show_batch else 1
        # the style asks for constrained layout, which does not allow margins by hand
        by_hand = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
        figure = Figure(figsize=(8.4, 2.75 * rows), dpi=110, layout=by_hand)
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
            last = list(self.trials)[-1]
            training = self.trainings.get(last)
            self._draw_batch(axes[1, 0], training)
            self._draw_weights(axes[1, 1], training, self.colours[last])
        return figure

    def _draw_curves(self, axes: Axes, what: str, title: str) -> None:
        for name, records in self.evaluated().items():
            x = [getattr(record, self.against) for record in records]
            y = [100 * getattr(record, what) for record in records]
            axes.plot(x, y, "o-", color=self.colours[name], markersize=3.5, label=self.label(name))
        if self.against == "iteration":
            self._mark_changes(axes)
        axes.set(xlabel=COSTS[self.against], ylim=(0, 101))
        axes.set_xlim(left=0, right=None if self.iteration else 1)
        if self.against == "passes":
            # 60k, not 60000, which the margin would cut
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(title, loc="left")
        axes.grid(color="0.9")

    def _mark_changes(self, axes: Axes) -> None:
        """A dotted line at each iteration in which a setting was changed, and what it cost."""
        for iteration, setting, value in self.changes:
            text = f" {LABELS[setting].split(',')[0]} {value:.3g}"
            text += self._change_of_cost(iteration, self.moves[setting][-1])
            axes.axvline(iteration, color="0.5", linestyle=":", linewidth=1)
            axes.text(iteration, 2, text, color="0.35", fontsize=8)

    def _change_of_cost(self, iteration: int, name: str) -> str:
        """What a change in this iteration did to the passes of an iteration, in words.

        Empty if an iteration costs as much as before, or as long as this is not known.
        """
        passes = [0, *(record.passes for record in list(self.records[name]))]
        # while a setting is moved, the trial may be one iteration behind or ahead
        before = max(1, iteration - 1)
        after = iteration + 2
        if len(passes) <= after:
            return ""
        old = passes[before] - passes[before - 1]
        new = passes[after] - passes[after - 1]
        if new == old:
            return ""
        return f"\n {new / old:.3g} × the passes\n"

    @staticmethod
    def _draw_batch(axes: Axes, training: Training | None) -> None:
        axes.axis("off")
        axes.set_anchor("W")
        axes.set_title("Drawn batch, largest information gain first", loc="left")
        if training is None or training.batch is None:
            return
        order = training.batch.gain.argsort(descending=True)[: ACROSS * DOWN]
        images = training.batch.adversarial[order].float().cpu().permute(0, 2, 3, 1).numpy()
        axes.imshow(_sheet(images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")

    @staticmethod
    def _draw_weights(axes: Axes, training: Training | None, colour: str) -> None:
        axes.set_title("Weights w of all training images (Eq. 4)", loc="left")
        axes.set_xlabel("w")
        if training is None or not hasattr(training.sampler, "weights"):
            return
        weights = training.sampler.weights.cpu().numpy()
        seen = training.seen.cpu().numpy()
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
            FigureCanvasAgg(self.figure()).print_png(buffer)
        return buffer.getvalue()

    # ---- the words ----

    def label(self, name: str) -> str:
        """The trial's name and, where a setting was moved for it alone, what that is now."""
        before = self._first[name]
        now = self.begun[name]
        moved = []
        for setting, names in self.moves.items():
            value = getattr(now, setting)
            if names != list(self.trials) and value != getattr(before, setting):
                moved.append(f"{LABELS[setting]} {value}")
        if moved:
            return f"{name} (now {', '.join(moved)})"
        return name

    def evaluated(self) -> dict[str, list[Record]]:
        """The records that were evaluated, by name."""
        return {
            name: [record for record in list(records) if record.accuracy is not None]
            for name, records in self.records.items()
        }

    def summary(self) -> str:
        """State and last evaluation in words, for those who do not see the picture."""
        parts = [self.status()]
        for name, records in self.evaluated().items():
            if records:
                last = records[-1]
                accuracies = (
                    f"accuracy {last.accuracy:.1%}, robust accuracy {last.robust_accuracy:.1%}"
                )
                parts.append(f"{name}: {accuracies}")
        return "; ".join(parts)

    def status(self) -> str:
        total = max((trial.iterations or 0 for trial in self.begun.values()), default=0)
        where = f"iteration {self.iteration}"
        if total:
            where += f" of {total}"
        if self._stopping.is_set():
            return f"stopping after {where}"
        if self.state == "running" and not self.iteration:
            return "running · preparing data and model"
        if self.state == "ready":
            return "ready · press Start"
        if self.state in ("stopped", "failed"):
            return f"{self.state} at {where}"
        return f"{self.state} · {where}"

    def _waiting(self) -> str:
        """Which settings were changed and wait for the next start, as HTML."""
        if not self.active:
            return ""
        waiting = [
            LABELS[setting]
            for setting in self.controls
            if setting not in self.live and self._differs_from_begun(setting)
        ]
        if not waiting:
            return ""
        return f"<i>From the next Start on: {', '.join(waiting)}.</i>"

    def _differs_from_begun(self, setting: str) -> bool:
        return any(
            getattr(self.trials[name], setting) != getattr(self.begun[name], setting)
            for name in self.trials
        )

    def _failure(self) -> str:
        """What went wrong, as HTML."""
        if self.error is None:
            return ""
        kind = type(self.error).__name__
        return (
            f"<div role='alert'><b>Training failed at iteration {self.iteration}: {kind}.</b> "
            f"{html.escape(str(self.error))}<br>What was trained so far is kept in "
            "<code>records</code> and <code>trainings</code>.<details><summary>Traceback</summary>"
            f"<pre>{html.escape(self.traceback)}</pre></details></div>"
        )

    def _table(self) -> str:
        """The last evaluation of each trial, as HTML."""
        evaluated = self.evaluated()
        table = pd.DataFrame(
            [_reading(records) for records in evaluated.values()],
            index=[self.label(name) for name in evaluated],
            columns=pd.Index(READINGS, name="last evaluation"),
        )
        colours = [f"color: {self.colours[name]}" for name in evaluated]
        styled = table.style.format_index(escape="html")
        styled = styled.apply_index(lambda labels: colours)
        styled = styled.set_properties(**{"text-align": "right", "padding": "0 12px"})
        points = sum(len(records) for records in evaluated.values())
        return f"<div data-points='{points}'>{styled.to_html()}</div>"

    # ---- the widgets ----

    def widgets(self) -> w.Widget:
        """All widgets in one box, made once; each has the class "catlib-" and its name."""
        if self.box is not None:
            return self.box
        self._make_buttons()
        self.status_line = w.HTML()
        self.note = w.HTML()
        self.readings = w.HTML()
        self.failure = w.HTML()
        self.curves = w.Image(
            format="png", layout=w.Layout(width="100%", max_width="924px", margin="0")
        )
        self.inputs = self._inputs()
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
        self.box = self._arranged()
        self._tell()
        self._draw()
        return self.box

    def _make_buttons(self) -> None:
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
        self.start_button.on_click(lambda _: self.start())
        self.pause_button.on_click(lambda _: self._pause_clicked())
        self.stop_button.on_click(lambda _: self._stop_clicked())

    def _pause_clicked(self) -> None:
        if self.state == "paused":
            self.resume()
        else:
            self.pause()

    def _stop_clicked(self) -> None:
        self.stop()
        self._tell()

    def _arranged(self) -> w.VBox:
        """The widgets in their places, from top to bottom."""
        waiting = tuple(name for name in LABELS if name not in self.live)
        columns = [
            *self._column("next iteration", self.live),
            *self._column("next Start", waiting),
        ]
        row = w.Layout(flex_flow="row wrap", align_items="center")
        buttons = [self.start_button, self.pause_button, self.stop_button, self.status_line]
        parts = [
            w.HBox(columns, layout=w.Layout(flex_flow="row wrap")),
            w.HBox(buttons, layout=row),
            self.note,
            self.failure,
            self.curves,
            w.HBox([self.readings, self.inputs["against"]], layout=row),
        ]
        if self.title:
            parts.insert(0, w.HTML(f"<h3 style='margin:4px 0'>{html.escape(self.title)}</h3>"))
        box = w.VBox(parts)
        box.layout.max_width = "940px"
        box.add_class("catlib-panel")
        return box

    def _column(self, moment: str, names: tuple[str, ...]) -> list[w.Widget]:
        """The inputs of these names under a heading; nothing if the panel offers none of them."""
        offered = [self.inputs[name] for name in names if name in self.inputs]
        if not offered:
            return []
        heading = w.HTML(f"<b>Takes effect at the {moment}</b>")
        return [
            w.VBox([heading, *offered], layout=w.Layout(flex="1 1 400px", max_width="460px")),
        ]

    def _inputs(self) -> dict[str, w.Widget]:
        """The controls that the panel offers and the choice of the curves' axis, by name."""
        trial = next(reversed(self.trials.values()))
        inputs = {}
        for name in self.controls:
            control = _control(name, trial)
            self._describe(name, control)
            inputs[name] = control
        inputs["against"] = w.Dropdown(
            options=[(text, name) for name, text in COSTS.items()],
            description="curves against",
            style={"description_width": "initial"},
        )
        for name, control in inputs.items():
            control.observe(lambda change, name=name: self._moved(name, change["new"]), "value")
        return inputs

    def _describe(self, name: str, control: w.Widget) -> None:
        """Label a control; where it moves one trial only, the label says which."""
        control.description = LABELS[name]
        control.style.description_width = "130px"
        if self.moves[name] != list(self.trials):
            control.description += f" of {self.moves[name][0]}"
            control.style.description_width = "210px"
        control.layout.width = "97%"
        if hasattr(control, "continuous_update"):
            control.continuous_update = False  # one change when the handle is let go

    def _moved(self, name: str, value: Any) -> None:
        if name == "against":
            self.against = value
            if not self.active:
                self._draw()
        else:
            self.set(**{name: value})
            self._tell()

    def changed(self, new: bool) -> None:
        """Bring the widgets up to date.

        The words are renewed five times a second at most, the picture when there is something new
        and drawing has not taken more than a fifth of the time.
        """
        if self.box is None:
            return
        if new or self.show_batch:
            self._outdated = True
        moving = self.state == "running"
        now = time.monotonic()
        if not moving or now >= self._next_words:
            self._tell()
            self._next_words = now + 0.2
        if self._outdated and (not moving or now >= self._next_picture):
            self._draw()
            drawn = time.monotonic()
            self._next_picture = drawn + max(0.4, 4 * (drawn - now))

    def _tell(self) -> None:
        with self._lock:  # what is written last is what is true
            self.note.value = self._waiting()
            self.failure.value = self._failure()
            self.start_button.disabled = self.active
            self.stop_button.disabled = not self.active
            self.pause_button.disabled = not self.active
            if self.state == "paused":
                self.pause_button.description = "Resume"
                self.pause_button.icon = "play"
            else:
                self.pause_button.description = "Pause"
                self.pause_button.icon = "pause"
            # Last, so that who reads the new word finds the rest renewed, too.
            status = html.escape(self.status())
            self.status_line.value = f"<span style='margin-left:12px'>{status}</span>"

    def _draw(self) -> None:
        self._outdated = False
        self.curves.value = self.picture()
        self.readings.value = self._table()


def _sheet(images: np.ndarray) -> np.ndarray:
    """Images (n, H, W, C) side by side as one, ACROSS in a row, with a white frame around each."""
    missing = -len(images) % ACROSS
    framed = np.pad(images, ((0, missing), (1, 1), (1, 1), (0, 0)), constant_values=1)
    n, height, width, channels = framed.shape
    down = n // ACROSS
    rows = framed.reshape(down, ACROSS, height, width, channels).swapaxes(1, 2)
    return rows.reshape(down * height, ACROSS * width, channels).squeeze()


def _reading(records: list[Record]) -> list[str]:
    """The last of these records as the words of a table's row; empty words if there is none."""
    if not records:
        return [""] * len(READINGS)
    last = records[-1]
    return [
        str(last.iteration),
        f"{last.accuracy:.1%}",
        f"{last.robust_accuracy:.1%}",
        f"{last.passes:,}",
        f"{last.seconds:.1f}",
    ]


def _control(name: str, trial: Trial) -> w.Widget:
    """The input for a setting, at the trial's value."""
    if name == "alpha":
        return w.FloatSlider(trial.alpha, min=0, max=1, step=0.05)
    if name == "epsilon":
        high = max(0.5, 2 * trial.epsilon)
        return w.FloatSlider(trial.epsilon, min=0, max=high, step=0.005, readout_format=".3f")
    if name == "steps":
        return w.IntSlider(trial.steps, min=1, max=max(20, trial.steps))
    if name == "sampling_number":
        all_images = trial.train_size or np.inf
        usual = {number for number in (16, 32, 64, 128, 256, 512, 1024) if number <= all_images}
        numbers = sorted(usual | {trial.sampling_number})
        return w.SelectionSlider(options=numbers, value=trial.sampling_number)
    if name == "dataset":
        return w.Dropdown(options=_datasets_here(trial), value=trial.dataset)
    return w.Dropdown(options=_devices_here(trial), value=trial.device)


def _datasets_here(trial: Trial) -> list[str]:
    """The datasets that need no download, and the trial's."""
    found = [name for name in CLASSES if name == trial.dataset or is_here(name)]
    if trial.dataset not in CLASSES:
        found.append(trial.dataset)  # data of the user's own
    return found


def _devices_here(trial: Trial) -> list[str]:
    devices = {"auto", "cpu", trial.device}
    if torch.cuda.is_available():
        devices.add("cuda")
    if torch.backends.mps.is_available():
        devices.add("mps")
    return sorted(devices)

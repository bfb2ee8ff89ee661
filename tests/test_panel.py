"""The live controls, in process: real threads and trainings, widgets moved by their traits."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

from catlib import PGD
from catlib.collapse import Guard
from catlib.lab import background
from catlib.lab import panel as panel_module
from catlib.lab.baselines import NFGSM
from catlib.lab.figures import COLOURS
from catlib.lab.panel import TrainingPanel, interactive
from catlib.lab.runs import Trial, build_training

QUICK = {
    "sampling_number": 32,
    "steps": 2,
    "evaluate_every": 5,
    "evaluation_size": 50,
    "evaluation_steps": 2,
}


def trials(**settings) -> dict[str, Trial]:
    return {method: Trial(method=method, **QUICK | settings) for method in ("AT", "CAT")}


@pytest.fixture
def panel():
    """``panel(trials, ...)`` with its widgets made; whatever still runs at the end is stopped."""
    made = []

    def make(*arguments, **options):
        made.append(TrainingPanel(*arguments, **options))
        made[-1].widgets()
        return made[-1]

    yield make
    for panel in made:
        panel.stop()
        panel.wait(30)
        assert not panel.active


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def words(panel) -> str:
    return panel.status_line.value


def test_headless_it_trains_to_the_end_and_leaves_a_picture(monkeypatch):
    monkeypatch.setenv("CATLIB_HEADLESS", "1")
    assert not interactive()
    panel = TrainingPanel(trials(iterations=12), show_batch=True)
    before = set(plt.get_fignums()), threading.active_count()
    panel.display()
    assert (set(plt.get_fignums()), threading.active_count()) == before
    assert panel.state == "finished" and panel.box is None
    assert {name: len(records) for name, records in panel.records.items()} == {"AT": 12, "CAT": 12}
    assert panel.picture().startswith(b"\x89PNG")
    accuracy, robust, batch, weights = panel.figure().axes
    for axes, what in ((accuracy, "accuracy"), (robust, "robust_accuracy")):
        for line, records in zip(axes.lines, panel.records.values(), strict=True):
            points = [r for r in records if r.accuracy is not None]
            assert list(line.get_xdata()) == [5, 10, 12]
            assert list(line.get_ydata()) == [100 * getattr(r, what) for r in points]
    assert (
        batch.images
        and sum(patch.get_height() for bars in weights.containers for patch in bars) == 1437
    )
    assert "robust accuracy" in panel.summary()


def test_headless_iterations_and_their_lack():
    panel = TrainingPanel(Trial(iterations=None, **QUICK))
    with pytest.raises(ValueError, match="never end"):
        panel.run()
    panel.run(3)
    assert [r.iteration for r in panel.records["CAT"]] == [1, 2, 3]


def test_ctrl_c_in_the_foreground_leaves_a_true_state(monkeypatch):
    """The panel says that it is stopped, and its buttons work."""
    panel = TrainingPanel(trials(iterations=12))
    original = background.build_training

    def build(trial):
        training = original(trial)
        attack = training.attack

        def interrupted(model, images, labels):
            if training.iteration == 4:
                signal.raise_signal(signal.SIGINT)
            return attack(model, images, labels)

        training.attack = interrupted
        return training

    monkeypatch.setattr(background, "build_training", build)
    monkeypatch.setattr(panel, "_apply", lambda trial, training: None)
    with pytest.raises(KeyboardInterrupt):
        panel.run()
    assert panel.state == "stopped" and not panel.active and panel.error is None
    assert len(panel.records["AT"]) == 4 and "stopped at iteration" in panel.status()
    monkeypatch.undo()
    panel.stop()
    panel.start()
    panel.wait(60)
    assert panel.state == "finished" and len(panel.records["AT"]) == 12
    panel.run(3)
    assert panel.state == "finished" and len(panel.records["AT"]) == 3


def test_a_run_that_cannot_begin_changes_nothing():
    panel = TrainingPanel(Trial(iterations=None, **QUICK))
    with pytest.raises(ValueError, match="never end"):
        panel.run()
    assert panel.state == "ready" and not panel.active


def test_headless_errors_are_raised():
    with pytest.raises(ValueError, match="sampling_number is 5000"):
        TrainingPanel(Trial(**QUICK | {"sampling_number": 5000, "iterations": 2})).run()


def test_a_live_run_is_the_run_of_a_plain_loop(panel):
    """Neither the thread nor the neighbour changes what a trial computes."""
    live = panel(trials(iterations=10))
    live.start_button.click()
    live.wait(60)
    alone = list(build_training(trials(iterations=10)["CAT"]))
    assert live.state == "finished" and not live.start_button.disabled and live.stop_button.disabled
    assert [replace(r, seconds=0) for r in live.records["CAT"]] == [
        replace(r, seconds=0) for r in alone
    ]


def test_start_pause_resume_stop_start(panel):
    live = panel(trials(iterations=None))
    assert "ready" in words(live)
    live.start_button.click()
    until(lambda: live.iteration >= 6)
    assert live.start_button.disabled
    until(lambda: "running" in words(live) and len(live.curves.value) > 0)

    live.pause_button.click()
    until(lambda: "paused" in words(live))
    counts = {name: len(records) for name, records in live.records.items()}
    time.sleep(0.3)
    assert {
        name: len(records) for name, records in live.records.items()
    } == counts and live.pause_button.description == "Resume"
    live.pause_button.click()
    until(lambda: live.iteration > counts["AT"] + 2)
    assert [r.iteration for r in live.records["AT"][:8]] == list(range(1, 9))

    live.stop_button.click()
    live.wait(10)
    assert "stopped at iteration" in words(live)
    stopped = live.iteration
    live.start_button.click()
    until(lambda: "running" in words(live) and live.records["AT"])
    assert live.records["AT"][0].iteration == 1
    live.pause()
    until(lambda: live.state == "paused")
    live.stop()  # also out of a pause
    live.wait(10)
    assert live.state == "stopped" and stopped > 0


def test_stop_takes_effect_within_one_iteration(panel):
    """An attack that waits for the test says exactly what was begun when Stop was pressed."""
    live = panel(trials(iterations=None))
    begun, allowed = threading.Semaphore(0), threading.Semaphore(0)

    def attack(model, images, labels):
        begun.release()
        assert allowed.acquire(timeout=30)
        return images

    live._apply = lambda trial, training: setattr(training, "attack", attack)
    live.start_button.click()
    for _ in range(4):  # two iterations of each trial end, ...
        assert begun.acquire(timeout=30)
        allowed.release()
    assert begun.acquire(timeout=30)  # ... another one is under way
    live.stop_button.click()
    assert "stopping" in words(live)
    allowed.release()
    live.wait(10)
    assert not begun.acquire(blocking=False), "an iteration began after Stop"
    assert sum(map(len, live.records.values())) == 5
    assert live.state == "stopped"


def test_alpha_and_epsilon_take_effect_at_the_next_iteration(panel):
    live = panel(trials(iterations=None), controls=("alpha", "epsilon", "steps"))
    live.start()
    until(lambda: live.iteration >= 2)
    live.inputs["alpha"].value, live.inputs["epsilon"].value, live.inputs["steps"].value = (
        0.9,
        0.2,
        3,
    )
    at = live.iteration
    until(lambda: live.iteration >= at + 2)
    cat, at_ = live.trainings["CAT"], live.trainings["AT"]
    assert (
        cat.sampler.alpha == 0.9
        and at_.attack.epsilon == cat.attack.epsilon == 0.2
        and cat.attack.steps == 3
    )
    assert cat.attack.step_size == pytest.approx(2.5 * 0.2 / 3)
    assert cat.evaluation_attack.epsilon == 0.1, "the curve keeps its judge"
    assert {setting for _, setting, _ in live.changes} == {"alpha", "epsilon", "steps"}
    live.pause()
    until(lambda: live.state == "paused")
    live.inputs["against"].value = "passes"  # no marks where the iterations are not the axis
    assert len(live.figure().axes[0].lines) == 2
    live.inputs["against"].value = "iteration"
    assert len(live.figure().axes[0].lines) > 2


@pytest.mark.parametrize("crafting", ["pgd", "n-fgsm", "batch mean", "free"])
def test_a_trial_keeps_its_own_attack(crafting):
    """In the panel a trial trains as in a plain loop, also when it crafts by a cheap rival."""
    trial = Trial(crafting=crafting, iterations=6, device="cpu", **QUICK)
    live = TrainingPanel(trial)
    live.run()
    plain = list(build_training(trial))
    assert [r.loss for r in live.records["CAT"]] == [r.loss for r in plain]
    assert [r.passes for r in live.records["CAT"]] == [r.passes for r in plain]


def test_a_live_setting_changes_the_attack_that_the_trial_has():
    """Moving epsilon makes no PGD of an N-FGSM, and a compiled attack stays compiled."""
    rival = Trial(crafting="n-fgsm", device="cpu", **QUICK)
    training = build_training(rival)
    TrainingPanel._apply(replace(rival, epsilon=0.3, step_size=0.2), training)
    assert training.attack == NFGSM(0.3, 0.2)
    compiled = Trial(compile=True, device="cpu", **QUICK)
    training = build_training(compiled)
    TrainingPanel._apply(replace(compiled, epsilon=0.3, steps=4), training)
    assert training.attack == PGD(0.3, steps=4, compile=True)


def test_a_live_sampling_number_and_what_it_did_to_the_cost(panel):
    live = panel(trials(iterations=None))
    live.start()
    until(lambda: live.iteration >= 2)
    live.inputs["sampling_number"].value = 64
    at = live.iteration
    until(lambda: min(len(records) for records in live.records.values()) > at + 2)
    live.pause()
    until(lambda: live.state == "paused")
    assert live.note.value == ""
    for name, training in live.trainings.items():
        assert len(training.batch.labels) == 64
        examples = [record.examples for record in live.records[name]]
        assert examples[0] == 32 and examples[-1] - examples[-2] == 64
    marks = [text.get_text() for text in live.figure().axes[0].texts]
    assert marks == [" sampling number 64\n 2 × the passes\n"]


def test_a_guard_keeps_its_milder_attack_and_drops_what_it_undid(monkeypatch):
    """Its attack finds nothing, so the training collapses, and goes back with another one."""

    def build(trial, training):
        return Guard(training, share=0.4, size=20, remedy=see)

    monkeypatch.setattr(background, "build_guard", build)
    blind = Trial(
        guard=True,
        seed=1,
        sampling_number=50,
        iterations=24,
        steps=1,
        step_size=1e-3,
        epsilon=0.15,
        schedule="cyclic",
        evaluate_every=0,
        device="cpu",
    )
    live = background.BackgroundTraining(blind)
    live.run()
    assert live.guards["CAT"].collapses > 0
    attack = live.trainings["CAT"].attack
    assert (attack.steps, attack.step_size) == (2, 0.7 * 0.15)
    assert [record.iteration for record in live.records["CAT"]] == list(range(1, 25))


def see(attack):
    return replace(attack, steps=2, step_size=0.7 * attack.epsilon)


def test_the_data_wait_for_the_next_start(panel):
    live = panel(trials(iterations=None))
    live.start()
    until(lambda: live.iteration)
    live.set(dataset="mnist")
    live._tell()
    assert "next Start" in live.note.value and "data" in live.note.value


def test_the_sampling_numbers_on_offer_fit_the_data(panel):
    live = panel(Trial(**QUICK | {"train_size": 100}))
    live.widgets()
    assert live.inputs["sampling_number"].options == (16, 32, 64)


def test_data_of_ones_own_are_on_offer(panel, tmp_path):
    own = str(tmp_path / "mine.npz")
    live = panel(Trial(**QUICK | {"dataset": own}))
    live.widgets()
    assert live.inputs["dataset"].value == own
    assert "digits" in live.inputs["dataset"].options


def test_what_the_trials_compare_moves_the_last_one_only(panel):
    live = panel(
        {"CAT, 16": Trial(**QUICK | {"sampling_number": 16}), "CAT, yours": Trial(**QUICK)}
    )
    assert live.inputs["sampling_number"].description.endswith("of CAT, yours")
    live.inputs["sampling_number"].value, live.inputs["alpha"].value = 128, 0.1
    assert [trial.sampling_number for trial in live.trials.values()] == [16, 128]
    assert [trial.alpha for trial in live.trials.values()] == [0.1, 0.1]
    assert len(set(live.colours.values()) | set(COLOURS.values())) == 4
    live.start()
    live.stop()
    live.wait(30)
    assert (
        "CAT, yours (now sampling number 128)" in live.readings.value
        and "16 (now" not in live.readings.value
    )


def test_an_exception_is_shown_and_what_was_trained_is_kept(panel):
    live = panel(trials(iterations=None))

    def diverge(trial, training):
        if training.iteration == 3:
            raise FloatingPointError("a <loss> that is nan")

    live._apply = diverge
    live.start_button.click()
    live.wait(30)
    assert live.state == "failed" and "failed at iteration 3" in words(live)
    assert (
        "FloatingPointError" in live.failure.value
        and "a &lt;loss&gt; that is nan" in live.failure.value
    )
    assert len(live.records["AT"]) == 3 and live.trainings["AT"].iteration == 3
    del live._apply
    live.start_button.click()
    until(lambda: live.iteration > 3 and live.failure.value == "")


def test_a_bad_setting_is_said_in_the_panel(panel):
    live = panel(Trial(**QUICK))
    live.set(sampling_number=5000)
    live.start_button.click()
    live.wait(30)
    assert "sampling_number is 5000" in live.failure.value and not live.start_button.disabled


def test_two_panels_do_not_disturb_each_other(panel):
    one, two = panel(trials(iterations=8)), panel(trials(iterations=8, seed=1))
    for live in (one, two):
        live.start_button.click()
    one.inputs["epsilon"].value = one.inputs["epsilon"].value  # nothing changes, nowhere
    for live in (one, two):
        live.wait(60)
    for live, seed in ((one, 0), (two, 1)):
        alone = TrainingPanel(trials(iterations=8, seed=seed))
        alone.run()
        assert [r.loss for r in live.records["CAT"]] == [r.loss for r in alone.records["CAT"]]
    two.start()
    until(lambda: two.iteration >= 2 or two.state == "finished")
    assert one.state == "finished" and one.iteration == 8


def test_models_are_built_in_turn(panel, monkeypatch):
    """Initial weights come of a seed in torch's global state, which other threads would move."""
    turns, build = [], background.build_training
    monkeypatch.setattr(
        background,
        "build_training",
        lambda trial: (turns.append(background.TURN.locked()), build(trial))[1],
    )
    live = panel(trials(iterations=1))
    live.start()
    live.wait(60)
    assert turns == [True] * len(live.trials)


def test_threads_leave_pyplot_and_standard_output_alone(panel, capfd):
    plt.close("all")
    live = panel(trials(iterations=6), show_batch=True)
    live.start()
    live.wait(60)
    assert plt.get_fignums() == [] and live.state == "finished"
    assert capfd.readouterr() == ("", "")


def test_pictures_are_throttled(panel):
    live = panel(trials(iterations=60, evaluate_every=1, evaluation_size=10))
    drawn = []
    live.curves.observe(lambda change: drawn.append(time.monotonic()), "value")
    started = time.monotonic()
    live.start()
    live.wait(60)
    # A fast machine may end before a second picture is due: only the last one is certain.
    assert 1 <= len(drawn) <= 4 + (time.monotonic() - started) / 0.4


def test_unknown_controls_are_refused():
    with pytest.raises(ValueError, match=r"'beta'.*alpha"):
        TrainingPanel(Trial(), controls=("beta",))


def test_an_epsilon_that_grows_is_no_live_control():
    panel = TrainingPanel(Trial(epsilon_warm_up=5, iterations=8, **QUICK))
    assert panel.live == ("alpha", "sampling_number")
    panel.run()
    assert panel.trainings["CAT"].attack.epsilon == 0.1


def test_without_a_kernel_nobody_looks(monkeypatch):
    monkeypatch.delenv("CATLIB_HEADLESS", raising=False)
    assert not interactive()


class Shell:
    """The shell of a kernel, asked to run a cell."""

    kernel = "a kernel"

    def __init__(self, metadata):
        self.metadata = metadata

    def get_parent(self):
        return {"metadata": self.metadata}


class ShellOfColab(Shell):
    __module__ = "google.colab._shell"


@pytest.mark.parametrize(
    ("shell", "variables", "expected"),
    [
        (Shell({"cellId": "a"}), {}, True),  # JupyterLab, VS Code
        (Shell({}), {}, False),  # papermill, nbclient
        (Shell({}), {"CATLIB_LIVE": "1"}, True),
        (Shell({"cellId": "a"}), {"CATLIB_HEADLESS": "1"}, False),
        (Shell({}), {"CATLIB_LIVE": "1", "CATLIB_HEADLESS": "1"}, False),
        (ShellOfColab({}), {}, True),
        (ShellOfColab({}), {"CATLIB_HEADLESS": "1"}, False),
        (None, {"CATLIB_LIVE": "1"}, False),  # no notebook at all
    ],
)
def test_somebody_looks_where_a_front_end_names_the_cell(monkeypatch, shell, variables, expected):
    for name in ("CATLIB_HEADLESS", "CATLIB_LIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(panel_module, "get_ipython", lambda: shell)
    assert interactive() == expected


def test_the_background_needs_no_widgets():
    code = "import sys, catlib.lab.background; sys.exit('ipywidgets' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    assert set(background.LIVE).isdisjoint(background.AT_START)


def test_the_ipykernel_here_is_one_the_panel_was_tried_on():
    """ipykernel changed three times how a click reaches Python: try a new version by hand."""
    major, minor = map(int, importlib.metadata.version("ipykernel").split(".")[:2])
    assert (6, 29) <= (major, minor) < (8, 0), (
        f"try tests/browser on ipykernel {major}.{minor}, then widen this range"
    )


def test_in_a_kernel_the_cell_returns_at_once_and_a_click_stops_the_training():
    """A real kernel: the panel's cell ends, the thread trains on, a later message reaches it."""
    from jupyter_client.manager import start_new_kernel

    environment = {key: value for key, value in os.environ.items() if key != "CATLIB_HEADLESS"}
    environment["CATLIB_LIVE"] = "1"  # as no front end names the cells here
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manager, client = start_new_kernel(kernel_name="python3", env=environment)
    try:

        def run(code, answer="0"):
            reply = client.execute_interactive(
                code,
                timeout=90,
                user_expressions={"answer": answer},
                output_hook=lambda message: None,
            )["content"]
            assert reply["status"] == "ok", reply
            return reply["user_expressions"]["answer"]["data"]["text/plain"].strip("'")

        run(
            "import time\n"
            "from catlib.lab.panel import Trial, TrainingPanel, interactive\n"
            "assert interactive()"
        )
        run(
            "trial = Trial(iterations=None, steps=2, evaluate_every=5, evaluation_size=50)\n"
            "panel = TrainingPanel(trial)"
        )
        stop = run("panel.display()\npanel.start()", "panel.stop_button.model_id")
        run(
            "end = time.time() + 60\n"
            "while panel.iteration < 5:\n"
            "    time.sleep(0.05)\n"
            "    assert time.time() < end"
        )
        click = {"comm_id": stop, "data": {"method": "custom", "content": {"event": "click"}}}
        client.shell_channel.send(client.session.msg("comm_msg", click))
        run(
            "panel.wait(20)\n"
            "assert panel.state == 'stopped', panel.state\n"
            "assert 'stopped' in panel.status_line.value"
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

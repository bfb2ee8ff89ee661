"""The live controls as a student meets them: a real JupyterLab, a real Chromium, a mouse."""

import os
import re
import time
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser
AT_ONCE = 2  # seconds
NOTEBOOKS = ("04_weights_and_sampler.ipynb", "06_cat_versus_at.ipynb", "07_sampling_number.ipynb")
SHOWN = "__import__('catlib.lab.panel', fromlist=['_SHOWN'])._SHOWN[-1][0]"
PLAIN = """\
from catlib.lab.panel import TrainingPanel, Trial
trial = Trial(iterations=2000, evaluate_every=5, evaluation_size=100, evaluation_steps=5)
{name} = TrainingPanel(trial, title="{name}")
{name}.display()"""


def write(path: Path, *cells: str) -> str:
    """A notebook of these code cells; its name."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=kernel
        ),
        path,
    )
    return path.name


class Panel:
    """The last panel of a page, seen from outside."""

    def __init__(self, page, index: int = -1):
        self.page, self.box = page.page, page.page.locator(".catlib-panel").nth(index)
        self.box.scroll_into_view_if_needed()

    def part(self, name: str):
        return self.box.locator(f".catlib-{name}")

    def button(self, name: str):
        return self.box.locator(f"button.catlib-{name}")

    def status(self) -> str:
        return self.part("status").inner_text().strip()

    def points(self) -> int:
        return sum(
            int(row.get_attribute("data-points")) for row in self.box.locator("[data-points]").all()
        )

    def picture(self) -> str:
        return self.part("curves").first.get_attribute("src")

    def wait(self, condition, what: str, seconds: float = 60) -> float:
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, (
                f"after {seconds} s still not: {what}; status: {self.status()!r}"
            )
            self.page.wait_for_timeout(50)
        return time.monotonic() - started

    def stands_still(self) -> bool:
        """Whether nothing of it changes for a second and a half."""
        before = self.points(), self.picture(), self.status()
        self.page.wait_for_timeout(1500)
        return (self.points(), self.picture(), self.status()) == before

    def drag(self, name: str, share: float) -> None:
        """Drag a slider's handle with the mouse by this share of its length."""
        handle, rail = (
            self.part(name).locator(f".noUi-{part}").bounding_box() for part in ("handle", "base")
        )
        x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + share * rail["width"], y, steps=8)
        self.page.mouse.up()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_start_grow_drag_stop(open_notebook, name):
    page = open_notebook(name)
    page.run_all()
    panel = Panel(page)
    panel.wait(lambda: panel.status().startswith("ready"), "ready")
    before = panel.picture()

    panel.button("start").click()
    panel.wait(lambda: panel.points() >= 2, "two points of the curve")
    panel.wait(lambda: panel.picture() != before, "the picture of them")
    points, picture = panel.points(), panel.picture()
    panel.wait(lambda: panel.points() > points and panel.picture() != picture, "a curve that grows")

    alphas = (
        f"{{t.sampler.alpha for t in {SHOWN}.trainings.values() if hasattr(t.sampler, 'alpha')}}"
    )
    old = page.ask(alphas)
    panel.drag("alpha", 0.3)
    alpha = float(panel.part("alpha").locator(".widget-readout").inner_text())
    panel.wait(lambda: page.ask(alphas) == f"{{{alpha}}}", f"alpha {alpha} in the sampler", 10)
    assert page.ask(alphas) != old
    if folder := os.environ.get(
        "CATLIB_SCREENSHOTS"
    ):  # pictures for people, of curves worth seeing
        panel.wait(lambda: panel.points() >= 40, "a long curve", 180)
        panel.box.screenshot(path=Path(folder) / f"panel_{name[:2]}.png")

    assert panel.status().startswith("running")
    panel.button("stop").click()
    panel.wait(lambda: panel.status().startswith("stopped at iteration"), "stopped", AT_ONCE)
    panel.wait(panel.stands_still, "the last frame, which follows the word")
    assert panel.stands_still()


def test_two_panels(open_notebook, lab):
    """Two panels in a notebook go their own ways; a cell run again takes its old panel with it."""
    page = open_notebook(
        write(lab[0] / "two.ipynb", PLAIN.format(name="first"), PLAIN.format(name="second"))
    )
    page.run_all()
    first, second = Panel(page, 0), Panel(page, 1)
    for panel in (first, second):
        panel.button("start").click()
    for panel in (first, second):
        panel.wait(lambda panel=panel: panel.points() >= 2, "two points")
    first.button("pause").click()
    first.wait(lambda: first.status().startswith("paused"), "paused", AT_ONCE)
    status, points = first.status(), second.points()
    second.wait(lambda: second.points() > points, "the other goes on")
    assert first.status() == status
    first.button("pause").click()
    first.wait(lambda: first.status().startswith("running") and first.status() != status, "resumed")
    assert int(re.search(r"iteration (\d+)", first.status())[1]) >= int(
        re.search(r"iteration (\d+)", status)[1]
    )
    second.button("stop").click()
    second.wait(lambda: second.status().startswith("stopped"), "stopped", AT_ONCE)
    assert first.status().startswith("running")
    page.page.evaluate(
        "async () => { const n = jupyterapp.shell.currentWidget.content;"
        "n.activeCellIndex = 0; n.deselectAll();"
        "await jupyterapp.commands.execute('notebook:run-cell') }"
    )
    states = (
        "[panel.state for panel, *_ in __import__('catlib.lab.panel', fromlist=['_SHOWN'])._SHOWN]"
    )
    first.wait(lambda: page.ask(states).startswith("['stopped'"), "the old panel stopped", 10)
    assert page.ask("first.state") == "'ready'"


def test_a_failure_is_readable(open_notebook, lab):
    """What goes wrong in the thread is said in the panel."""
    page = open_notebook(
        write(
            lab[0] / "fails.ipynb", PLAIN.format(name="panel") + "\npanel.set(sampling_number=5000)"
        )
    )
    page.run_all()
    panel = Panel(page)
    panel.button("start").click()
    panel.wait(lambda: panel.status().startswith("failed"), "failed")
    # The page shows each widget's news in its own time: each is waited for.
    panel.wait(lambda: "sampling_number is 5000" in panel.part("error").inner_text(), "the reason")
    panel.wait(panel.button("start").is_enabled, "a start button that can be pressed")

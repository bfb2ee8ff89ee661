"""The pages of the course as a reader meets them: opened from disk, in a real Chromium."""

import json

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from catlib.lab.site import PLOTLY, write_site

pytestmark = pytest.mark.browser
ALPHAS = (0.1, 0.5, 0.9)
TEXT = "Before $w_0 < 1$ after.\n\n$$\\max_\\delta \\ell(x + \\delta)$$\n\nThe end."


def slider():
    """A cell whose figure has a curve for each alpha, and a slider that chooses one."""
    curves = [
        go.Scatter(y=[alpha**step for step in range(5)], visible=alpha == ALPHAS[0])
        for alpha in ALPHAS
    ]
    steps = [
        {
            "label": str(alpha),
            "method": "update",
            "args": [{"visible": [other == alpha for other in ALPHAS]}],
        }
        for alpha in ALPHAS
    ]
    figure = go.Figure(curves)
    figure.update_layout(width=900, sliders=[{"steps": steps}])
    data = {PLOTLY: json.loads(figure.to_json()), "text/plain": "Figure"}
    return new_code_cell("figure.show()", outputs=[new_output("display_data", data)])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of two pages; the address of its folder."""
    folder = tmp_path_factory.mktemp("site")
    wide = " | ".join(f"column {number}" for number in range(30))
    table = f"| {wide} |\n|{' --- |' * 30}\n| {wide} |"
    cells = [new_markdown_cell(f"# First\n\n{TEXT}"), slider(), new_markdown_cell(table)]
    second = [new_markdown_cell("# Second\n\n## The temperature\n\nIt flattens the weights.")]
    paths = []
    for name, content in (("00_first", cells), ("01_second", second)):
        paths.append(folder / f"{name}.ipynb")
        nbformat.write(new_notebook(cells=content), paths[-1])
    write_site(paths, folder / "site")
    return (folder / "site").as_uri()


@pytest.fixture(params=[1400, 400], ids=lambda width: f"{width} pixels")
def page(browser, request):
    """A page of this width that fails the test on an error of a script or a missing file."""
    problems = []
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("requestfailed", lambda request: problems.append(request.url))
    yield page
    page.close()
    assert not problems


def test_the_curve_follows_the_slider_on_a_page_that_was_opened_from_disk(site, page):
    page.goto(f"{site}/00_first.html")
    line = page.locator(".live .scatterlayer .js-line")
    line.wait_for()
    before = line.get_attribute("d")
    box = page.locator(".live .slider-rail-touch-rect").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2, steps=8)
    page.mouse.up()
    page.wait_for_function(
        "before => document.querySelector('.live .js-line').getAttribute('d') !== before",
        arg=before,
        timeout=10_000,
    )
    assert page.locator(".live .slider-label").first.text_content() == "0.9"


def test_nothing_is_wider_than_the_screen_and_a_wide_table_scrolls(site, page):
    page.goto(f"{site}/00_first.html")
    page.locator(".live .main-svg").first.wait_for()
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    table = page.locator("main table")
    assert table.bounding_box()["x"] + table.bounding_box()["width"] <= width
    assert table.evaluate("table => table.scrollWidth > table.clientWidth")
    figure = page.locator(".live .main-svg").first.bounding_box()
    assert figure["x"] + figure["width"] <= width, "its own 900 pixels do not hold here"


def test_the_search_finds_a_section_of_another_page(site, page):
    page.goto(f"{site}/00_first.html")
    page.locator("search input").fill("temperature weights")
    found = page.locator("search li a")
    found.first.wait_for()
    assert found.all_inner_texts() == ["Second: The temperature"]
    found.first.click()
    page.wait_for_url("**/01_second.html#The-temperature")
    page.locator("search input").fill("nowhere")
    page.get_by_text("Nothing found").wait_for()


def test_copied_equations_are_tex(site, page):
    page.goto(f"{site}/00_first.html")
    copied = page.evaluate(
        """() => {
          getSelection().selectAllChildren(document.querySelector(".text_cell_render"));
          const event = new ClipboardEvent("copy", { clipboardData: new DataTransfer() });
          document.dispatchEvent(event);
          return event.clipboardData.getData("text/plain");
        }"""
    )
    assert "Before $w_0 < 1$ after." in copied
    assert "$$\\max_\\delta \\ell(x + \\delta)$$" in copied
    assert copied.strip().endswith("The end.")

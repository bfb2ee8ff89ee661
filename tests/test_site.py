"""The course as pages: what is on them, and that they need neither a network nor a server."""

import json
import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from catlib.lab import __main__ as command_line
from catlib.lab import batch, course, paths, site

pytestmark = pytest.mark.no_device("it writes pages")

PNG = "iVBORw0KGgo="
EQUATION = "A sum $w_0 < 1$.\n\n$$\\max_\\delta \\ell(x + \\delta)$$"


def write(path, *cells, title="A page"):
    """A notebook of these cells below its title; its path."""
    nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {title}"), *cells]), path)
    return path


def built(folder, *notebooks, published=None):
    """Builds a site; a function that gives a page of it as a tree of elements."""
    site.write_site(notebooks, folder, published)

    def page(name):
        return BeautifulSoup((folder / f"{name}.html").read_text(encoding="utf-8"), "html.parser")

    return page


def picture(**shown):
    data = {"image/png": PNG, "text/plain": "<Figure>"}
    return new_code_cell(
        "draw()", outputs=[new_output("display_data", data, metadata={"image/png": shown})]
    )


def live():
    figure = {"data": [{"y": [1, 2]}], "layout": {"title": {"text": "</script> & <b>"}}}
    data = {site.PLOTLY: figure, "text/plain": "Figure"}
    return new_code_cell("figure.show()", outputs=[new_output("display_data", data)])


# ----- the course says one thing everywhere


def test_the_course_knows_every_notebook_and_no_other():
    names = [path.stem for path in batch.course_notebooks()]
    assert [lesson.name for lesson in course.course().lessons] == names
    for lesson in course.course().lessons:
        assert lesson.question.endswith("?") and 10 <= lesson.minutes <= 240


def test_minutes_are_said_in_hours():
    said = [course.duration(minutes) for minutes in (45, 60, 100)]
    assert said == ["45 min", "1 h", "1 h 40 min"]


def test_the_front_page_and_the_readme_say_the_same_of_every_notebook(tmp_path):
    notebooks = batch.course_notebooks()
    front = built(tmp_path, *notebooks)("index").main.get_text(" ")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- course -->\n<!-- /course -->\n")
    site.write_course_map(notebooks, [readme])
    table = readme.read_text()
    for lesson in course.course().lessons:
        for told in (lesson.question, course.duration(lesson.minutes)):
            assert told in front and told in table
    assert f"About {course.course().hours()} hours" in front


@pytest.mark.parametrize("document", [paths.README, site.INSTRUCTORS], ids=lambda path: path.name)
def test_the_table_of_the_course_is_in_step(document, tmp_path):
    copy = tmp_path / document.relative_to(paths.ROOT)  # so that links are the same
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(document.read_bytes())
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for path in batch.course_notebooks():
        (notebooks / path.name).write_bytes(path.read_bytes())
    site.write_course_map(sorted(notebooks.iterdir()), [copy])
    assert copy.read_text() == document.read_text(), "run write_course_map, as catlib refresh does"


# ----- a page


def test_a_site_can_be_read_without_a_network(tmp_path):
    pages = [
        write(tmp_path / f"0{i}_a.ipynb", new_markdown_cell(EQUATION), live()) for i in range(2)
    ]
    page = built(tmp_path / "site", *pages)
    assert page("index").find("a", href="00_a.html")
    assert page("00_a").find("a", href="01_a.html")
    for name in ("index", "00_a", "01_a"):
        for tag in page(name).find_all(["script", "link", "img", "iframe"]):
            address = tag.get("src") or tag.get("href") or ""
            assert not re.match(r"(https?:)?//", address), tag


def test_neighbours_are_linked_above_and_below(tmp_path):
    pages = [write(tmp_path / f"0{i}_a.ipynb", title=f"Page {i}") for i in range(3)]
    page = built(tmp_path / "site", *pages)
    for rel, name in (("prev", "00_a"), ("next", "02_a")):
        assert [a["href"] for a in page("01_a").find_all("a", rel=rel)] == [f"{name}.html"] * 2
    assert not page("00_a").find("a", rel="prev") and not page("02_a").find("a", rel="next")


def test_an_equation_carries_its_tex(tmp_path):
    page = built(tmp_path / "site", write(tmp_path / "00_a.ipynb", new_markdown_cell(EQUATION)))(
        "00_a"
    )
    sources = [note.get_text() for note in page.find_all("annotation")]
    assert sources == ["w_0 < 1", "\\max_\\delta \\ell(x + \\delta)"]
    for note in page.find_all("annotation"):
        assert note["encoding"] == "application/x-tex" and note.parent.name == "semantics"


def test_a_picture_shows_its_text_and_its_size_and_one_without_text_says_so(tmp_path):
    cells = [picture(width=500, height=240, alt='Two "curves" that rise.'), picture()]
    source = write(tmp_path / "00_a.ipynb", *cells)
    page = built(tmp_path / "site", source)
    first, second = page("00_a").main.find_all("img")
    assert (first["alt"], first["width"]) == ('Two "curves" that rise.', "500")
    assert second["alt"] == site.WITHOUT_TEXT
    assert page("index").find("img")["alt"] == 'Two "curves" that rise.'


def test_the_cover_is_the_picture_of_the_tagged_cell(tmp_path):
    cover = picture(alt="the cover")
    cover.metadata.tags = ["cover"]
    page = built(tmp_path / "site", write(tmp_path / "00_a.ipynb", picture(alt="the first"), cover))
    assert page("index").find("img")["alt"] == "the cover"


# ----- what is folded, and what is left out


def folded(cell, tmp_path):
    page = built(tmp_path / "site", write(tmp_path / "00_a.ipynb", cell))("00_a")
    found = page.main.find("details", class_="folded")
    return found and (found.summary.get_text(), found.find("pre").get_text())


@pytest.mark.parametrize(
    ("source", "metadata", "summary"),
    [
        ("'the answer'", {"jupyter": {"source_hidden": True}}, "Code"),
        ("# Settings\nx = 'the answer'", {"jupyter": {"source_hidden": True}}, "Settings"),
        ("x = 'the answer'", {"tags": ["parameters"]}, "Parameters"),
        ("# The size\nx = 'the answer'", {"tags": ["parameters"]}, "The size"),
        (
            "# Parameters\nx = 'the answer'",
            {"tags": ["injected-parameters"]},
            "The parameters of this run",
        ),
        ("x = 'the answer'", {}, None),
    ],
)
def test_parameters_and_hidden_cells_are_folded_under_their_first_comment(
    source, metadata, summary, tmp_path
):
    found = folded(new_code_cell(source, metadata=metadata), tmp_path)
    if summary is None:
        assert found is None
    else:
        assert found[0] == summary and "the answer" in found[1]


def test_no_page_shows_a_folder_of_the_machine(tmp_path):
    injected = new_code_cell(
        'output_dir = "/data/of/ann/runs/digits"\ndataset = "digits"',
        metadata={"tags": ["injected-parameters"]},
    )
    told = f"written to /data/of/ann/runs/digits/table.csv and {paths.ROOT}/runs/x"
    stream = new_output("stream", text=told)
    result = new_output("execute_result", {"text/html": f"<b>{told}</b>", "text/plain": told})
    source = write(
        tmp_path / "00_a.ipynb", injected, new_code_cell("f()", outputs=[stream, result])
    )
    text = built(tmp_path / "site", source)("00_a").main.get_text()
    assert "/data/of" not in text and str(paths.ROOT) not in text
    assert text.count("written to runs/digits/table.csv and runs/x") == 2
    assert "/data/of/ann" in source.read_text(), "the notebook itself is left as it is"


def test_a_home_that_is_the_root_of_all_folders_changes_no_slash(tmp_path, monkeypatch):
    """As in a container whose user has no entry."""
    monkeypatch.setenv("HOME", "/")
    told = "epsilon is 8/255, see https://example.org/a"
    stream = new_output("stream", text=told)
    source = write(tmp_path / "00_a.ipynb", new_code_cell("f()", outputs=[stream]))
    assert told in built(tmp_path / "site", source)("00_a").main.get_text()


def test_printed_columns_are_not_broken_into_lines_and_sentences_are(tmp_path):
    assert site.holds_columns("name   value\nAT     1\nCAT    2")
    assert not site.holds_columns("A long sentence.  Another.\nA third.")


# ----- links


def links(tmp_path, text, published=None):
    pages = [write(tmp_path / f"0{i}_a.ipynb", new_markdown_cell(text)) for i in range(2)]
    main = built(tmp_path / "site", *pages, published=published)("00_a").main
    cell = main.find_all(class_="text_cell_render")[1]
    return {link.get_text(): link["href"] for link in cell.find_all("a")}


TEXT = "[next](01_a.ipynb), [pass](01_a.ipynb#pass), [away](https://x.org), [s](solutions/00.ipynb)"


def test_links_lead_to_pages_and_a_file_that_the_site_lacks_is_plain_text(tmp_path):
    assert links(tmp_path, TEXT) == {
        "next": "01_a.html",
        "pass": "01_a.html#pass",
        "away": "https://x.org",
    }


def test_where_the_repository_is_known_its_other_files_are_linked(tmp_path):
    found = links(tmp_path, TEXT, site.home("https://ann.github.io/kit"))
    assert found["s"] == "https://github.com/ann/kit/blob/HEAD/notebooks/solutions/00.ipynb"


# ----- where the site is published


def test_without_a_base_url_no_page_names_an_address_and_with_one_all_do(tmp_path):
    source = write(tmp_path / "00_a.ipynb")
    page = built(tmp_path / "site", source)("00_a")
    assert not page.find("link", rel="canonical") and not page.find_all("a", class_="button")
    published = site.home("https://ann.github.io/kit/")
    page = built(tmp_path / "site", source, published=published)
    canonical = [page(name).find("link", rel="canonical")["href"] for name in ("index", "00_a")]
    assert canonical == [f"https://ann.github.io/kit/{name}.html" for name in ("index", "00_a")]
    colab, binder = (link["href"] for link in page("00_a").find_all("a", class_="button"))
    assert colab.endswith("/github/ann/kit/blob/HEAD/notebooks/00_a.ipynb")
    assert binder.endswith("/gh/ann/kit/HEAD?labpath=notebooks/00_a.ipynb")
    assert not page("index").find_all("a", class_="button")


def test_another_address_has_buttons_only_where_the_repository_is_given():
    assert site.home("https://cat.example.org/course").repository == ""
    assert site.home("https://cat.example.org", "ann/kit").repository == "ann/kit"


@pytest.mark.parametrize(
    ("address", "repository", "said"),
    [
        ("cat.example.org", "", "https://"),
        ("https://", "", "https://"),
        ("https://a.org", "kit", "OWNER/NAME"),
    ],
)
def test_an_address_that_is_none_is_refused(address, repository, said, capsys):
    with pytest.raises(ValueError, match=said):
        site.home(address, repository)
    given = ["course", "--base-url", address, "--repository", repository]
    assert command_line.main(given) == 2
    assert said in capsys.readouterr().err


# ----- live figures, and the search


def test_plotly_is_written_and_loaded_only_where_a_page_draws_with_it(tmp_path):
    plain = write(tmp_path / "00_a.ipynb", new_markdown_cell(f"It is about {site.PLOTLY}."))
    page = built(tmp_path / "site", plain)
    assert not (tmp_path / "site" / "plotly.min.js").exists()
    assert not page("00_a").find("script", src=True)
    page = built(tmp_path / "site", plain, write(tmp_path / "01_a.ipynb", live()))
    assert (tmp_path / "site" / "plotly.min.js").exists()
    assert not page("00_a").find("script", src=True)
    assert page("01_a").find("script", src="plotly.min.js")
    kept = page("01_a").find("script", type="application/json")
    assert json.loads(kept.string)["layout"]["title"]["text"] == "</script> & <b>"
    built(tmp_path / "site", plain)
    assert not (tmp_path / "site" / "plotly.min.js").exists(), "an old one is of no use"


def test_the_search_knows_every_section_and_its_place_but_no_outputs(tmp_path):
    text = new_markdown_cell("## The ball\n\nA set *around* an image, $w_0$.\n\n### Its size")
    code = new_code_cell("epsilon = 0.1", outputs=[new_output("stream", text="loss 0.25")])
    built(tmp_path / "site", write(tmp_path / "00_a.ipynb", text, code, title="Attacks"))
    script = (tmp_path / "site" / "search.js").read_text(encoding="utf-8")
    entries = json.loads(script.removeprefix("window.courseIndex = ").rstrip(";\n"))
    assert [(entry["heading"], entry["place"]) for entry in entries] == [
        ("Attacks", "Attacks"),
        ("The ball", "The-ball"),
        ("Its size", "Its-size"),
    ]
    assert {entry["page"] for entry in entries} == {"00_a"}
    assert entries[1]["text"] == "A set around an image, w_0."
    assert "epsilon = 0.1" in entries[2]["text"] and "0.25" not in script

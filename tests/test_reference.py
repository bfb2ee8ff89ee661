"""The page of the public names: all are on it, nothing of a docstring is lost, none lacks a word.

Signatures are compared with `inspect`, and docstrings are read here by another, simpler reader.
"""

import inspect
import re
from dataclasses import is_dataclass

import pytest
from bs4 import BeautifulSoup

import catlib
from catlib.lab import __main__ as command_line
from catlib.lab import reference, site
from catlib.lab.paths import DOCS, README

pytestmark = pytest.mark.no_device("it reads docstrings")

ROOMS = reference.public_names()
ENTRIES = [entry for entries in ROOMS.values() for entry in entries]
DESCRIBED = [each for entry in ENTRIES for each in (entry, *entry.members())]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page as a tree of elements."""
    folder = tmp_path_factory.mktemp("site")
    site.write_site([], folder, site.home("https://ann.github.io/kit"), reference.reference())
    assert (folder / "search.js").read_text(encoding="utf-8").count('"page": "api"') > 40
    return BeautifulSoup((folder / "api.html").read_text(encoding="utf-8"), "html.parser")


def section_of(page, name):
    """The description of a name: the cell in which its heading stands."""
    heading = page.main.find(id=name)
    assert heading is not None, f"{name} has no heading"
    return heading.find_parent(class_="text_cell_render")


def parameters_of(value):
    """The names that a caller may give, in order, by inspect."""
    return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]


def names_in_args(docstring):
    """The names that stand with four spaces below `Args:`, before the next line without."""
    found = re.search(r"^Args:\n((?: .*\n|\n)+)", docstring + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+(?:, \w+)*): ", found[1], re.MULTILINE) if found else []
    return [name for names in entries for name in names.split(", ")]


def test_the_page_has_every_public_name_the_method_first(page):
    headings = [heading["id"] for heading in page.main.find_all("h3")]
    assert set(catlib.__all__) == set(headings[: len(catlib.__all__)])
    assert headings == [entry.name for entry in ENTRIES]
    every_id = [tag["id"] for tag in page.find_all(id=True)]
    assert len(every_id) == len(set(every_id)), "a name would lead to another one's description"


def test_the_files_stand_in_the_order_of_the_map_of_the_code():
    listed = (DOCS / "house.md").read_text(encoding="utf-8").split("## Every file")[1]
    places = [re.search(rf"`{name}(\.py|/)`", listed).start() for name in reference.METHOD]
    assert places == sorted(places)
    shown = [module.__name__ for module in ROOMS]
    assert shown[: len(reference.METHOD)] == [f"catlib.{name}" for name in reference.METHOD]


def test_the_page_has_every_name_that_a_document_imports():
    known = set()
    for module, entries in ROOMS.items():
        known |= {(module.__name__, entry.name) for entry in entries}
    imported = []
    for document in [README, *DOCS.glob("*.md")]:
        text = document.read_text(encoding="utf-8")
        for module, names in re.findall(r"^from (catlib\.lab\S*) import (.+)$", text, re.MULTILINE):
            imported += [(module, name) for name in names.split(", ")]
    assert len(imported) > 3 and set(imported) <= known


@pytest.mark.parametrize("entry", DESCRIBED, ids=lambda entry: entry.name)
def test_a_docstring_names_the_parameters_of_its_signature(entry):
    if isinstance(entry.value, property):
        return
    given = parameters_of(entry.value)
    explained = names_in_args(entry.docstring)
    if explained:
        assert explained == given
    elif not is_dataclass(entry.value) and "." not in entry.name:
        # one parameter may be explained by the sentence; the fields of a dataclass by comments
        assert len(given) <= 1, f"{entry.name} has no Args"


@pytest.mark.parametrize("entry", DESCRIBED, ids=lambda entry: entry.name)
def test_nothing_of_a_signature_or_docstring_is_lost(entry, page):
    section = section_of(page, entry.name)
    signature = section.find("pre").get_text()
    if not isinstance(entry.value, property):
        for parameter in inspect.signature(entry.value).parameters.values():
            if parameter.name not in ("self", "cls"):
                assert re.search(rf"\b{parameter.name}\b", signature)
    listed = [item.code.get_text() for item in section.find_all("li") if item.code]
    assert set(names_in_args(entry.docstring)) <= set(listed)
    for formula in section.find_all("math"):
        formula.replace_with(f"${formula.find('annotation').get_text()}$")
    said = re.sub(r":\w+:`~?(?:catlib\.)?([^`]+)`", r"\1", entry.docstring)
    words = re.findall(r"[\w<>/.]{3,}", said.replace("Args:", "Arguments:"))
    text = section.get_text()
    assert [word for word in words if word.rstrip(".") not in text] == []
    assert ":func:" not in text and ":class:" not in text


def test_every_name_leads_to_its_line(page):
    for entry in ENTRIES:
        path, line = entry.place()
        link = section_of(page, entry.name).find("a", href=re.compile("github.com"))
        assert link["href"].endswith(f"/kit/blob/HEAD/{path}#L{line}")
        source = (README.parent / path).read_text(encoding="utf-8").splitlines()
        defined = next(text for text in source[line - 1 :] if text.startswith(("def ", "class ")))
        assert re.match(rf"(def|class) {entry.name}\b", defined)


def test_references_between_names_are_links_that_lead_somewhere(page):
    inside = [link["href"][1:] for link in page.main.select("a[href^='#']:not(.anchor-link)")]
    assert len(inside) > len(ENTRIES) + len(ROOMS)
    assert all(page.find(id=place) for place in inside)


@pytest.mark.parametrize(
    ("docstring", "parts"),
    [
        ("Sum.", [("", "Sum.")]),
        (
            "Sum.\n\nReturns: one\n    number.\nRaises: ValueError: no.",
            [("", "Sum."), ("Returns", "one\nnumber."), ("Raises", "ValueError: no.")],
        ),
        (
            "Sum.\n\nArgs:\n    a: 1st\n        of two.\n    b: 2nd.\n\nMore.",
            [("", "Sum."), ("Args", "a: 1st\n    of two.\nb: 2nd."), ("", "More.")],
        ),
    ],
)
def test_a_docstring_is_read_in_its_parts(docstring, parts):
    assert reference.sections(docstring) == parts


def test_entries_and_errors_are_told_apart():
    assert reference.entries("a: 1st\n    of two.\nb, c: 2nd.") == {
        "a": "1st of two.",
        "b": "2nd.",
        "c": "2nd.",
    }
    assert reference.errors("ValueError, TypeError: bad.\nKeyboardInterrupt: Ctrl-C.") == [
        ("ValueError, TypeError", "bad."),
        ("KeyboardInterrupt", "Ctrl-C."),
    ]
    assert reference.errors("as the other one.") == [("", "as the other one.")]


def test_every_page_of_the_course_leads_to_the_reference(tmp_path, monkeypatch, capsys):
    runs = tmp_path / "runs" / "digits"
    runs.mkdir(parents=True)
    monkeypatch.setattr("catlib.lab.batch.course_notebooks", lambda: [])
    assert command_line.main(["course", "--out", str(tmp_path / "runs")]) == 0
    folder = tmp_path / "runs" / "course"
    assert capsys.readouterr().out.startswith("Read: ")
    front = BeautifulSoup((folder / "index.html").read_text(encoding="utf-8"), "html.parser")
    assert front.nav.find("a", href="api.html") and front.main.find("a", href="api.html")
    api = BeautifulSoup((folder / "api.html").read_text(encoding="utf-8"), "html.parser")
    assert api.nav.find("a", href="api.html")["aria-current"] == "page"

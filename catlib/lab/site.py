"""Executed notebooks as a static site: linked pages with an index, readable without a network."""

import ast
import html
import json
import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from traitlets.config import Config

from .course import Lesson, course, duration
from .markdown import between
from .paths import DOCS, NOTEBOOKS, README, ROOT

INSTRUCTORS = DOCS / "instructors.md"
PLOTLY = "application/vnd.plotly.v1+json"
BEST_FIRST = [
    PLOTLY,
    "text/html",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/markdown",
    "text/latex",
    "text/plain",
]
BLOCKS = {"p", "li", "div", "td", "th", "pre", "blockquote", "details", "summary", "br"}
PARAMETER_CELLS = {"parameters", "injected-parameters"}
WITHOUT_TEXT = "A figure; the text below it says what it shows."


@dataclass(frozen=True)
class Page:
    """A notebook as a page of the site, with what other pages show of it.

    Attributes:
        name: of the page's file, without the ending.
        node: the notebook (nbformat).
        title: its first heading.
        lesson: what the course says about it; None for a notebook outside the course.
        cover: the picture of the front page, a PNG in base64, if there is one.
        cover_text: the text alternative of the cover.
        live: whether a figure of the page is drawn by plotly.
    """

    name: str
    node: Any
    title: str
    lesson: Lesson | None
    cover: str | None
    cover_text: str
    live: bool


@dataclass(frozen=True)
class Home:
    """Where a site is published; without it, pages name no address.

    Attributes:
        address: of the site, without a "/" at the end; "" if it is not published.
        repository: OWNER/NAME on GitHub, where Colab and Binder find the notebooks; "" if unknown.
    """

    address: str = ""
    repository: str = ""

    def file(self, path: str) -> str:
        """The address of a file of the repository."""
        return f"https://github.com/{self.repository}/blob/HEAD/{path}"

    def tools(self, page: Page) -> dict[str, str]:
        """Where a notebook can be opened and run: name of the tool to address."""
        if not self.repository:
            return {}
        path = f"notebooks/{page.name}.ipynb"
        return {
            "Colab": f"https://colab.research.google.com/github/{self.repository}/blob/HEAD/{path}",
            "Binder": f"https://mybinder.org/v2/gh/{self.repository}/HEAD?labpath={path}",
        }


def home(address: str = "", repository: str = "") -> Home:
    """Where a site is published.

    Args:
        address: of the site, such as https://owner.github.io/name.
        repository: OWNER/NAME on GitHub; "" takes it from an address of GitHub Pages.

    Raises: ValueError: not an http address, or not OWNER/NAME.
    """
    parts = urlsplit(address)
    if address and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError(
            f"the base URL is {address!r}; it must begin with https:// or http:// and name a host, "
            "as https://owner.github.io/name does"
        )
    pages = re.fullmatch(r"([\w-]+)\.github\.io", parts.hostname or "")
    name = parts.path.strip("/").split("/")[0]
    if not repository and pages and name:
        repository = f"{pages[1]}/{name}"
    if repository and not re.fullmatch(r"[\w-]+/[\w.-]+", repository):
        raise ValueError(f"the repository is {repository!r}; it must be OWNER/NAME, as on GitHub")
    return Home(address.rstrip("/"), repository)


def write_site(
    notebooks: Iterable[Path | str],
    folder: Path | str,
    published: Home | None = None,
    reference: nbformat.NotebookNode | None = None,
) -> None:
    """Write executed notebooks as linked HTML pages with an index, readable without a network.

    Equations become MathML that is copied as TeX, pictures are embedded, the index can be searched,
    and plotly's script is written once, if any page has a figure that needs it.

    Args:
        notebooks: paths, in reading order.
        folder: of the pages; made if it is missing.
        published: where the site will stand; None names no address on any page.
        reference: of the code, as a notebook; it becomes the page api.html.
    """
    published = published or Home()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pages = [_page(path.stem, nbformat.read(path, 4)) for path in map(Path, notebooks)]
    exporter = _exporter({page.name for page in pages}, published)
    api = None if reference is None else _page("api", reference)
    shared = {
        "pages": pages,
        "api": api,
        "course": course(),
        "published": published,
        "style": _beside("page.css"),
        "script": _beside("page.js"),
    }
    entries = []
    for page in [*pages, *filter(None, [api])]:
        text = _html(exporter, page.node, shared | {"page": page})
        (folder / f"{page.name}.html").write_text(text, encoding="utf-8")
        entries += _search_entries(page, text)
    front = nbformat.v4.new_notebook()  # empty: the template fills it with the course
    index = _html(exporter, front, shared | {"page": None})
    (folder / "index.html").write_text(index, encoding="utf-8")
    # a script and not JSON, since a page that was opened from a file may not read other files
    search = f"window.courseIndex = {json.dumps(entries, ensure_ascii=False)};\n"
    (folder / "search.js").write_text(search, encoding="utf-8")
    plotly = folder / "plotly.min.js"
    plotly.unlink(missing_ok=True)
    if any(page.live for page in pages):
        from plotly.offline import get_plotlyjs

        plotly.write_text(get_plotlyjs(), encoding="utf-8")


def write_course_map(
    notebooks: Iterable[Path | str], documents: Iterable[Path] = (README, INSTRUCTORS)
) -> None:
    """Renew the documents' table of the course: each notebook, its question, the time it takes."""
    pages = [(path, _page(path.stem, nbformat.read(path, 4))) for path in map(Path, notebooks)]
    for document in documents:
        rows = ["| notebook | question | time |", "| --- | --- | --- |"]
        for path, page in pages:
            link = Path(os.path.relpath(path, document.parent)).as_posix()
            question = page.lesson.question if page.lesson else ""
            time = duration(page.lesson.minutes) if page.lesson else ""
            rows.append(f"| [{page.title}]({link}) | {question} | {time} |")
        text = between(document.read_text(encoding="utf-8"), "course", "\n".join(rows))
        document.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------ from a notebook to a page


def _beside(name: str) -> str:
    """A file that stands beside this one."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _html(exporter: HTMLExporter, node, resources: dict) -> str:
    text, _ = exporter.from_notebook_node(node, resources)
    return text


def _exporter(names: set[str], published: Home) -> HTMLExporter:
    """What turns a notebook into a page, by the template page.html.j2.

    Args:
        names: of the pages of the site; links to other files lead out of it.
    """

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return equation(body)

        def block_math(self, body):
            return equation(body, display="block")

        def latex_environment(self, name, body):
            return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

        def link(self, text, url, title=None):
            address = _address(url, names, published)
            if address is None:
                return text
            return super().link(text, address, title)

    def markdown(source: str) -> str:
        renderer = Renderer(escape=False, embed_images=True, path=str(NOTEBOOKS))
        return MarkdownWithMath(renderer=renderer).render(source)

    exporter = HTMLExporter(
        template_name="classic",
        template_file=str(Path(__file__).with_name("page.html.j2")),
        config=Config(NbConvertBase=Config(display_data_priority=BEST_FIRST)),
    )
    exporter.register_filter("markdown2html", markdown)
    # highlighting has escaped the code already; to clean it again takes a third of the time
    exporter.register_filter("clean_html", lambda html: html)
    exporter.register_filter("duration", duration)
    exporter.register_filter("summary_of_folded", summary_of_folded)
    exporter.register_filter("holds_columns", holds_columns)
    return exporter


def equation(tex: str, display: str = "inline") -> str:
    """TeX as MathML that carries its source, so that a reader can copy it."""
    mathml = convert(tex, display=display)
    source = html.escape(tex.strip(), quote=False)
    annotation = f'<annotation encoding="application/x-tex">{source}</annotation>'
    opened = mathml.replace(">", "><semantics>", 1)  # the end of the opening tag
    return opened.removesuffix("</math>") + annotation + "</semantics></math>"


def _address(url: str, names: set[str], published: Home) -> str | None:
    """Where a link of a notebook leads on the site; None: to a file that the site does not have."""
    if urlsplit(url).scheme or url.startswith("#"):
        return url
    path, hash_sign, place = url.partition("#")
    name = path.removesuffix(".ipynb")
    if name in names:
        return f"{name}.html{hash_sign}{place}"
    if published.repository:
        return published.file(posixpath.normpath(f"notebooks/{path}")) + hash_sign + place
    return None


def summary_of_folded(cell) -> str:
    """What stands over a folded cell: its first comment; "" for a cell that is not folded.

    Folded are cells whose source is hidden in JupyterLab, and parameters, also papermill's.
    """
    tags = set(cell.metadata.get("tags", []))
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    if not hidden and not tags & PARAMETER_CELLS:
        return ""
    if "injected-parameters" in tags:
        return "The parameters of this run"
    first = cell.source.lstrip().partition("\n")[0]
    if first.startswith("#"):
        return first.lstrip("# ").strip()
    return "Parameters" if "parameters" in tags else "Code"


def holds_columns(text: str) -> bool:
    """Whether printed text is a table, whose lines must not be broken."""
    lines = [line for line in text.splitlines() if re.search(r"\S {2,}\S", line)]
    return len(lines) >= 2


def _page(name: str, node: nbformat.NotebookNode) -> Page:
    """A notebook as a page; the cover is of a cell that is tagged "cover", or the first picture."""
    _hide_machine_paths(node)
    text = "\n".join(cell.source for cell in node.cells if cell.cell_type == "markdown")
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    title = heading[1] if heading else name
    outputs = _outputs(node.cells)
    for output in outputs:
        if "image/png" in output.get("data", {}):
            output.metadata.setdefault("image/png", {}).setdefault("alt", WITHOUT_TEXT)
    covers = _outputs(sorted(node.cells, key=lambda cell: not _is_cover(cell)))
    pictures = [output for output in covers if "image/png" in output.get("data", {})]
    return Page(
        name=name,
        node=node,
        title=title,
        lesson=course().lesson(name),
        cover=pictures[0].data["image/png"] if pictures else None,
        cover_text=pictures[0].metadata["image/png"]["alt"] if pictures else "",
        live=any(PLOTLY in output.get("data", {}) for output in outputs),
    )


def _outputs(cells: Sequence) -> list:
    return [output for cell in cells for output in cell.get("outputs", [])]


def _is_cover(cell) -> bool:
    return "cover" in cell.metadata.get("tags", [])


def _hide_machine_paths(node) -> None:
    """Shorten, in place, the folders of the machine that ran the notebook.

    They come from papermill's parameters, such as output_dir, and from what a cell printed.
    """
    shorter = {f"{ROOT}/": "", str(ROOT): "."}
    if Path.home() != Path("/"):  # as in a container without a user of this number
        shorter[str(Path.home())] = "~"
    for cell in node.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            shorter |= _absolute_paths(cell.source)

    def shortened(text):
        if isinstance(text, list):
            return [shortened(line) for line in text]
        for path in sorted(shorter, key=len, reverse=True):
            text = text.replace(path, shorter[path])
        return text

    for cell in node.cells:
        cell.source = shortened(cell.source)
    for output in _outputs(node.cells):
        if "text" in output:
            output.text = shortened(output.text)
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/"):
                output.data[kind] = shortened(value)


def _absolute_paths(source: str) -> dict[str, str]:
    """The absolute paths among the literals of a cell, each with its last two parts."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            path = Path(node.value)
            if path.is_absolute() and len(path.parts) > 1:
                found[node.value] = "/".join(path.parts[1:][-2:])
    return found


# ------------------------------------------------------------------ the search


def _search_entries(page: Page, html_text: str) -> list[dict[str, str]]:
    """The sections of a page for the search: where they are, and their text without outputs."""
    main = BeautifulSoup(html_text, "html.parser").main
    assert main is not None
    for tag in main.select("nav, script, style, .output_wrapper, .prompt, .anchor-link, .open"):
        tag.decompose()
    for tag in main.select("math"):
        tex = tag.select_one("annotation")
        if tex is not None:
            tag.replace_with(tex.get_text())
    entries: list[dict[str, str]] = []
    texts: list[list[str]] = []
    for element in main.descendants:
        if isinstance(element, Tag) and texts and element.name in BLOCKS:
            texts[-1].append(" ")  # the words of two paragraphs do not run together
        if isinstance(element, Tag) and element.name in ("h1", "h2", "h3"):
            place = element.get("id", "")
            entries.append(
                {
                    "page": page.name,
                    "place": str(place),
                    "title": page.title,
                    "heading": element.get_text().strip(),
                }
            )
            texts.append([])
        elif isinstance(element, NavigableString) and entries:
            texts[-1].append(str(element))
    for entry, parts in zip(entries, texts, strict=True):
        text = " ".join("".join(parts).split())
        entry["text"] = text.removeprefix(entry["heading"]).strip()
    return entries

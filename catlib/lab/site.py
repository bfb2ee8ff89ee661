"""Executed notebooks as a static site: linked pages with an index, readable without a network."""

import base64
import io
import os
import re
from pathlib import Path

from .markdown import between
from .paths import DOCS, NOTEBOOKS, README


def write_site(notebooks, folder) -> None:
    """Write executed notebooks as linked HTML pages with an index, readable without a network.

    Equations become MathML, pictures are embedded, and plotly figures share one copy of plotly's
    script.
    """
    import nbformat
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from plotly.offline import get_plotlyjs
    from traitlets.config import Config

    class Renderer(IPythonRenderer):
        def inline_math(self, body):
            return convert(body)

        def block_math(self, body):
            return convert(body, display="block")

        def latex_environment(self, name, body):
            return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

        def link(self, text, url, title=None):
            return super().link(text, re.sub(r"^(\d\d_\w+)\.ipynb", r"\1.html", url), title)

    def markdown(source):
        renderer = Renderer(escape=False, embed_images=True, path=str(NOTEBOOKS))
        return MarkdownWithMath(renderer=renderer).render(source)

    best_first = [
        "application/vnd.plotly.v1+json",
        "text/html",
        "image/svg+xml",
        "image/png",
        "image/jpeg",
        "text/markdown",
        "text/latex",
        "text/plain",
    ]
    exporter = HTMLExporter(
        template_name="classic",
        template_file=str(Path(__file__).with_name("page.html.j2")),
        config=Config(NbConvertBase=Config(display_data_priority=best_first)),
    )
    exporter.register_filter("markdown2html", markdown)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    nodes = [nbformat.read(path, as_version=4) for path in notebooks]
    pages = [_summary(Path(path).stem, node) for path, node in zip(notebooks, nodes, strict=True)]
    index = nbformat.v4.new_notebook()  # empty: the template fills it with `pages`
    for number, node in enumerate([*nodes, index]):
        name = pages[number]["name"] if number < len(pages) else "index"
        html, _ = exporter.from_notebook_node(node, {"pages": pages, "number": number})
        (folder / f"{name}.html").write_text(html, encoding="utf-8")


def _summary(name, node) -> dict:
    """What the index shows of a page: its title, first paragraph and picture.

    The picture is the first in a cell that is tagged "cover", else the first of all.
    """
    text = "\n".join(cell.source for cell in node.cells if cell.cell_type == "markdown")
    title = re.search(r"^# (.+)$", text, re.M)
    lead = re.search(r"^(?![#>|!<*\-\s]).+[.!?]$", text, re.M)
    cells = sorted(node.cells, key=lambda cell: "cover" not in cell.metadata.get("tags", []))
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    picture = next((bundle["image/png"] for bundle in data if "image/png" in bundle), None)
    return dict(
        name=name, title=title[1] if title else name, lead=lead[0] if lead else "", picture=picture
    )


def write_course_map(notebooks, readme: Path = README, pictures: Path = DOCS / "course") -> None:
    """Renew the README's map of the course: of each notebook its title, a link and its cover."""
    import nbformat
    from PIL import Image

    pictures.mkdir(parents=True, exist_ok=True)
    fields = []
    for path in map(Path, notebooks):
        page = _summary(path.stem, nbformat.read(path, as_version=4))
        cover = pictures / f"{path.stem}.png"
        picture = Image.open(io.BytesIO(base64.b64decode(page["picture"]))).convert("RGB")
        picture.thumbnail((400, 240))
        picture.quantize(256).save(cover, optimize=True)
        link, image = (os.path.relpath(target, readme.parent) for target in (path, cover))
        fields.append(f'[{page["title"]}]({link})<br><img src="{image}" width="260" alt="">')
    rows = [fields[i : i + 3] for i in range(0, len(fields), 3)]
    table = ["| | | |", "| --- | --- | --- |", *("| " + " | ".join(row) + " |" for row in rows)]
    text = between(readme.read_text(encoding="utf-8"), "course", "\n".join(table))
    readme.write_text(text, encoding="utf-8")

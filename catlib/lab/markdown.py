"""Generated Markdown: a table, and the replacement of the part of a text between two markers."""

import re

import pandas as pd


def table(rows: pd.DataFrame) -> str:
    """A pipe table with one line a row; the index is left out, and a "|" within a cell is escaped.

    Numbers are written as ``str`` writes them, so format them before. Cells are not padded to one
    width, nor is the rule below the header: some cells are whole sentences, and a change in one row
    should change only that line.
    """
    cells = rows.astype(str).map(lambda cell: cell.replace("|", "\\|"))
    text = cells.to_markdown(index=False, stralign=None, disable_numparse=True)
    header, rule, *lines = text.splitlines()
    rule = re.sub(r"-+", " --- ", rule)
    return "\n".join([header, rule, *lines]) + "\n"


def between(text: str, marker: str, content: str) -> str:
    """The text with ``content`` in place of what stands between two markers, each on its own line.

    The markers are ``<!-- marker -->`` and ``<!-- /marker -->``; they stay.

    Raises: ValueError: the text does not contain the two markers exactly once, in this order.
    """
    begin = f"<!-- {marker} -->\n"
    end = f"<!-- /{marker} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    found = pattern.findall(text)
    if len(found) != 1:
        raise ValueError(
            f"The text has {len(found)} parts between {begin.strip()} and {end}, not one; "
            "put each of the two markers on a line of its own."
        )
    before, after = pattern.split(text)
    return f"{before}{begin}{content.rstrip()}\n{end}{after}"

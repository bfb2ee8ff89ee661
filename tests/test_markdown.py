"""Generated Markdown: tables, and the parts of a text between markers."""

import pandas as pd
import pytest

from catlib.lab.markdown import between, table

pytestmark = pytest.mark.no_device("it writes tables")


def test_a_table_keeps_its_cells_as_they_are():
    rows = pd.DataFrame({"": ["a|b", "c"], "ratio": ["1.50", "—"]})
    lines = table(rows).splitlines()
    assert lines[0] == "|  | ratio |"
    assert lines[1] == "| --- | --- |"
    assert lines[2:] == ["| a\\|b | 1.50 |", "| c | — |"]


def test_text_between_markers_is_replaced_and_nothing_else():
    text = "a\n<!-- results -->\nold\n<!-- /results -->\nb\n"
    new = "a\n<!-- results -->\nnew\n<!-- /results -->\nb\n"
    assert between(text, "results", "new\n") == new
    assert between(new, "results", "new\n") == new


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- results -->\nnever closed",
        "<!-- /results -->\n<!-- results -->\n",
        2 * "<!-- results -->\nold\n<!-- /results -->\n",
    ],
)
def test_a_text_without_its_two_markers_is_refused(text):
    with pytest.raises(ValueError, match="<!-- results -->"):
        between(text, "results", "new")

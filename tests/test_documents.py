"""What the documents show: their examples run as they stand, and their tables are true."""

import re
from pathlib import Path

import pytest

import catlib

ROOT = Path(catlib.__file__).resolve().parents[1]


def code_of(document: str, number: int = 0) -> str:
    """The Python example of a Markdown document, by its place among the document's examples."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]


def checksums_of(name: str) -> list[str]:
    """The checksums that data/README.md states for a data set."""
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return re.findall(r"`([0-9a-f]{16})`", row)


def test_the_data_notes_check_the_digits(capsys):
    exec(code_of("data/README.md"), {})
    assert capsys.readouterr().out.split() == checksums_of("digits")


@pytest.mark.slow
def test_the_data_notes_state_the_checksums_of_the_real_data(real_data):
    names = {}
    exec(code_of("data/README.md"), names)
    fingerprint = names["fingerprint"]
    found = [
        fingerprint(real_data.x_train, real_data.y_train),
        fingerprint(real_data.x_test, real_data.y_test),
    ]
    assert found == checksums_of(real_data.name)

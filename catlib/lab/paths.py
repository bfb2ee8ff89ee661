"""Where things lie in a clone: the one place that knows the folders of the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
SOLUTIONS = NOTEBOOKS / "solutions"
RESULTS = ROOT / "data" / "results"
DOCS = ROOT / "docs"
README = ROOT / "README.md"

"""The floors of the house: imports go down, never up, and never in a circle.

equations < things < protocol < laboratory, and within the laboratory floors of its own.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import catlib

pytestmark = pytest.mark.no_device("it reads imports")

PACKAGE = Path(catlib.__file__).parent
LAB = PACKAGE / "lab"
# The lowest first. A name is a module or a folder of modules; one that stands in no row fails.
FLOORS = [
    {"attacks", "checks", "gain", "interrupts", "kernels", "modes", "readings", "samplers"},
    {"data", "files", "guards", "memory", "models", "own", "ranks", "survivors"},
    {"training", "evaluation", "collapse"},
    {"lab"},
]
LAB_FLOORS = [
    {"__init__", "course", "paths", "markdown", "paper", "sources"},
    {"runs", "baselines", "losses"},
    {
        "batch",
        "compare",
        "explorer",
        "figures",
        "frontier",
        "judge",
        "similarity",
        "site",
        "trained",
    },
    {"diagrams"},
    {
        "study",
        "gpu",
        "background",
        "panel",
        "explore",
        "exercises",
        "lessons",
        "editions",
        "environment",
    },
    {"summaries", "claims", "train"},
    {"advice"},
    {"pages", "race", "reference"},
    {"__main__"},
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
EQUATIONS = {"torch", "numpy", "numba"} | sys.stdlib_module_names
TOO_HEAVY = {
    "matplotlib",
    "plotly",
    "ipywidgets",
    "IPython",
    "ipykernel",
    "jupyterlab",
    "nbformat",
    "nbclient",
    "papermill",
    "dask",
    "distributed",
    "pandas",
    "sklearn",
    "scipy",
    "numba",
    "torchattacks",
}


def room(path: Path, house: Path) -> str:
    """The module or folder of a house, which is a package, in which a file stands."""
    return path.relative_to(house).with_suffix("").parts[0]


def floor(path: Path, house: Path = PACKAGE) -> int:
    floors = LAB_FLOORS if house == LAB else FLOORS
    found = [number for number, names in enumerate(floors) if room(path, house) in names]
    assert found, f"{path.relative_to(house)} stands on no floor; add it to the floors above"
    return found[0]


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of every import, at the top or inside a function, made absolute."""
    package = ["catlib", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from ((module, alias.name) for alias in node.names)


def file_of(parts: list[str]) -> Path | None:
    """The file of a module of catlib, given by the parts of its name after "catlib"."""
    path = PACKAGE.joinpath(*parts)
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def own_modules(path: Path) -> Iterator[Path]:
    """The files of catlib that a file imports; a name of catlib itself is looked up in it."""
    for module, name in imports(path):
        first, *parts = module.split(".")
        if first != "catlib":
            continue
        submodule = file_of([*parts, name]) if name else None
        if submodule:
            yield submodule
        elif parts:
            yield file_of(parts)
        elif name and not name.startswith("__"):
            yield file_of(getattr(catlib, name).__module__.split(".")[1:])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    for other in own_modules(path):
        assert floor(other) <= floor(path), (
            f"{path.name} imports {other.relative_to(PACKAGE)}, from a higher floor"
        )


@pytest.mark.parametrize(
    "path", sorted(LAB.rglob("*.py")), ids=lambda path: str(path.relative_to(LAB))
)
def test_imports_go_down_within_the_laboratory(path):
    assert floor(path, LAB) >= 0
    for other in own_modules(path):
        if other.is_relative_to(LAB):
            assert floor(other, LAB) <= floor(path, LAB), (
                f"{path.name} imports {other.relative_to(LAB)}, from a higher floor"
            )


def circle(graph: dict) -> list | None:
    """Nodes that import each other in a circle, if there are any."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return None


def test_no_files_import_each_other_in_a_circle():
    graph = {path: set(own_modules(path)) - {path} for path in MODULES}
    assert circle(graph) is None


@pytest.mark.parametrize("house", [PACKAGE, LAB], ids=["catlib", "catlib/lab"])
def test_no_rooms_import_each_other_in_a_circle(house):
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if path.is_relative_to(house):
            others = {room(other, house) for other in own_modules(path) if house in other.parents}
            graph.setdefault(room(path, house), set()).update(others - {room(path, house)})
    assert circle(graph) is None


def test_batch_and_site_do_not_know_each_other():
    for path in (LAB / "batch").rglob("*.py"):
        assert LAB / "site.py" not in set(own_modules(path))
    assert "batch" not in {room(other, LAB) for other in own_modules(LAB / "site.py")}


def test_only_the_command_line_parses_arguments():
    for path in MODULES:
        if path != LAB / "__main__.py":
            assert ("argparse", None) not in set(imports(path)), f"{path.name} imports argparse"
            assert '"__main__"' not in path.read_text(), f"{path.name} runs as a script"


@pytest.mark.parametrize(
    "path", [p for p in MODULES if floor(p) == 0], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_equations_lean_on_torch_and_numpy_alone(path):
    assert {module.split(".")[0] for module, _ in imports(path)} - {"catlib"} <= EQUATIONS


def test_the_readers_of_imports_see_them():
    """The test of the tests: imports in either way, inside a function too, and circles are seen."""
    assert ("catlib.kernels.tree", "Forest") in set(imports(PACKAGE / "samplers.py"))
    assert PACKAGE / "gain.py" in set(own_modules(PACKAGE / "samplers.py"))
    assert PACKAGE / "training.py" in set(own_modules(LAB / "runs.py"))
    assert LAB / "batch" / "engine.py" in set(own_modules(LAB / "study" / "work.py"))
    assert LAB / "site.py" in set(own_modules(LAB / "__main__.py")), "inside a function"
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_import_catlib_is_light():
    """No notebook, plotting, table or cluster package comes with it, nor the tree's compiler."""
    code = "import catlib, sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert not TOO_HEAVY & set(run.stdout.split()), TOO_HEAVY & set(run.stdout.split())
    assert "torch" in run.stdout.split()


def test_while_notebooks_run_nothing_is_loaded_that_writes_their_pages(tmp_path):
    """Pages are written afterwards; loaded before, it takes 100 MB beside the kernels."""
    lines = [
        "import sys",
        "from catlib.lab import __main__, batch",
        "def stopped(*values, **options):",
        "    sys.exit(str({'nbconvert', 'matplotlib', 'scipy'} & set(sys.modules)))",
        "batch.run_series = stopped",
        f"__main__.main(['run', '--out', {str(tmp_path)!r}])",
    ]
    ran = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert ran.stderr.splitlines()[-1] == "set()"


def test_each_equation_says_its_number():
    for where, equation in (
        (catlib.pgd, "Eq. 2"),
        (catlib.information_gain, "Eq. 3"),
        (catlib.smooth, "Eq. 4"),
    ):
        assert where.__doc__.startswith(equation)


def test_public_names():
    """What others build on: names, and the order of parameters that can be given by position."""
    import inspect

    def positional(f):
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
        return [
            p.name
            for p in inspect.signature(f).parameters.values()
            if p.kind in kinds and p.name != "self"
        ]

    assert positional(catlib.pgd) == ["model", "images", "labels"]
    assert positional(catlib.PGD)[:4] == ["epsilon", "step_size", "steps", "restarts"]
    assert catlib.PGD() == catlib.PGD(
        8 / 255, steps=10, restarts=1, random_start=True, rule="sign", norm="linf"
    )
    assert positional(catlib.information_gain) == ["logits", "labels"]
    assert positional(catlib.smooth) == ["previous", "gain", "alpha"]
    assert positional(catlib.UniformSampler) == ["labels", "sampling_number"]
    assert positional(catlib.CaseSampler) == ["labels", "sampling_number", "alpha"]
    assert positional(catlib.load_data) == ["name", "root"] and positional(catlib.build_model) == [
        "name",
        "data",
    ]
    assert positional(catlib.Training) == ["model", "data", "sampler", "attack", "optimizer"]
    assert positional(catlib.accuracy) == ["model", "images", "labels"]
    assert positional(catlib.robust_accuracy) == ["model", "images", "labels", "attack"]
    assert positional(catlib.check_model) == ["model", "images"]
    assert len(set(catlib.__all__)) == len(catlib.__all__)
    assert all(getattr(catlib, name).__doc__ for name in catlib.__all__)

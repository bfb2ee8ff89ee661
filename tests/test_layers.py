"""The floors of the house: equations < things < protocol < laboratory; imports go down, never up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import catlib

PACKAGE = Path(catlib.__file__).parent
FLOORS = [
    {"attacks", "gain", "samplers", "kernels", "interrupts"},
    {"data", "files", "guards", "models"},
    {"training", "evaluation"},
    {"lab"},
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


def floor(path: Path) -> int:
    first = path.relative_to(PACKAGE).with_suffix("").parts[0]
    found = [i for i, names in enumerate(FLOORS) if first in names]
    assert found, f"{path.name} stands on no floor; add it to FLOORS"
    return found[0]


def imports(path: Path):
    """(module, name or None) of every import, at the top or inside a function; relative ones made absolute."""
    package = ["catlib", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from ((module, alias.name) for alias in node.names)


def own_modules(path: Path):
    """The files of catlib that this file imports; a name taken from the package itself is looked up in it."""
    for module, name in imports(path):
        parts = module.split(".")
        if parts[0] != "catlib":
            continue
        if len(parts) == 1:
            if name is None or name.startswith("__"):
                continue
            if not ((PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()):
                name = getattr(catlib, name).__module__.split(".")[1]
            parts.append(name)
        yield (
            PACKAGE / f"{parts[1]}.py"
            if (PACKAGE / f"{parts[1]}.py").exists()
            else PACKAGE / parts[1] / "__init__.py"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    for other in own_modules(path):
        assert floor(other) <= floor(path), (
            f"{path.name} imports {other.relative_to(PACKAGE)}, from a higher floor"
        )


@pytest.mark.parametrize(
    "path", [p for p in MODULES if floor(p) == 0], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_equations_lean_on_torch_and_numpy_alone(path):
    assert {module.split(".")[0] for module, _ in imports(path)} - {"catlib"} <= EQUATIONS


def test_the_readers_of_imports_see_them(tmp_path):
    """The test of the test: a module that imports upwards, in either way and inside a function, is seen."""
    assert ("catlib.kernels.tree", "Forest") in set(imports(PACKAGE / "samplers.py"))
    assert PACKAGE / "gain.py" in set(own_modules(PACKAGE / "samplers.py"))
    assert PACKAGE / "training.py" in set(own_modules(PACKAGE / "lab" / "runs.py"))


def test_import_catlib_is_light():
    """No notebook, plotting, table or cluster package, nor the compiler of the tree, comes with it."""
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


def test_each_equation_says_its_number():
    for where, equation in (
        (catlib.pgd, "Eq. 2"),
        (catlib.information_gain, "Eq. 3"),
        (catlib.smooth, "Eq. 4"),
    ):
        assert where.__doc__.startswith(equation)


def test_public_names():
    """What others build on: names and the order of parameters that can be given by position."""
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

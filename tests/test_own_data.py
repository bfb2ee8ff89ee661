"""The way from a folder of images to a judged model, as docs/own.md goes it."""

import re
import shlex

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import catlib
from catlib.lab import __main__ as command_line
from catlib.lab.judge import read_weights
from catlib.lab.paths import DOCS, ROOT

CLASSES = ("checks", "disc", "stripes")


def texture(kind, size, random):
    """A coloured picture (size, size, 3) uint8 of one of the classes, with noise."""
    y, x = np.mgrid[:size, :size]
    shift = random.integers(4, size=2)
    if kind == "stripes":
        pattern = (x + shift[0]) // 3 % 2
    elif kind == "checks":
        pattern = ((x + shift[0]) // 4 + (y + shift[1]) // 4) % 2
    else:
        pattern = (x - size / 2 + shift[0]) ** 2 + (y - size / 2 + shift[1]) ** 2 < size**2 / 9
    light, dark = random.uniform(0.6, 1, 3), random.uniform(0, 0.4, 3)
    image = np.where(pattern[..., None], light, dark) + random.normal(0, 0.03, (size, size, 3))
    return (255 * image.clip(0, 1)).astype(np.uint8)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """The current folder, with a folder `textures` in it: 60 images in three classes."""
    random = np.random.default_rng(0)
    for kind in CLASSES:
        (tmp_path / "textures" / kind).mkdir(parents=True)
        for number in range(20):
            image = Image.fromarray(texture(kind, 16, random))
            image.save(tmp_path / "textures" / kind / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def documented(beginning, **settings):
    """The arguments of the one command of docs/own.md that begins so, with other settings."""
    text = (DOCS / "own.md").read_text(encoding="utf-8")
    [line] = re.findall(rf"^catlib ({beginning}.*)$", text, re.MULTILINE)
    for name, value in settings.items():
        line = re.sub(rf" -p {name}=\S+", "", line) + f" -p {name}={value}"
    return shlex.split(line)


@pytest.mark.slow
def test_the_document_leads_from_a_folder_of_images_to_a_judged_model(in_folder, capsys):
    less = {"iterations": 60, "evaluate_every": 30, "epsilon_warm_up": 20, "sampling_number": 24}
    assert command_line.main([*documented("batch trial", **less), "--workers", "1"]) == 0
    table = pd.read_csv("runs/textures/table.csv")
    assert sorted(table.method) == ["AT", "CAT"]
    best = table.loc[table.robust_accuracy.idxmax()]
    assert best.accuracy > 0.6, "chance is 0.33"
    assert best.run in capsys.readouterr().out, "the document calls it NAME, as the table has it"

    arguments = [word.replace("NAME", best.run) for word in documented("judge")]
    assert command_line.main([*arguments, "--autoattack", "4"]) == 0
    said = capsys.readouterr().out
    row = re.search(r"^accuracy +(\S+) +12 ", said, re.MULTILINE)
    assert float(row[1]) == pytest.approx(best.accuracy, abs=1e-4), "the model that was trained"
    assert re.search(r"^autoattack +\S+ +4 ", said, re.MULTILINE)
    assert "4 images are few: autoattack is" in said, "the number to quote"

    text = (DOCS / "own.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    names = {}
    exec(code.replace("NAME", best.run), names)
    assert set(capsys.readouterr().out.split()) <= set(CLASSES)
    trained = read_weights(f"runs/textures/{best.run}/checkpoint.pt")
    assert all((trained[key] == value).all() for key, value in names["model"].state_dict().items())


@pytest.mark.slow
@pytest.mark.no_device("its notebook is one that nbval runs")
def test_notebook_06_races_on_a_folder_of_images(in_folder):
    arguments = documented("batch CLONE", iterations=8, evaluate_every=2)
    arguments = [word.replace("CLONE", str(ROOT)) for word in arguments]
    assert command_line.main([*arguments, "--workers", "1"]) == 0
    [path] = (in_folder / "runs" / "race").glob("*/*.ipynb")
    cells = nbformat.read(path, 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    texts = [output.get("text", "") for output in outputs]
    assert any("CAT − AT at the end" in text for text in texts)
    chosen = f"The settings of the race: {{'sampling_number': 48, 'epsilon': {8 / 255}"
    assert any(chosen in text for text in texts), "the reader sees what was chosen"
    records = pd.read_csv(path.parent / "records.csv")
    assert set(records.arm) == {"AT", "CAT"} and records.iteration.max() == 8
    assert records.sampling_number.unique() == [48], "all training images, as there are so few"
    about = (path.parent / "table.csv").read_text(encoding="utf-8").splitlines()[0]
    assert f"'epsilon': {8 / 255}" in about and str(in_folder / "textures") in about


def test_a_folder_without_images_for_test_names_its_classes(in_folder):
    data = catlib.load_data("textures")
    assert data.classes == CLASSES and data.name == "textures"
    assert (len(data.y_train), len(data.y_test)) == (48, 12)

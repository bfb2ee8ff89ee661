"""What the documents show: their examples run as they stand, and their tables are true."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import catlib
from catlib.lab import __main__ as command_line

pytestmark = pytest.mark.no_device("it reads pages, and trains in processes that see no mock")

ROOT = Path(catlib.__file__).resolve().parents[1]
DOCUMENTS = [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
DOCUMENTS += ["CONTRIBUTING.md", "data/README.md", "data/results/README.md"]


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


def test_the_loop_of_the_readme_trains_a_model(digits):
    images, labels = digits.train(slice(200))
    model = catlib.build_model("cnn", digits)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    names = {"images": images, "labels": labels, "model": model, "optimizer": optimizer}
    before = catlib.accuracy(model, images, labels)
    code = code_of("README.md").replace("steps=10", "steps=1").replace("number=128", "number=50")
    for _ in range(10):
        exec(code, names)
    assert catlib.accuracy(model, images, labels) > before + 0.2
    assert (names["sampler"].weights != 1).any()


def test_the_examples_of_your_own_data_and_model_run(tmp_path, monkeypatch, capsys):
    names = {}
    exec(code_of("docs/own.md", 1), names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["3", "6"]
    # a name of its own: another document has a my_models too, and a process imports a name once
    (tmp_path / "models_of_own.py").write_text(code_of("docs/own.md", 2))
    monkeypatch.chdir(tmp_path)
    model = catlib.build_model("models_of_own:small", names["data"])
    assert model(names["data"].test()[0]).shape == (50, 3)


def test_the_example_of_one_command_trains_and_loads_a_model(tmp_path, monkeypatch, capsys):
    """With the command's budget cut, and a report on few images."""
    text = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    command = re.search(r"^catlib (train .*--passes) 2e5 (.*)$", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    words = [*command[1].split(), "3e4", *command[2].split(), "--device", "cpu"]
    assert command_line.main([*words, "--images", "50", "--autoattack", "0"]) == 0
    capsys.readouterr()
    exec(code_of("docs/train.md"), {})
    assert re.fullmatch(r"[5-9]\d% right|100% right", capsys.readouterr().out.strip())


@pytest.mark.slow
def test_the_example_of_several_ranks_trains_and_goes_on(tmp_path, digits):
    (tmp_path / "train.py").write_text(code_of("docs/ranks.md"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    printed = subprocess.run(
        [*torchrun, "2", "train.py"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert [line.split()[:2] for line in printed.splitlines()] == [["20", "15360"], ["40", "30720"]]
    model = catlib.build_model("cnn", digits, seed=3)
    sampler = catlib.CaseSampler(digits.y_train, sampling_number=128)
    attack = catlib.PGD(0.1, steps=5)
    training = catlib.Training(model, digits, sampler, attack, device="cpu")
    training.load_state_dict(torch.load(tmp_path / "training.pt", weights_only=True))
    assert next(training).iteration == 41


@pytest.mark.parametrize("document", ["README.md", *sorted(DOCUMENTS)])
def test_links_between_documents_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not link.startswith("http"):
            assert (ROOT / document).parent.joinpath(link).exists(), link


def test_the_readme_is_a_front_door():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("folder", ["catlib", "catlib/lab"])
def test_every_file_of_the_code_is_listed_with_what_is_in_it(folder):
    listed = (ROOT / "docs" / "house.md").read_text(encoding="utf-8").split("## Every file")[1]
    names = [path.name for path in (ROOT / folder).glob("*.py")]
    names += [f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")]
    missing = [name for name in names if name != "__init__.py" and f"`{name}`" not in listed]
    missing = [name for name in missing if name != "lab/"]  # it is listed as catlib/lab/
    assert not missing


def test_what_the_documents_lead_to_exists():
    """The functions of the table "Find it" are there, in the files that it names."""
    text = (ROOT / "docs" / "house.md").read_text(encoding="utf-8")
    rows = text.split("## Find it")[1].split("## Every file")[0].splitlines()
    checked = 0
    for row in rows:
        sources = "".join(
            (ROOT / "docs" / link).read_text(encoding="utf-8")
            for link in re.findall(r"\]\(([^)]+\.py)\)", row)
        )
        for name in re.findall(r"`([A-Za-z_.]+)`", row.split("|")[-2]) if sources else []:
            if not name.endswith((".py", ".toml")) and name != "measure":
                last = name.split(".")[-1]
                assert re.search(rf"^ *(def|class) {last}\b", sources, re.MULTILINE), name
                checked += 1
    assert checked > 10

"""The same seed gives today what it gave before, in a few short runs.

Every change of the method's code that is meant to change nothing must leave these numbers as they
are. The drawn examples are compared exactly; what is computed in floating point to a relative 1e-4,
since processors round differently. A change that is meant to change results records them anew:
`python tests/test_same_results.py`.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

import catlib
from catlib.lab.runs import Trial, build_training, records_of

RECORDED = Path(__file__).with_name("same_results.json")
SMALL = {
    "iterations": 8,
    "sampling_number": 40,
    "steps": 3,
    "evaluate_every": 4,
    "evaluation_size": 50,
    "device": "cpu",
}
SETTINGS = {
    "AT": Trial(method="AT", **SMALL),
    "CAT": Trial(**SMALL),
    "CAT, l2, restarts": Trial(**SMALL, norm="l2", epsilon=0.8, restarts=2),
    "CAT, raw gradient": Trial(**SMALL, rule="gradient", class_balanced=False, temperature=2.0),
    "CAT, augmented, growing epsilon": Trial(
        **SMALL, augment=True, optimizer="adam", learning_rate=0.003, epsilon_warm_up=5
    ),
    "AT, free": Trial(method="AT", **SMALL, crafting="free"),
    "CAT, N-FGSM": Trial(**SMALL, crafting="n-fgsm", weighting="boundary"),
}


def measure(trial: Trial, tree: bool = False) -> dict:
    """What a short run draws, loses and ends with; with ``tree``, CAT draws by the sum tree."""
    training = build_training(trial)
    if tree:
        labels = training.data.y_train
        training.sampler = catlib.CaseSampler(labels, trial.sampling_number, seed=1, tree=True)
        training._batches = iter(training.sampler)
    drawn = []
    losses = []
    for record in records_of(trial, training):
        drawn.append(sorted(training.batch.indices.tolist()))
        losses.append(record.loss)
    weights = getattr(training.sampler, "weights", torch.ones(1)).double()
    parameters = torch.cat([p.detach().double().flatten() for p in training.model.parameters()])
    return {
        "drawn": drawn,
        "passes": record.passes,
        "losses": losses,
        "accuracy": record.accuracy,
        "robust accuracy": record.robust_accuracy,
        "weights": [weights.mean().item(), weights.std(correction=0).item()],
        "parameters": [parameters.mean().item(), parameters.norm().item()],
    }


def measure_all() -> dict:
    measured = {name: measure(trial) for name, trial in SETTINGS.items()}
    measured["CAT, tree"] = measure(SETTINGS["CAT"], tree=True)
    return measured


@pytest.mark.parametrize("name", [*SETTINGS, "CAT, tree"])
def test_a_seed_gives_what_it_gave(name):
    before = json.loads(RECORDED.read_text())[name]
    now = measure(SETTINGS.get(name, SETTINGS["CAT"]), tree="tree" in name)
    assert now["drawn"] == before["drawn"]
    assert now["passes"] == before["passes"]
    for part in ("losses", "accuracy", "robust accuracy", "weights", "parameters"):
        assert now[part] == pytest.approx(before[part], rel=1e-4, abs=1e-5), part


if __name__ == "__main__":
    torch.set_num_threads(1)
    RECORDED.write_text(json.dumps(measure_all()) + "\n")
    sys.exit(0)

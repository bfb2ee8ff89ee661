"""The study: its configuration is consistent, what is killed goes on, tables name their origin."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from catlib import PGD, UniformSampler, build_model, load_data
from catlib.data import data_root
from catlib.lab import site
from catlib.lab.baselines import NFGSM, BatchMean, FreeTraining
from catlib.lab.runs import Trial, build_training, is_done, records_of, run
from catlib.lab.study import plan, tables, work

TIMES = ["seconds"]


def read(path):
    return pd.read_csv(path, comment="#")


def quick(piece, **changes):
    """A piece cut down to seconds."""
    trials = tuple(
        (arm, replace(trial, iterations=4, evaluate_every=2, evaluation_size=20, **changes))
        for arm, trial in piece.trials
    )
    return replace(piece, trials=trials)


def piece(name, profile="smoke"):
    return next(piece for piece in plan.pieces_of(profile) if piece.name == name)


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("profile", plan.profiles())
def test_every_profile_is_a_list_of_whole_pieces(profile, scale):
    pieces = plan.pieces_of(profile, scale)
    assert len({piece.table for piece in pieces}) == len(pieces)
    for one in pieces:
        assert one.kind in work.KINDS
        assert set(one.levels) <= {"accuracy", "robust_accuracy"}
        labels = [
            (arm, trial.seed, *(getattr(trial, name) for name in one.options.get("grid", {})))
            for arm, trial in one.trials
        ]
        assert len(set(labels)) == len(labels)
        for first, second in one.options.get("pairs", []):
            assert {first, second} <= {arm for arm, _ in one.trials}
        if scale == "full" and one.kind == "train":
            assert len({trial.id for _, trial in one.trials}) == len(one.trials), (
                "two arms would share a run"
            )


def test_every_control_has_at_least_five_seeds_on_the_cpu_and_three_on_a_gpu():
    controls = {
        "AT",
        "CAT",
        "balance only",
        "weights only",
        "random subset",
        "inverted weights",
        "alpha 0",
        "alpha 0.25",
        "alpha 0.75",
        "alpha 0.9",
        "alpha 0.99",
        "temperature 1",
        "temperature 3",
        "warm-up",
        "softplus",
        "clamp",
        "rank",
    }
    for profile, name, least in (("cpu", "mnist_controls", 5), ("paper", "cifar10_controls", 3)):
        seeds = pd.DataFrame(
            [(arm, trial.seed) for arm, trial in piece(name, profile).trials],
            columns=["arm", "seed"],
        )
        assert controls <= set(seeds.arm)
        assert seeds.groupby("arm").seed.nunique().min() >= least


def test_at_and_cat_differ_in_the_sampler_alone():
    for profile in plan.profiles():
        for one in plan.pieces_of(profile):
            arms = {(arm, trial.seed, trial.sampling_number): trial for arm, trial in one.trials}
            for (arm, *rest), trial in arms.items():
                if arm == "CAT" and ("AT", *rest) in arms:
                    assert replace(trial, method="AT") == arms["AT", *rest]


def test_an_epsilon_can_be_scaled_and_a_step_given_in_epsilons(monkeypatch):
    monkeypatch.setitem(plan.configuration()["deviations"], "mnist", 0.25)
    assert plan.make_trial({"dataset": "mnist", "epsilon": 0.3, "scaled": 0.5}, {}).epsilon == 0.15
    assert (
        plan.make_trial({"dataset": "mnist", "epsilon": 0.3, "normalised": True}, {}).epsilon
        == 0.075
    )
    assert plan.make_trial({"dataset": "mnist", "epsilon": 0.2, "step": 1.25}, {}).step_size == 0.25


@pytest.mark.parametrize("dataset", plan.configuration()["deviations"])
def test_the_deviation_is_that_of_the_pixels(dataset):
    if dataset != "digits" and not (data_root() / f"{dataset}.npz").exists():
        pytest.skip(f"no {dataset}.npz; set CATLIB_DATA to the folder that has it")
    pixels = load_data(dataset).train(slice(5000))[0]
    assert plan.configuration()["deviations"][dataset] == pytest.approx(
        pixels.std().item(), abs=1e-4
    )


def test_new_settings_keep_the_ids_of_old_runs():
    assert Trial().id == "digits-cnn-CAT-k128-s0-44136fa3"
    assert (
        Trial(dataset="mnist", epsilon=0.2, seed=3).id
        == Trial(dataset="mnist", epsilon=0.2, seed=3, train_size=None, crafting="pgd").id
    )
    assert Trial(train_size=100).id != Trial().id


def test_a_table_holds_each_evaluation_once_and_says_where_it_is_from(tmp_path):
    one = quick(piece("tables"))
    work.train(one, tmp_path / "runs", tmp_path, float("inf"))
    path = tmp_path / f"{one.table}.csv"
    table, text = read(path), path.read_text()
    assert not table.duplicated(["arm", "seed", "iteration"]).any()
    assert len(table) == len(one.trials) * 2
    assert table.final_robust_accuracy.notna().sum() == len(one.trials)
    for word in (
        "dataset: digits",
        "model: cnn",
        "linf, epsilon 0.1",
        "PGD-20",
        "every 2 iterations",
        "seeds: 0 1 2",
        "torch",
        "cpu",
        one.command,
    ):
        assert word in text
    before = path.read_bytes()
    work.train(one, tmp_path / "runs", tmp_path, float("inf"))
    assert path.read_bytes() == before


def test_when_the_time_is_up_the_study_stops_and_then_goes_on(tmp_path, monkeypatch):
    one = quick(piece("tables"))
    monkeypatch.setattr(work, "pieces_of", lambda profile, scale="full": [one])
    calls = 0
    while not work.study("smoke", minutes=1 / 600, runs=tmp_path / "runs", results=tmp_path):
        calls += 1
        assert calls < 300
    assert calls, "all runs within a tenth of a second: the test says nothing"
    table = read(tmp_path / f"{one.table}.csv")
    work.study("smoke", runs=tmp_path / "again", results=tmp_path / "whole")
    pd.testing.assert_frame_equal(
        table.drop(columns=TIMES), read(tmp_path / "whole" / f"{one.table}.csv").drop(columns=TIMES)
    )


@pytest.mark.slow
def test_killed_and_started_again_no_row_is_lost_or_doubled(tmp_path):
    def start(runs, results):
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "catlib.lab",
                "study",
                "--profile",
                "smoke",
                "--piece",
                "cheap",
                "--runs",
                runs,
                "--results",
                results,
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )

    killed = 0
    for files in (2, 5, 9):  # killed when so many runs have left records, in the middle of the next
        process = start(tmp_path / "killed", tmp_path)
        while (
            process.poll() is None
            and len(list((tmp_path / "killed").glob("*/records.csv"))) < files
        ):
            time.sleep(0.02)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed == 3
    assert start(tmp_path / "killed", tmp_path).wait(300) == 0
    assert start(tmp_path / "whole", tmp_path / "whole").wait(300) == 0
    table, whole = read(tmp_path / "smoke_cheap.csv"), read(tmp_path / "whole" / "smoke_cheap.csv")
    assert not table.duplicated(["arm", "seed", "iteration"]).any()
    pd.testing.assert_frame_equal(table.drop(columns=TIMES), whole.drop(columns=TIMES))
    assert all(is_done(path.parent) for path in (tmp_path / "killed").glob("*/run.json"))


def test_a_run_that_diverges_is_a_finding_and_not_repeated(tmp_path):
    one = replace(
        piece("tables"),
        trials=(
            (
                "AT",
                Trial(
                    method="AT",
                    learning_rate=1e30,
                    device="cpu",  # on a GPU it would have to wait for the check
                    iterations=6,
                    evaluate_every=1,
                    evaluation_size=10,
                ),
            ),
        ),
    )
    work.train(one, tmp_path / "runs", tmp_path, float("inf"))
    assert "# diverged: AT, seed 0" in (tmp_path / f"{one.table}.csv").read_text()
    assert is_done(tmp_path / "runs" / one.trials[0][1].id)


def test_an_unknown_piece_is_refused_with_the_ones_there_are(tmp_path):
    with pytest.raises(ValueError, match="no piece nonsense; it has: tables"):
        work.study("smoke", ["nonsense"], runs=tmp_path, results=tmp_path)


def test_a_study_begun_anew_does_not_replace_a_table_of_more_runs_by_its_first(tmp_path, capsys):
    one = quick(piece("audit"))
    work.train(one, tmp_path / "runs", tmp_path, float("inf"))
    path = tmp_path / f"{one.table}.csv"
    whole = path.read_text()
    first = replace(one, trials=tuple((arm, replace(trial, seed=9)) for arm, trial in one.trials))
    run(first.trials[0][1], tmp_path / "again")
    tables.write_table(first, tmp_path / "again", tmp_path)
    assert path.read_text() == whole
    assert "stays as it is" in capsys.readouterr().out
    work.train(first, tmp_path / "again", tmp_path, float("inf"))
    assert set(read(path).seed) == {9}


def test_similarity_is_measured_on_runs_of_its_own_and_once(tmp_path):
    one = quick(piece("similarity"))
    work.similarity(one, tmp_path / "runs", tmp_path, float("inf"))
    table = read(tmp_path / "smoke_similarity.csv")
    assert set(table.arm) == {"AT", "CAT"}
    assert table["mean"].between(0, 1).all()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/run.json")}
    work.similarity(one, tmp_path / "runs", tmp_path, float("inf"))
    assert stamps == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/run.json")
    }


def test_similarity_that_was_cut_off_keeps_the_half_that_was_measured(tmp_path, monkeypatch):
    one = quick(piece("similarity"))
    monkeypatch.setattr(
        "catlib.lab.study.work.staleness", lambda *_, **__: (_ for _ in ()).throw(work.Pause)
    )
    with pytest.raises(work.Pause):
        work.similarity(one, tmp_path / "runs", tmp_path, float("inf"))
    [measured] = (tmp_path / "runs").glob("*/neighbours.csv")
    stamp = measured.stat().st_mtime_ns
    monkeypatch.undo()
    work.similarity(one, tmp_path / "runs", tmp_path, float("inf"))
    assert measured.stat().st_mtime_ns == stamp
    assert set(read(tmp_path / "smoke_similarity_staleness.csv").arm) == {"AT", "CAT"}


def test_the_finals_of_a_long_run_are_measured_once_and_kept_as_they_come(tmp_path, monkeypatch):
    long = quick(piece("tables"), final_restarts=0)
    long = replace(
        long, name="long", trials=long.trials[:1], options={"keep_best": True, "tiny": True}
    )
    finals = replace(long, name="finals", kind="finals", options={"of": "long", "tiny": True})
    monkeypatch.setattr(work, "pieces_of", lambda *_: [long, finals])
    work.train(long, tmp_path / "runs", tmp_path, float("inf"))
    with pytest.raises(work.Pause):
        work.finals(finals, tmp_path / "runs", tmp_path, float("-inf"))
    ticks = iter(
        [*[float("inf")] * 3, *[float("-inf")] * 99]
    )  # the time is up after three measurements
    monkeypatch.setattr(
        work, "stop_at", lambda _: next(ticks) < 0 and (_ for _ in ()).throw(work.Pause)
    )
    with pytest.raises(work.Pause):
        work.finals(finals, tmp_path / "runs", tmp_path, 0)
    [kept] = (tmp_path / "runs").glob("*/finals-best.json")
    assert len(json.loads(kept.read_text())) == 3
    monkeypatch.setattr(work, "stop_at", lambda _: None)
    work.finals(finals, tmp_path / "runs", tmp_path, 0)
    table = read(tmp_path / "smoke_finals.csv")
    assert list(table.model) == ["best", "last"]
    parts = json.loads(kept.read_text())
    assert table.autoattack[0] == pytest.approx(
        (parts["autoattack_0"] + parts["autoattack_4"]) / 2, abs=1e-4
    )
    assert (table["pgd_20_2"] <= table["accuracy"]).all()


def test_a_part_of_the_training_images_is_the_first_ones():
    training = build_training(Trial(train_size=200, device="cpu"))
    assert len(training.data.y_train) == 200
    assert torch.equal(training.data.x_train, load_data("digits").x_train[:200])


def test_the_accuracy_on_the_training_batch_is_that_before_the_update(tmp_path):
    trial, seen = Trial(iterations=2, evaluate_every=1, evaluation_size=10), []
    folder = run(
        trial,
        tmp_path,
        observe=lambda training, _: seen.append(
            (training.batch.logits.argmax(1) == training.batch.labels).double().mean().item()
        ),
    )
    assert read(folder / "records.csv").batch_accuracy.tolist() == pytest.approx(seen)


def test_evaluation_may_use_another_rule_and_epsilon():
    judge = Trial(epsilon=0.1, evaluation_epsilon=0.2, evaluation_rule="gradient").judge(restarts=3)
    assert (judge.epsilon, judge.rule, judge.restarts, judge.steps) == (0.2, "gradient", 3, 20)
    assert Trial(epsilon=0.1).judge() == PGD(0.1, steps=20)


# ------------------------------------------------------------------ the cheap rivals


def test_n_fgsm_is_noise_and_one_signed_step_without_projection():
    images, labels = load_data("digits").train(slice(64))
    model = build_model("cnn", load_data("digits"))
    torch.manual_seed(0)
    adversarial = NFGSM(0.1)(model, images, labels)
    torch.manual_seed(0)
    start = (images + torch.empty_like(images).uniform_(-1, 1) * 0.2).requires_grad_()
    torch.nn.functional.cross_entropy(model(start), labels).backward()
    torch.testing.assert_close(adversarial, (start.detach() + 0.1 * start.grad.sign()).clamp(0, 1))
    moved = (adversarial - images).abs().max()
    assert 0.2 < moved <= 0.3 + 1e-6, "noise of 2 epsilon and a step of 1 are not projected back"


def test_the_gradient_of_the_mean_is_that_of_the_example_over_the_size_of_the_batch():
    images, labels = load_data("digits").train(slice(64))
    model = build_model("cnn", load_data("digits")).double()
    images = images.double()
    start = images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(start), labels, reduction="sum").backward()
    once = BatchMean(0.1, steps=1)(model, images, labels)
    torch.testing.assert_close(once, (images + (start.grad / 64).clamp(-0.1, 0.1)).clamp(0, 1))
    far = BatchMean(0.01, steps=20)(model, images, labels)
    assert (far - images).abs().max() <= 0.01 + 1e-12
    assert model.training and not far.requires_grad
    trial = Trial(crafting="batch mean", evaluation_rule="batch mean", epsilon=0.3, steps=5)
    assert build_training(trial).attack == BatchMean(0.3, 5)
    assert trial.judge() == BatchMean(0.3, 20)


def free(steps=3, iterations=12):
    settings = {"method": "AT", "crafting": "free", "device": "cpu"}
    return build_training(Trial(**settings, steps=steps, iterations=iterations, evaluate_every=0))


def test_free_training_replays_a_batch_and_spends_one_pass_an_image():
    training, batches = free(), []
    for record in training:
        batches.append(training.batch.indices)
        assert record.passes == record.iteration * 128
        assert (
            training.batch.adversarial - training.data.train(training.batch.indices)[0]
        ).abs().max() <= 0.1 + 1e-6
    assert all(torch.equal(batches[i], batches[i - i % 3]) for i in range(12))
    assert not torch.equal(batches[0], batches[3])


def test_free_training_takes_the_noise_of_a_replay_from_the_update_before():
    training = free(steps=2)
    reference = free(steps=2)
    images, labels = training.data.train(
        next(iter(UniformSampler(training.data.y_train, 128, seed=0)))
    )
    images.requires_grad_()
    torch.nn.functional.cross_entropy(reference.model.train()(images), labels).backward()
    next(training), next(training)
    torch.testing.assert_close(
        training.batch.adversarial, (images + 0.1 * images.grad.sign()).clamp(0, 1).detach()
    )


@pytest.mark.parametrize("crafting", ["free", "n-fgsm"])
def test_the_rivals_go_on_from_a_checkpoint_as_if_nothing_had_happened(crafting):
    trial = Trial(
        method="AT", crafting=crafting, steps=3, iterations=8, evaluate_every=0, epsilon_warm_up=6
    )
    whole, first, second = (build_training(trial) for _ in range(3))
    list(records_of(trial, whole))
    for record in records_of(trial, first):
        if record.iteration == 4:  # in the middle of a replayed batch
            break
    second.load_state_dict(first.state_dict())
    list(records_of(trial, second))
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert isinstance(whole, FreeTraining) == (crafting == "free")


def test_deviations_are_those_of_the_pixels(real_data, digits):
    for data in (digits, real_data):
        assert plan.configuration()["deviations"][data.name] == round(
            data.x_train[:5000].double().std().item() / 255, 4
        )


def test_runs_of_other_code_are_refused_repeated_or_reused(tmp_path, monkeypatch):
    small = piece("tables")
    small = replace(small, trials=quick(small, final_restarts=0).trials[:2])
    monkeypatch.setattr(work, "pieces_of", lambda *_: [small])

    def run_study(**options):
        return work.study("smoke", ["tables"], runs=tmp_path, results=tmp_path, **options)

    assert run_study()
    first = {path: path.read_bytes() for path in tmp_path.glob("*/run.json")}
    assert run_study()  # nothing has changed
    for path in first:
        path.write_text(path.read_text().replace('"catlib/gain.py": "', '"catlib/gain.py": "0'))
    with pytest.raises(ValueError, match=r"2 of 2 runs .* catlib/gain.py.*--if-code-changed"):
        run_study()
    assert run_study(if_code_changed="reuse")
    assert all('"catlib/gain.py": "0' in path.read_text() for path in first)
    assert run_study(if_code_changed="repeat")
    assert not any('"catlib/gain.py": "0' in path.read_text() for path in first)
    assert run_study()
    with pytest.raises(ValueError, match="if_code_changed is 'perhaps'"):
        run_study(if_code_changed="perhaps")


def test_a_half_of_a_similarity_that_other_code_measured_is_not_kept_in_silence(
    tmp_path, monkeypatch
):
    one = quick(piece("similarity"))
    monkeypatch.setattr(work, "pieces_of", lambda *_: [one])

    def run_study(**options):
        return work.study("smoke", ["similarity"], runs=tmp_path, results=tmp_path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(work, "staleness", lambda *_, **__: (_ for _ in ()).throw(work.Pause))
        assert not run_study()  # paused after the first half
    [measured] = tmp_path.glob("*/neighbours.csv")
    begun = measured.parent / "run.json"
    assert json.loads(begun.read_text())["status"] == "running"
    assert "catlib/lab/similarity.py" in json.loads(begun.read_text())["code"]
    of_other_code = begun.read_text().replace('similarity.py": "', 'similarity.py": "0')
    begun.write_text(of_other_code)
    with pytest.raises(ValueError, match=r"1 of 1 runs .* catlib/lab/similarity.py"):
        run_study()
    measured.write_text("gap\nof other code\n")
    assert run_study(if_code_changed="repeat")
    assert "of other code" not in measured.read_text()
    assert is_done(measured.parent)
    assert run_study()


def test_a_page_of_a_notebook_that_other_code_executed_is_refused_repeated_or_reused(
    tmp_path, monkeypatch
):
    one = piece("notebook_06", "paper")
    executed = tmp_path / "notebooks" / "06_cat_versus_at.ipynb"
    page = executed.with_suffix(".html")
    record = executed.with_suffix(".code.json")
    monkeypatch.setattr(work, "pieces_of", lambda *_: [one])
    monkeypatch.setattr(work, "execute", lambda source, target, *_, **__: target.write_text("{}"))
    monkeypatch.setattr(site, "write_site", lambda *_: page.write_text("new"))

    def run_study(**options):
        return work.study("smoke", ["notebook_06"], runs=tmp_path, results=tmp_path, **options)

    assert run_study()
    assert {"catlib/gain.py", executed.name} <= set(json.loads(record.read_text()))
    page.write_text("old")
    assert run_study()
    assert page.read_text() == "old", "of the same code, so it is used again"
    record.write_text(record.read_text().replace('"catlib/gain.py": "', '"catlib/gain.py": "0'))
    with pytest.raises(ValueError, match=r"06_cat_versus_at.ipynb; what differs: catlib/gain.py"):
        run_study()
    assert run_study(if_code_changed="reuse")
    assert page.read_text() == "old"
    assert run_study(if_code_changed="repeat")
    assert page.read_text() == "new"
    record.unlink()
    with pytest.raises(ValueError, match="does not say what code it is of"):
        run_study()

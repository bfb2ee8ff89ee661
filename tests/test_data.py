"""Datasets: embedded ones, files, the errors of damaged files, and what a download leaves."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import catlib
from catlib import crop_and_flip, load_data
from catlib.data import KEYS, data_root


def arrays(colour=True, n=30):
    generator = np.random.default_rng(0)
    shape = (8, 9, 3) if colour else (8, 9)
    return {
        "x_train": generator.integers(0, 256, (n, *shape), dtype=np.uint8),
        "y_train": np.arange(n, dtype=np.uint8) % 10,
        "x_test": generator.integers(0, 256, (11, *shape), dtype=np.uint8),
        "y_test": np.arange(11, dtype=np.uint8) % 10,
    }


def test_digits_are_scikit_learn_s():
    from sklearn.datasets import load_digits

    theirs, data = load_digits(), load_data("digits")
    ours = torch.cat([data.x_train, data.x_test])
    assert ours.dtype == torch.uint8 and ours.shape == (1797, 1, 8, 8) and len(data.x_test) == 360
    assert data.classes == tuple("0123456789") and data.y_train.dtype == torch.int64

    def rows(images, labels):
        return sorted(
            (*image.round().astype(int).ravel().tolist(), int(y))
            for image, y in zip(images, labels, strict=True)
        )

    back = (ours.squeeze(1).double() * 16 / 255).numpy()
    assert rows(back, torch.cat([data.y_train, data.y_test]).numpy()) == rows(
        theirs.images, theirs.target
    )
    again = load_data("digits")
    assert torch.equal(again.x_train, data.x_train) and torch.equal(again.y_test, data.y_test)


def test_batches_are_floats_in_0_1(digits):
    indices = torch.tensor([5, 0, 5])
    images, labels = digits.train(indices)
    assert images.dtype == torch.float32 and torch.equal(
        images, digits.x_train[indices].float() / 255
    )
    assert torch.equal(labels, digits.y_train[indices])
    images, labels = digits.test(slice(7))
    assert (
        images.shape == (7, 1, 8, 8)
        and images.min() == 0
        and images.max() == 1
        and torch.equal(labels, digits.y_test[:7])
    )
    assert len(digits.train()[0]) == 1437


def test_real_data(real_data):
    n = {"mnist": (60000, 10000, (1, 28, 28)), "cifar10": (50000, 10000, (3, 32, 32))}[
        real_data.name
    ]
    assert (len(real_data.x_train), len(real_data.x_test), real_data.x_train.shape[1:]) == n
    assert real_data.x_train.dtype == torch.uint8 and real_data.x_train.is_contiguous()
    assert torch.bincount(real_data.y_test).shape == (10,)
    # known means of the training images, to three digits
    mean = {"mnist": [0.1307], "cifar10": [0.4914, 0.4822, 0.4465]}[real_data.name]
    assert real_data.x_train[:10000].float().mean((0, 2, 3)).div(255).tolist() == pytest.approx(
        mean, abs=4e-3
    )


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_reads_npz(tmp_path, name, colour):
    written = arrays(colour)
    np.savez_compressed(tmp_path / f"{name}.npz", **written)
    data = load_data(name, tmp_path)
    assert data.name == name and len(data.classes) == 10
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        expected = written[f"x_{split}"] if colour else written[f"x_{split}"][..., None]
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), expected) and x.dtype == torch.uint8
        assert np.array_equal(y.numpy(), written[f"y_{split}"]) and y.dtype == torch.int64


def test_labels_may_be_a_column(tmp_path):
    written = arrays()
    written["y_train"] = (
        written["y_train"].reshape(-1, 1).astype(np.int64)
    )  # as Keras writes CIFAR-10
    np.savez(tmp_path / "cifar10.npz", **written)
    assert load_data("cifar10", tmp_path).y_train.shape == (30,)


def test_where_data_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("CATLIB_DATA", raising=False)
    assert data_root() == Path(catlib.__file__).parents[1] / "data" / "cache"
    monkeypatch.setenv("CATLIB_DATA", str(tmp_path))
    assert (
        data_root() == tmp_path.resolve()
        and data_root(tmp_path / "other") == tmp_path.resolve() / "other"
    )
    np.savez(tmp_path / "mnist.npz", **arrays(colour=False))
    assert len(load_data("mnist").x_train) == 30
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CATLIB_DATA", ".")
    assert len(load_data("mnist").x_train) == 30


def damage(path, how):
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "not a zip":
        path.write_bytes(b"<html>404</html>" * 50)
    elif how == "an array alone":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "a flipped bit":
        with zipfile.ZipFile(path) as archive:
            begin = archive.getinfo("x_train.npy").header_offset
        path.write_bytes(
            whole[: begin + 200] + bytes([whole[begin + 200] ^ 16]) + whole[begin + 201 :]
        )
    elif how == "pickled":
        np.savez(path, **(arrays() | {"x_train": np.array([{}], dtype=object)}))
    else:
        key, value = WRONG[how]
        changed = arrays()
        if value is None:
            del changed[key]
        else:
            changed[key] = value(changed[key])
        np.savez_compressed(path, **changed)


WRONG = {
    "no y_test": ("y_test", None),
    "float images": ("x_train", lambda x: x / 255.0),
    "int images": ("x_test", lambda x: x.astype(np.int32)),
    "flat images": ("x_train", lambda x: x.reshape(len(x), -1)),
    "a label missing": ("y_train", lambda y: y[:-1]),
    "a label of 10": ("y_test", lambda y: y + 1),
    "a label of -1": ("y_test", lambda y: y.astype(np.int64) - 1),
    "float labels": ("y_train", lambda y: y + 0.5),
    "no images": ("x_test", lambda x: x[:0]),
}


BROKEN = (
    "truncated",
    "empty",
    "not a zip",
    "an array alone",
    "a folder",
    "a flipped bit",
    "pickled",
)


@pytest.mark.parametrize("how", [*BROKEN, *WRONG])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, how):
    path = tmp_path / "cifar10.npz"
    np.savez_compressed(path, **arrays())
    damage(path, how)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError) as caught:
        load_data("cifar10", tmp_path)
    assert str(path) in str(
        caught.value
    ) and "Delete it, and load_data('cifar10') downloads it again" in str(caught.value)
    assert before is None or path.read_bytes() == before


@settings(max_examples=150)
@given(data=st.data())
def test_no_damage_passes_for_data_or_for_another_error(tmp_path_factory, data):
    """Cut anywhere, or any byte changed: the same images, or the error that names the file."""
    path = tmp_path_factory.mktemp("fuzz") / "mnist.npz"
    written = arrays(colour=False)
    np.savez_compressed(path, **written)
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place]
    else:
        damaged = (
            whole[:place]
            + bytes([whole[place] ^ data.draw(st.integers(1, 255))])
            + whole[place + 1 :]
        )
    path.write_bytes(damaged)
    try:
        loaded = load_data("mnist", path.parent)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert np.array_equal(loaded.x_train.squeeze(1).numpy(), written["x_train"])
        assert np.array_equal(loaded.y_test.numpy(), written["y_test"])


# the download, without a network


class Source:
    """torchvision's dataset: a folder and two splits."""

    fail = None

    def __init__(self, root, train, download):
        assert download
        if self.fail and not train:
            raise self.fail
        whole = arrays(colour=False)
        split = "train" if train else "test"
        self.data, self.targets = (
            torch.from_numpy(whole[f"x_{split}"]),
            torch.from_numpy(whole[f"y_{split}"]).long(),
        )


def test_a_download_is_kept_and_used_again(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets, "MNIST", Source)
    root = tmp_path / "new" / "folder"
    data = load_data("mnist", root)
    assert np.array_equal(data.x_train.squeeze(1).numpy(), arrays(colour=False)["x_train"])
    assert [p.name for p in root.iterdir()] == ["mnist.npz"]  # what the download needed is gone
    with np.load(root / "mnist.npz") as file:
        assert sorted(file) == sorted(KEYS) and all(file[key].dtype == np.uint8 for key in KEYS)
    monkeypatch.setattr(datasets, "MNIST", None)
    assert torch.equal(load_data("mnist", root).x_test, data.x_test)


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("Error downloading"), OSError("no route"), KeyboardInterrupt()],
    ids=repr,
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch, failure):
    from torchvision import datasets

    monkeypatch.setattr(datasets, "MNIST", Source)
    monkeypatch.setattr(Source, "fail", failure)
    if isinstance(failure, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            load_data("mnist", tmp_path)
    else:
        with pytest.raises(RuntimeError) as caught:
            load_data("mnist", tmp_path)
        message = str(caught.value)
        assert str(tmp_path / "mnist.npz") in message and str(failure) in message
        assert "CATLIB_DATA" in message and "load_data('digits')" in message
    assert not list(tmp_path.iterdir())


def test_a_download_cut_off_while_writing_leaves_nothing(tmp_path, monkeypatch):
    from torchvision import datasets

    def half(file, **_):
        file.write_bytes(b"PK half")
        raise OSError("No space left on device")

    monkeypatch.setattr(datasets, "MNIST", Source)
    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(RuntimeError, match="No space left on device"):
        load_data("mnist", tmp_path)
    assert not list(tmp_path.iterdir())


# the augmentation


@given(
    n=st.integers(0, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_crop_and_flip_equals_a_loop(n, channels, height, width, padding, seed):
    """Each image is the crop of its padded self, mirrored or not, that the random numbers name."""
    images = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))
    ours = crop_and_flip(images, torch.Generator().manual_seed(seed), padding)
    assert ours.shape == images.shape
    generator = torch.Generator().manual_seed(seed)
    down, right, mirror = (
        torch.randint(high, (n, 1), generator=generator)
        for high in (2 * padding + 1, 2 * padding + 1, 2)
    )
    for i in range(n):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding)
        padded[:, padding : padding + height, padding : padding + width] = images[i]
        crop = padded[:, down[i] : down[i] + height, right[i] : right[i] + width]
        assert torch.equal(ours[i], crop.flip(2) if mirror[i] else crop)


def test_crop_and_flip_uses_every_shift():
    image = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).expand(3000, 1, 6, 6)
    different = {
        tuple(x.flatten().tolist())
        for x in crop_and_flip(image, torch.Generator().manual_seed(0), padding=2)
    }
    assert len(different) == 5 * 5 * 2


def test_crop_and_flip_leaves_its_input_and_the_global_state(global_rng_untouched, device):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    before = images.clone()
    assert crop_and_flip(images, torch.Generator(device).manual_seed(0)).device == images.device
    assert torch.equal(images, before)

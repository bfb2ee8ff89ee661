"""Datasets: embedded ones, files, the errors of damaged files, and what a download leaves."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import catlib
from catlib import CropAndFlip, Data, crop_and_flip, load_data
from catlib.data import KEYS, data_root, subset


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


# what is in a Data


def test_float_images_are_as_good_as_bytes(digits):
    """The same batches; and neither a batch nor a model built from them changes the images."""
    floats = replace(digits, x_train=digits.x_train / 255, x_test=digits.x_test / 255)
    x = floats.x_train
    before = x.clone()
    for indices in (torch.tensor([5, 0, 5]), slice(7), slice(None)):
        images, labels = floats.train(indices)
        assert images.dtype == torch.float32 and torch.equal(labels, digits.y_train[indices])
        assert torch.equal(images, digits.train(indices)[0])
        images.zero_()
        floats.test(indices)[0].zero_()
    catlib.build_model("cnn", floats)
    assert torch.equal(x, before) and torch.equal(floats.to("cpu").x_train, before)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["mnist", "own.npz"])
def test_a_file_with_channels_first_is_the_same_data(tmp_path, name, channels):
    generator = np.random.default_rng(0)
    last = generator.integers(0, 256, (30, 9, 8, channels), dtype=np.uint8)
    labels = np.arange(30) % 10
    loaded = []
    for images in (last, last.transpose(0, 3, 1, 2)):
        np.savez(
            tmp_path / f"{name.removesuffix('.npz')}.npz",
            x_train=images,
            y_train=labels,
            x_test=images,
            y_test=labels,
        )
        loaded.append(load_data(name, tmp_path))
    assert loaded[0].x_train.shape == (30, channels, 9, 8)
    assert torch.equal(loaded[0].x_train, loaded[1].x_train)
    assert loaded[1].x_train.is_contiguous()


def test_a_file_whose_parts_differ_is_refused(tmp_path):
    np.savez(tmp_path / "mnist.npz", **(arrays() | {"x_test": arrays()["x_test"][:, 1:]}))
    with pytest.raises(ValueError, match="same channels, height, width"):
        load_data("mnist", tmp_path)


# one's own


def own_arrays(n=40, classes=4, channels=5):
    generator = np.random.default_rng(1)
    return {
        "x_train": generator.integers(0, 256, (n, 8, 6, channels), dtype=np.uint8),
        "y_train": np.arange(n, dtype=np.uint16) % classes,
        "x_test": generator.integers(0, 256, (n // 2, 8, 6, channels), dtype=np.uint8),
        "y_test": np.arange(n // 2, dtype=np.int8).reshape(-1, 1) % classes,
    }


@pytest.mark.parametrize("place", ["absolute", "working directory", "root", "home", "Path"])
def test_a_file_of_one_s_own_is_found(tmp_path, monkeypatch, place):
    written = own_arrays()
    (tmp_path / "deep").mkdir()
    np.savez(tmp_path / "deep" / "my data.npz", **written, classes=["a", "b", "c", "d"])
    monkeypatch.setenv("CATLIB_DATA", str(tmp_path / "nothing here"))
    name, root = "deep/my data.npz", None
    if place == "absolute":
        name = str(tmp_path / name)
    elif place == "working directory":
        monkeypatch.chdir(tmp_path)
    elif place == "root":
        root = tmp_path
    elif place == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
        name = "~/deep/my data.npz"
    else:
        name = tmp_path / name
    data = load_data(name, root)
    assert data.name == "my data" and data.classes == ("a", "b", "c", "d")
    assert np.array_equal(data.x_train.permute(0, 2, 3, 1).numpy(), written["x_train"])
    assert data.y_test.tolist() == written["y_test"].reshape(-1).tolist()


def test_a_file_of_one_s_own_without_classes_and_test_images(tmp_path):
    written = own_arrays()
    np.savez(tmp_path / "x.npz", x_train=written["x_train"] / 255, y_train=written["y_train"])
    data, again = (load_data(tmp_path / "x.npz") for _ in range(2))
    assert data.classes == tuple("0123") and data.x_train.dtype == torch.float32
    assert torch.bincount(data.y_train).tolist() == [8] * 4
    assert torch.bincount(data.y_test).tolist() == [2] * 4
    assert torch.equal(data.x_test, again.x_test)
    both = torch.cat([data.x_train, data.x_test]).permute(0, 2, 3, 1).flatten(1)
    all_images = torch.from_numpy(written["x_train"] / 255).float().flatten(1)
    assert sorted(both.tolist()) == sorted(all_images.tolist())


OWN_MISTAKES = {
    "no labels": ({"y_train": None}, "y_train"),
    "test images without labels": ({"y_test": None}, "give both"),
    "floats above 1": ({"x_train": np.ones((40, 8, 6, 5)) * 2}, r"from 2 to 2.*\[0, 1\]"),
    "integers": ({"x_train": np.ones((40, 8, 6, 5), np.int32)}, "torch.int32|int32"),
    "flat images": ({"x_train": np.ones((40, 64), np.uint8)}, "(n, H, W)"),
    "labels of text": ({"y_train": np.array(["a"] * 40)}, "integers in 0..K-1"),
    "labels of objects": ({"y_train": np.array([{}] * 40, dtype=object)}, "damaged"),
    "labels from 1 on": (
        {"y_train": np.arange(40) % 4 + 1, "y_test": np.arange(20) % 4 + 1},
        "from 1 to 4.*labels - 1",
    ),
    "arrays of other names": ({"x_train": None, "images": np.ones(3)}, "lacks x_train; it has"),
    "a label missing": ({"y_train": np.arange(39) % 4}, "40 images"),
    "too few classes": ({"classes": ["a", "b"]}, "0..1"),
    "one class": ({"y_train": np.zeros(40, int), "y_test": np.zeros(20, int)}, "at least 2"),
    "many channels first": ({"x_train": np.ones((40, 6, 16, 16), np.uint8)}, "put them last"),
    "other test images": ({"x_test": np.ones((20, 8, 7, 5), np.uint8)}, "same channels"),
    "classes of floats": ({"classes": np.array([0.5, 1.5])}, "not names"),
}


@pytest.mark.parametrize("what", OWN_MISTAKES)
def test_a_mistake_in_a_file_of_one_s_own_is_named(tmp_path, what):
    changed, message = OWN_MISTAKES[what]
    written = {k: v for k, v in (own_arrays() | changed).items() if v is not None}
    np.savez(tmp_path / "x.npz", **written)
    with pytest.raises(ValueError, match=message) as caught:
        load_data(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(caught.value)


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_file_of_one_s_own_is_named(tmp_path, how):
    path = tmp_path / "x.npz"
    np.savez(path, **own_arrays())
    damage(path, how)
    with pytest.raises(ValueError, match=r"x\.npz"):
        load_data(path)


def draw_images(folder, classes=("cat", "dog", "owl"), each=10, mode="RGB", size=(7, 9)):
    """Pictures whose first pixel tells class and number."""
    from PIL import Image

    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            value = (label, number, 0) if mode == "RGB" else label * 16 + number
            Image.new(mode, size, value).save(folder / name / f"{number}.png")


def test_a_folder_of_images_with_train_and_test(tmp_path):
    draw_images(tmp_path / "pets" / "train")
    draw_images(tmp_path / "pets" / "test", classes=("cat", "dog"), each=4)
    (tmp_path / "pets" / "train" / ".ipynb_checkpoints").mkdir()
    hidden = tmp_path / "pets" / "train" / "cat" / ".ipynb_checkpoints"
    hidden.mkdir()
    (hidden / "0.png").write_bytes(b"no picture")
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("not a picture either")
    data, again = load_data(tmp_path / "pets"), load_data("pets", tmp_path)
    assert data.name == "pets" and data.classes == ("cat", "dog", "owl")
    assert data.x_train.shape == (30, 3, 9, 7) and data.x_train.dtype == torch.uint8
    assert torch.equal(data.x_train[:, 0, 0, 0].long(), data.y_train)
    assert torch.bincount(data.y_train).tolist() == [10] * 3
    assert torch.bincount(data.y_test).tolist() == [4, 4]
    assert torch.equal(data.x_train, again.x_train)
    assert len(data.y_train[:12].unique()) == 3, "the first images are not all of one class"


def test_a_folder_of_images_is_split(tmp_path):
    draw_images(tmp_path / "grey", mode="L", each=11)
    data = load_data(tmp_path / "grey")
    assert data.x_train.shape == (27, 1, 9, 7) and data.x_test.shape == (6, 1, 9, 7)
    assert torch.bincount(data.y_test).tolist() == [2] * 3
    pixels = torch.cat([data.x_train, data.x_test])[:, 0, 0, 0]
    assert sorted(pixels.tolist()) == sorted(16 * c + i for c in range(3) for i in range(11))
    labels = torch.cat([data.y_train, data.y_test])
    assert torch.equal(pixels.long() // 16, labels)


def test_grey_and_coloured_images_are_read_in_colour(tmp_path):
    draw_images(tmp_path / "train", mode="L")
    draw_images(tmp_path / "test", mode="RGB")
    data = load_data(tmp_path)
    assert data.x_train.shape[1] == data.x_test.shape[1] == 3
    assert torch.equal(data.x_train[:, 0], data.x_train[:, 2])


def spoil_folder(folder, how):
    from PIL import Image

    if how == "only train":
        (folder / "cat").rename(folder / "train")
    elif how == "no classes":
        for name in ("cat", "dog", "owl"):
            (folder / name).rename(folder / f".{name}")
    elif how == "an empty class":
        for file in (folder / "dog").iterdir():
            file.unlink()
    elif how == "two sizes":
        Image.new("RGB", (5, 5)).save(folder / "dog" / "3.png")
    elif how == "a damaged image":
        whole = (folder / "dog" / "3.png").read_bytes()
        (folder / "dog" / "3.png").write_bytes(whole[:40])
    elif how == "16 bits":
        Image.new("I;16", (7, 9)).save(folder / "dog" / "3.png")
    elif how == "one image of a class":
        for file in sorted((folder / "dog").iterdir())[1:]:
            file.unlink()
    else:
        for part in ("train", "test"):
            draw_images(folder / part)
        (folder / "test" / "cat").rename(folder / "test" / "lion")


@pytest.mark.parametrize(
    "how, message",
    [
        ("only train", "none of the name test"),
        ("no classes", "0 folders"),
        ("an empty class", "dog holds no image"),
        ("two sizes", "3.png has 5 x 5 pixels.*resize"),
        ("a damaged image", "3.png cannot be read"),
        ("16 bits", "3.png has pixels of mode I;16"),
        ("one image of a class", "class 1 has one image"),
        ("another class for test", "'lion', which train does not have"),
    ],
)
def test_a_mistake_in_a_folder_is_named(tmp_path, how, message):
    draw_images(tmp_path / "pets")
    spoil_folder(tmp_path / "pets", how)
    with pytest.raises(ValueError, match=message) as caught:
        load_data(tmp_path / "pets")
    assert str(tmp_path / "pets") in str(caught.value)


def test_data_from_tensors(digits):
    made = Data.from_tensors(
        digits.x_train.double() / 255,
        digits.y_train.to(torch.uint8),
        digits.x_test[:, 0] / 255,
        digits.y_test.numpy(),
        classes=list("abcdefghij"),
        name="letters",
    )
    assert made.name == "letters" and made.classes == tuple("abcdefghij")
    assert torch.equal(made.train()[0], digits.train()[0])
    assert torch.equal(made.y_test, digits.y_test)
    split = Data.from_tensors(digits.x_train, digits.y_train)
    assert len(split.x_train) + len(split.x_test) == 1437 and split.classes == tuple("0123456789")
    expected = torch.bincount(digits.y_train) // 5
    assert torch.equal(torch.bincount(split.y_test), expected)


class Pictures(torch.utils.data.Dataset):
    """A torch Dataset as torchvision's are: PIL images, a transformation, and class names."""

    classes = ("even", "odd")

    def __init__(self, transform=lambda image: image):
        self.transform = transform

    def __len__(self):
        return 20

    def __getitem__(self, index):
        from PIL import Image

        pixels = np.full((6, 5, 3), index, np.uint8)
        return self.transform(Image.fromarray(pixels)), index % 2


def test_data_from_a_torch_dataset():
    from torchvision.transforms import ToTensor

    plain = Data.from_dataset(Pictures(), Pictures())
    floats = Data.from_dataset(Pictures(ToTensor()), Pictures(ToTensor()), classes=["a", "b"])
    assert plain.classes == ("even", "odd") and floats.classes == ("a", "b")
    assert plain.x_train.shape == (20, 3, 6, 5) and plain.x_train.dtype == torch.uint8
    assert plain.x_train[:, 1, 2, 3].tolist() == list(range(20))
    assert torch.equal(plain.train()[0], floats.train()[0])
    assert len(Data.from_dataset(Pictures()).x_test) == 4


def test_one_s_own_data_are_trained_on(tmp_path):
    draw_images(tmp_path / "pets", size=(8, 8))
    data = load_data(tmp_path / "pets")
    training = catlib.Training(
        catlib.build_model("cnn", data),
        data,
        catlib.CaseSampler(data.y_train, 8),
        catlib.PGD(0.01, steps=2),
        iterations=3,
        evaluate_every=3,
        device="cpu",
    )
    assert [record.accuracy is not None for record in training] == [False, False, True]


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
        file.write(b"PK half")
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


@given(
    n=st.integers(0, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_moves_go_back(n, channels, height, width, padding, seed):
    """Pixels that stayed in the frame return exactly, others are 0; by a loop over the images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, height, width, generator=generator) + 1  # no pixel is 0
    moves = CropAndFlip(padding).draw(images, generator)
    back = moves.inverse()(moves(images))
    for i in range(n):
        down = int(moves.down[i]) - padding
        right = int(moves.right[i]) - padding
        expected = torch.zeros(channels, height, width)
        rows = slice(max(down, 0), max(height + min(down, 0), 0))
        columns = slice(max(right, 0), max(width + min(right, 0), 0))
        expected[:, rows, columns] = images[i][:, rows, columns]
        assert torch.equal(back[i], expected)
    assert torch.equal(moves(back), moves(images) * moves(torch.ones_like(images)))
    twice = moves.inverse().inverse()
    assert torch.equal(twice(images), moves(images))


def test_crop_and_flip_as_a_value_is_the_function():
    """Same random numbers, same images, same order in memory, which rounding depends on."""
    images = torch.rand(20, 3, 8, 8)
    function = crop_and_flip(images, torch.Generator().manual_seed(3), 2)
    augment = CropAndFlip(2)
    moves = augment.draw(images, torch.Generator().manual_seed(3))
    for ours in (augment(images, torch.Generator().manual_seed(3)), moves(images)):
        assert torch.equal(ours, function) and ours.stride() == function.stride()


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


# a subset that stands for all


def test_the_first_images_are_a_slice():
    labels = torch.arange(60) % 3
    assert subset(labels, 7) == slice(7)
    assert subset(labels, None, "spread") == slice(None)
    assert torch.equal(labels[subset(labels, 100, "spread")], labels)


@given(
    counts=st.lists(st.integers(0, 40), min_size=2, max_size=6).filter(sum),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_a_spread_subset_is_even_over_classes_and_over_each_class(counts, share, seed):
    """No example twice, and in any stretch of a class its share of the subset, to one example."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    n = len(labels)
    count = max(1, int(share * (n - 1)))
    chosen = torch.arange(n)[subset(labels, count, "spread")]
    assert len(chosen) == min(count, n) == len(chosen.unique())
    assert torch.equal(chosen, chosen.sort().values)
    taken = torch.zeros(n)
    taken[chosen] = 1
    for label in range(len(counts)):
        of_class = taken[labels == label]
        for end in range(len(of_class) + 1):
            # up to here, within one example of its share
            assert abs(of_class[:end].sum().item() - end * count / n) <= 1 + 1e-4


def test_a_spread_subset_follows_images_that_get_harder(real_data):
    """The mean place of the subset's images is that of all, not that of the first ones."""
    chosen = subset(real_data.y_test, 500, "spread")
    n = len(real_data.y_test)
    assert abs(chosen.double().mean().item() / n - 0.5) < 0.01
    classes = real_data.y_test[chosen].bincount().double() / 500
    assert (classes - real_data.y_test.bincount() / n).abs().max() <= 1 / 500 + 1e-9

"""The two classifiers: shapes, seeded weights, normalisation inside."""

from dataclasses import replace

import pytest
import torch

from catlib import Data, build_model


def fake(channels, size, classes=10, n=50):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    y = torch.arange(n) % classes
    return Data("fake", x, y, x, y, tuple(map(str, range(classes))))


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
@pytest.mark.parametrize("channels, size", [(1, 8), (1, 28), (3, 32)])
def test_shapes(name, channels, size, device):
    model = build_model(name, fake(channels, size, classes=7)).to(device).eval()
    assert model(torch.rand(3, channels, size, size, device=device)).shape == (3, 7)


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_the_seed_decides_the_weights_and_nothing_else_does(name, global_rng_untouched):
    data = fake(3, 32)
    models = []
    with torch.random.fork_rng():
        for place, seed in enumerate((0, 0, 1)):
            torch.manual_seed(place)
            models.append(
                [p.detach().clone() for p in build_model(name, data, seed=seed).parameters()]
            )
    assert all(map(torch.equal, models[0], models[1]))
    assert sum(not torch.equal(a, b) for a, b in zip(models[0], models[2], strict=True)) > 3
    build_model(name, data)


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_normalisation_is_the_first_layer(name):
    data = fake(3, 32, n=200)
    model = build_model(name, data).eval()
    first, rest = model[0], model[1:]
    images = data.x_train.float() / 255
    normal = first(images)
    assert (
        normal.mean((0, 2, 3)).abs().max() < 1e-5 and (normal.std((0, 2, 3)) - 1).abs().max() < 1e-5
    )
    x = images[:4]
    by_hand = (x - images.mean((0, 2, 3)).view(3, 1, 1)) / images.std((0, 2, 3)).view(3, 1, 1)
    torch.testing.assert_close(model(x), rest(by_hand), atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in first.buffers()) and not list(first.parameters())
    assert {"0.mean", "0.std"} <= set(model.state_dict())  # a checkpoint carries its normalisation


def test_the_resnet_keeps_small_images_large():
    """The 3x3 stem without pooling: 32 pixels are 4 before the last average, not 1."""
    model = build_model("resnet18", fake(3, 32)).eval()
    sizes = []
    model[1].layer4.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    model(torch.rand(1, 3, 32, 32))
    assert sizes == [(4, 4)]


@pytest.mark.parametrize("as_floats", [False, True], ids=["bytes", "floats"])
def test_a_model_is_built_without_changing_the_images(as_floats):
    data = fake(3, 8)
    x = data.x_train.float() / 255 if as_floats else data.x_train
    before = x.clone()
    model = build_model("cnn", replace(data, x_train=x, x_test=x))
    assert torch.equal(x, before)
    torch.testing.assert_close(model[0].mean.flatten(), fake_floats(data).mean((0, 2, 3)))


def fake_floats(data):
    return data.x_train.float() / 255


def test_a_channel_that_is_the_same_everywhere_is_no_division_by_zero():
    data = fake(3, 8)
    data.x_train[:, 1] = 7
    logits = build_model("cnn", data)(fake_floats(data))
    assert logits.isfinite().all()


def test_models_take_float64():
    assert (
        build_model("cnn", fake(1, 8)).double()(torch.rand(2, 1, 8, 8, dtype=torch.float64)).dtype
        == torch.float64
    )


# a slim resnet18


def numbers_of(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_a_resnet_of_width_64_is_the_usual_one_bit_for_bit(same):
    data = fake(3, 32)
    usual = build_model("resnet18", data, seed=3)
    assert same(build_model("resnet18", data, seed=3, width=64).state_dict(), usual.state_dict())


@pytest.mark.parametrize("width", [8, 16])
def test_a_slim_resnet_has_the_same_layers_with_fewer_channels(width):
    """Every count of channels is that of the published network, times width / 64."""
    data = fake(3, 32, classes=7)
    usual = numbers_of(build_model("resnet18", data))
    slim = numbers_of(build_model("resnet18", data, width=width))
    assert list(slim) == list(usual)
    for name, shape in usual.items():
        inputs_of_the_model = name in ("0.mean", "0.std", "1.conv1.weight")
        expected = []
        for place, size in enumerate(shape):
            fixed = size <= 7 or (inputs_of_the_model and place == 1)
            expected.append(size if fixed else size * width // 64)
        assert slim[name] == tuple(expected), name


def test_a_slim_resnet_begins_as_torchvision_s_does():
    """Kaiming's normal weights by fan out, batch norms of ones and zeros, for every width."""
    model = build_model("resnet18", fake(3, 32), width=32, seed=1)[1]
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name != "conv1":
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / fan_out) ** 0.5
            count = module.weight.numel()
            # the standard deviation of n normal numbers errs by 1 / sqrt(2 n), four times that here
            assert module.weight.std().item() == pytest.approx(expected, rel=4 / (2 * count) ** 0.5)
            assert abs(module.weight.mean().item()) < 4 * expected / count**0.5
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_the_seed_decides_the_weights_of_a_slim_resnet(same, global_rng_untouched):
    data = fake(3, 32)
    first, again, other = (
        build_model("resnet18", data, seed=seed, width=16).state_dict() for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)


def test_a_slim_resnet_maps_images_to_logits_in_bfloat16_too():
    model = build_model("resnet18", fake(3, 32, classes=7), width=16).train()
    images = torch.rand(4, 3, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.shape == (4, 7) and logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert images.grad.isfinite().all()

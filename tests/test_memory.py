"""What is remembered of each image: against a list of float64 perturbations, and through moves."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catlib import PGD, CropAndFlip, PerturbationMemory

EPSILON = 0.1
SHAPE = (2, 3, 4)
BITS = pytest.mark.parametrize("bits", [8, 16])
# half a step of epsilon / 127; half the last of the 11 binary digits of a float16
LARGEST_ERROR = {8: EPSILON / 254 * 1.001, 16: EPSILON * 2**-11}


def perturbations(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inside = torch.empty(n, *SHAPE).uniform_(-EPSILON, EPSILON, generator=generator)
    on_the_border = torch.rand(inside.shape, generator=generator) < 0.3
    return torch.where(on_the_border, EPSILON * inside.sign(), inside)


@given(
    bits=st.sampled_from([8, 16]),
    batches=st.lists(st.sets(st.integers(0, 8), max_size=9), max_size=6),
    seed=st.integers(0, 99),
)
def test_it_is_the_last_perturbation_of_each_image(bits, batches, seed):
    """Against a dict of what was given last, to half a step of what is stored."""
    memory = PerturbationMemory(9, SHAPE, EPSILON, bits=bits)
    last = {}
    for number, batch in enumerate(batches):
        indices = torch.tensor(sorted(batch), dtype=torch.long)
        given_now = perturbations(len(indices), seed + number)
        memory.update(indices, given_now)
        last |= dict(zip(indices.tolist(), given_now, strict=True))
    everything = torch.arange(9)
    ours = memory[everything]
    assert ours.shape == (9, *SHAPE) and ours.dtype == torch.float32
    assert memory.has(everything).tolist() == [image in last for image in range(9)]
    for image in range(9):
        expected = last.get(image, torch.zeros(SHAPE))
        assert (ours[image].double() - expected.double()).abs().max() <= LARGEST_ERROR[bits]


@BITS
def test_what_is_read_is_stored_as_it_is(bits):
    """Zero, the border and whatever was read before come back without a further error."""
    memory = PerturbationMemory(6, SHAPE, EPSILON, bits=bits)
    indices = torch.tensor([4, 0, 2])
    memory.update(indices, perturbations(3))
    read = memory[indices]
    memory.update(indices, read.clamp(-EPSILON, EPSILON))
    assert torch.equal(memory[indices], read)
    memory.update(indices, torch.zeros(3, *SHAPE))
    assert torch.equal(memory[indices], torch.zeros(3, *SHAPE)) and memory.has(indices).all()
    memory.update(indices[:1], torch.full((1, *SHAPE), -EPSILON))
    torch.testing.assert_close(
        memory[indices[:1]], torch.full((1, *SHAPE), -EPSILON), rtol=5e-4, atol=0
    )


def test_its_cost_is_bounded():
    """At most 3,072 bytes an image on CIFAR-10 at 8 bits, all that it keeps counted."""
    for bits, largest in ((8, 3072), (16, 6144)):
        memory = PerturbationMemory(50, (3, 32, 32), 8 / 255, bits=bits)
        kept = [value for value in vars(memory).values() if isinstance(value, torch.Tensor)]
        assert sum(tensor.nbytes for tensor in kept) == 50 * largest == 50 * memory.bytes_per_image


@BITS
def test_an_l2_ball_wider_than_the_pixels(bits):
    """With epsilon 3, a pixel in [0, 1] moves by 1 at most, and that is what the bits are for."""
    memory = PerturbationMemory(2, SHAPE, 3.0, bits=bits)
    wide = perturbations(2) / EPSILON
    memory.update(torch.arange(2), wide)
    assert (memory[torch.arange(2)] - wide).abs().max() <= LARGEST_ERROR[bits] / EPSILON


# the state


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@BITS
def test_a_state_is_a_snapshot_that_another_memory_goes_on_from(bits, same):
    first = PerturbationMemory(6, SHAPE, EPSILON, bits=bits)
    first.update(torch.tensor([1, 3]), perturbations(2))
    state = first.state_dict()
    before = copy.deepcopy(state)
    second = PerturbationMemory(6, SHAPE, EPSILON, bits=bits)
    second.load_state_dict(through_a_file(state))
    for memory in (first, second):
        memory.update(torch.tensor([3, 5]), perturbations(2, seed=1))
    assert same(state, before)
    assert same(first.state_dict(), second.state_dict())
    copies = [copy.deepcopy(first), pickle.loads(pickle.dumps(first))]
    assert all(same(one.state_dict(), first.state_dict()) for one in copies)


@BITS
def test_a_refused_state_changes_nothing(bits, same):
    memory = PerturbationMemory(6, SHAPE, EPSILON, bits=bits)
    memory.update(torch.tensor([1, 3]), perturbations(2))
    before = memory.state_dict()
    for part in before:
        for value in (None, torch.zeros(3, dtype=torch.bfloat16), -1, "x"):
            with pytest.raises(ValueError):
                memory.load_state_dict(before | {part: value})
            assert same(memory.state_dict(), before), part
    half_known = before["stored"].clone()
    half_known[1, 0, 1] = {8: -128, 16: float("inf")}[bits]
    with pytest.raises(ValueError, match="perturbed by"):
        memory.load_state_dict(before | {"stored": half_known})


# with an augmentation and an attack


class Brightness(torch.nn.Module):
    """Its loss grows with every pixel for label 0: each step of an attack is known beforehand."""

    def forward(self, x):
        total = x.flatten(1) @ torch.ones(x[0].numel())
        return torch.stack([-total, total], 1)


def test_it_moves_with_the_image_and_back():
    """Two visits by hand, pixel by pixel: in the frame what the attack found, else what was."""
    generator = torch.Generator().manual_seed(0)
    n, height, width, padding = 40, 5, 6, 2
    memory = PerturbationMemory(n, (1, height, width), EPSILON)
    indices = torch.randperm(n, generator=generator)
    expected = torch.zeros(n, 1, height, width)  # in units of epsilon / 127: whole numbers
    unit = EPSILON / 127
    images = torch.zeros(n, 1, height, width)
    for _ in range(3):
        moves = CropAndFlip(padding).draw(images, generator)
        recall = memory.recall(indices, moves)
        found = torch.randint(-127, 128, images.shape, generator=generator).float()
        for b, image in enumerate(indices.tolist()):
            for row in range(height):
                for column in range(width):
                    mirrored = width - 1 - column if moves.mirrored[b] else column
                    from_row = int(moves.down[b]) + row - padding
                    from_column = int(moves.right[b]) + mirrored - padding
                    if 0 <= from_row < height and 0 <= from_column < width:
                        expected[image, 0, from_row, from_column] = found[b, 0, row, column]
        recall.store(found * unit)
        ours = memory[torch.arange(n)] / unit
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    started = memory.recall(indices, moves).start(images, PGD(EPSILON), generator)
    torch.testing.assert_close(started, moves(memory[indices]))


@pytest.mark.parametrize("random_start", [True, False])
def test_an_unknown_image_begins_as_without_a_memory(random_start):
    images = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(30, dtype=torch.long)
    attack = PGD(EPSILON, steps=0, random_start=random_start)
    memory = PerturbationMemory(30, SHAPE, EPSILON)
    known = torch.arange(10)
    memory.update(known, perturbations(10))
    recall = memory.recall(torch.arange(30))
    start = recall.start(images, attack, torch.Generator().manual_seed(2))
    plain = attack(Brightness(), images, labels, generator=torch.Generator().manual_seed(2))
    assert torch.equal(start[:10], memory[known])
    torch.testing.assert_close(images[10:] + start[10:], plain[10:], atol=1e-6, rtol=0)
    begun = attack(Brightness(), images, labels, start=start)
    expected = (images[:10] + memory[known]).clamp(0, 1)
    torch.testing.assert_close(begun[:10], expected, atol=1e-6, rtol=0)


@BITS
def test_steps_add_up_from_visit_to_visit(bits):
    """Five attacks of one step, each from where the last one ended, are one attack of five."""
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(8, dtype=torch.long)
    memory = PerturbationMemory(8, SHAPE, EPSILON, bits=bits)
    attack = PGD(EPSILON, EPSILON / 5, steps=1, random_start=False)
    for _ in range(5):
        recall = memory.recall(torch.arange(8))
        start = recall.start(images, attack, torch.Generator())
        adversarial = attack(Brightness(), images, labels, start=start)
        recall.store(adversarial - images)
    whole = PGD(EPSILON, EPSILON / 5, steps=5, random_start=False)(Brightness(), images, labels)
    torch.testing.assert_close(adversarial, whole, atol=4 * LARGEST_ERROR[bits], rtol=0)
    assert (adversarial - images).max() > 0.9 * EPSILON


def test_it_lives_on_the_device_of_the_data(device):
    memory = PerturbationMemory(6, SHAPE, EPSILON, device=device)
    indices = torch.tensor([1, 3], device=device)
    memory.update(indices, perturbations(2).to(device))
    assert memory[indices].device.type == device == memory.device.type
    memory.to("cpu").to(device)
    if device == "cuda":
        # nothing waits to look: what cannot be stored is stored as near as can be
        memory.update(indices, torch.full((2, *SHAPE), float("nan"), device=device))
        assert (memory[indices] == 0).all()

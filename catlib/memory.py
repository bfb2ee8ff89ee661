"""What is remembered of each training image besides its weight: its last perturbation.

Adversarial examples of one image are alike from one visit to the next (paper, Fig. 1). An attack
that starts where the last one on the same image ended needs fewer steps (ATTA: Zheng et al., CVPR
2020; FGSM-PGI: Jia et al., ECCV 2022).
"""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .attacks import PGD, random_start
from .checks import check_count, checked_indices, kind_of
from .data.augmentation import Moves

TYPES = {8: torch.int8, 16: torch.float16}
LEVELS = 127  # at 8 bits: whole multiples of the largest perturbation / 127, of either sign
# what stands for an image of which nothing is known yet; no perturbation is stored like this
NOTHING = {8: -128, 16: float("inf")}
ARGUMENTS = ("n", "shape", "epsilon", "bits")
ROUNDING = 1e-6  # adversarial - images may leave the ball by that much


class PerturbationMemory:
    """The last perturbation of each of n images: ``memory[indices]``, ``memory.update(...)``.

    It takes C x H x W bytes an image at 8 bits, and twice that at 16: for the 50,000 images of
    CIFAR-10 3,072 bytes each, 154 MB, at 8 bits. Of an image that was not updated yet nothing is
    known: ``has`` says so, and its perturbation reads as zero. At 8 bits a perturbation is rounded
    to a multiple of epsilon / 127, which is fine in the linf ball; perturbations of an l2 ball are
    spread over many pixels, and need 16.

    Args:
        n: images.
        shape: of one image, (C, H, W).
        epsilon: the largest perturbation of a pixel, in units of images in [0, 1].
        bits: of a pixel, 8 or 16 (a float16).
        device: where it is kept.
    Raises: ValueError: an argument outside what is written here.
    """

    n: int
    shape: tuple[int, ...]
    epsilon: float
    bits: int
    _stored: Tensor  # (n, C, H, W), of TYPES[bits]

    def __init__(
        self,
        n: int,
        shape: tuple[int, ...],
        epsilon: float,
        *,
        bits: int = 8,
        device: str | torch.device = "cpu",
    ):
        check_count("n", n, at_least=1)
        if len(shape) != 3:
            raise ValueError(f"shape is {tuple(shape)}; it must be that of an image, (C, H, W).")
        for size in shape:
            check_count("a size in shape", size, at_least=1)
        if not isinstance(epsilon, Real) or not 0 < float(epsilon) < float("inf"):
            raise ValueError(
                f"epsilon is {epsilon!r}; it must be a positive number, in units of images in "
                f"[0, 1]."
            )
        if bits not in TYPES:
            raise ValueError(f"bits is {bits!r}; it must be 8 or 16.")
        self.n = int(n)
        self.shape = tuple(int(size) for size in shape)
        self.epsilon = float(epsilon)
        self.bits = int(bits)
        self._stored = torch.full(
            (self.n, *self.shape), NOTHING[self.bits], dtype=TYPES[self.bits], device=device
        )

    @property
    def device(self) -> torch.device:
        return self._stored.device

    @property
    def bytes_per_image(self) -> int:
        return self._stored[0].nbytes

    def to(self, device: str | torch.device) -> "PerturbationMemory":
        """Move it to a device; returns itself."""
        self._stored = self._stored.to(device)
        return self

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The perturbations (B, C, H, W) float32 at ``indices`` (B,); zero where nothing is known.

        Raises: IndexError, ValueError: an index outside the data, or no indices (B,).
        """
        indices = checked_indices(indices, self.n, self.device)
        stored = self._stored[indices]
        known = self._is_known(stored).view(-1, 1, 1, 1)
        perturbations = stored.float()
        if self.bits == 8:
            perturbations = perturbations * self._unit
        return torch.where(known, perturbations, 0.0)

    def has(self, indices: Tensor) -> Tensor:
        """(B,) bool: of which of the images at ``indices`` (B,) a perturbation is known."""
        return self._is_known(self._stored[checked_indices(indices, self.n, self.device)])

    def update(self, indices: Tensor, perturbations: Tensor) -> None:
        """Remember what an attack found: ``memory.update(indices, adversarial - images)``.

        Args:
            indices: (B,) integers, all different.
            perturbations: (B, C, H, W), finite, no pixel larger than epsilon.
        Raises: IndexError, ValueError: anything else; nothing was changed. On a GPU, where such a
            check would have to wait for the device, torch stops a wrong index, a pixel larger than
            epsilon is stored as epsilon, and one that is not a number as zero.
        """
        indices = checked_indices(indices, self.n, self.device)
        perturbations = torch.as_tensor(perturbations, device=self.device).detach().float()
        if perturbations.shape != (len(indices), *self.shape):
            raise ValueError(
                f"perturbations are {tuple(perturbations.shape)} for {len(indices)} indices; they "
                f"must be {(len(indices), *self.shape)}."
            )
        if self.device.type == "cpu" and len(indices):
            self._check_update(indices, perturbations)
        perturbations = perturbations.nan_to_num(nan=0.0).clamp(-self._largest, self._largest)
        if self.bits == 8:
            perturbations = (perturbations / self._unit).round()
        self._stored[indices] = perturbations.to(self._stored.dtype)

    def recall(self, indices: Tensor, moves: Moves | None = None) -> "Recall":
        """What is remembered of a batch of images, moved as an augmentation moved the images."""
        return Recall(self, indices, moves)

    def check_attack(self, attack: Any) -> None:
        """Raise TypeError or ValueError if what this attack finds cannot be remembered."""
        if not isinstance(attack, PGD):
            raise TypeError(
                f"the attack is a {type(attack).__name__}, which cannot begin at what is "
                f"remembered; with a memory it must be a PGD."
            )
        if attack.epsilon > self.epsilon:
            raise ValueError(
                f"the attack has epsilon {attack.epsilon:.6g}; the memory holds perturbations of "
                f"at most {self.epsilon:.6g}. Build it with the largest epsilon of the training."
            )

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: what a memory of the same images needs to go on."""
        arguments = {name: getattr(self, name) for name in ARGUMENTS}
        return {**arguments, "stored": self._stored.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises: ValueError: the state of another memory, or a damaged one; nothing was changed.
        """
        missing = [name for name in (*ARGUMENTS, "stored") if name not in state]
        if missing:
            raise ValueError(
                f"the state lacks {', '.join(missing)}; it must be what state_dict() of a "
                f"PerturbationMemory returned."
            )
        for name in ARGUMENTS:
            own = getattr(self, name)
            if repr(state[name]) != repr(own):
                raise ValueError(
                    f"the state is of a memory with {name} {state[name]!r}; this one has {own!r}."
                )
        stored = state["stored"]
        if kind_of(stored) != kind_of(self._stored):
            raise ValueError(
                f"the state's stored is {kind_of(stored)}; it must be {kind_of(self._stored)}."
            )
        self._check_stored(stored)
        self._stored = stored.to(self.device, copy=True)

    def _check_stored(self, stored: Tensor) -> None:
        """Raise ValueError if these are not the perturbations of some images, nothing of others."""
        pixels = stored[self._is_known(stored)].float()
        if self.bits == 8:
            pixels = pixels * self._unit
        rounded = 1.001 * self._largest  # a float16 may be larger than what it was made of
        if pixels.numel() and not pixels.abs().max() <= rounded:
            raise ValueError(
                f"the state has a pixel perturbed by {pixels.abs().max():.6g}; each must be a "
                f"number of at most {self._largest:.6g} in size."
            )

    @property
    def _largest(self) -> float:
        """No pixel in [0, 1] is moved by more than 1, whatever epsilon is."""
        return min(self.epsilon, 1.0)

    @property
    def _unit(self) -> float:
        """What the number 1 stands for at 8 bits."""
        return self._largest / LEVELS

    def _is_known(self, stored: Tensor) -> Tensor:
        first_pixel = stored.flatten(1)[:, 0]
        if self.bits == 8:
            return first_pixel != NOTHING[8]
        return ~first_pixel.isinf()

    def _check_update(self, indices: Tensor, perturbations: Tensor) -> None:
        if len(indices.unique()) < len(indices):
            raise ValueError("an index comes twice; every image has one perturbation.")
        largest = perturbations.abs().max().item()
        if not largest <= self._largest + ROUNDING:
            raise ValueError(
                f"a pixel is perturbed by {largest:.6g}; each must be a number of at most "
                f"{self._largest:.6g} in size."
            )


class Recall:
    """What is remembered of one batch, moved as an augmentation moved its images.

    First :meth:`start`, then the attack, then :meth:`store`.
    """

    def __init__(self, memory: PerturbationMemory, indices: Tensor, moves: Moves | None):
        self._memory = memory
        self._indices = indices
        self._moves = moves
        self._known = memory.has(indices)
        self._before = memory[indices]  # as the images lie in the data
        self._moved = self._before if moves is None else moves(self._before)  # as in the batch

    def start(self, images: Tensor, attack: Any, generator: torch.Generator) -> Tensor:
        """Where the attack on these images is to begin, (B, C, H, W).

        An image of which nothing is known begins as it would without a memory: at random, unless
        the attack has no random start.

        Args:
            attack: a PGD.
        Raises: TypeError, ValueError: what this attack finds could not be remembered.
        """
        self._memory.check_attack(attack)
        fresh = torch.zeros_like(images)
        if attack.random_start:
            fresh = random_start(images, attack.epsilon, attack.norm, generator) - images
        known = self._known.view(-1, 1, 1, 1)
        return torch.where(known, self._moved, fresh)

    def store(self, perturbations: Tensor) -> None:
        """Remember what the attack found in the batch, (B, C, H, W).

        A pixel that an augmentation moved out of the frame keeps what was remembered of it.
        """
        change = perturbations - self._moved
        if self._moves is not None:
            change = self._moves.inverse()(change)  # zero where a pixel was out of the frame
        self._memory.update(self._indices, self._before + change)

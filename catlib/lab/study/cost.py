"""What the pieces of the study cost: images through the model, bytes of checkpoints, minutes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..runs import CHECKPOINT_SECONDS, Trial, passes_a_draw
from .plan import Piece

MINUTES_OF_A_COMMAND = 8.0  # a machine that is lent for minutes keeps nothing of a longer one
TEST_IMAGES = 10_000  # of MNIST and CIFAR-10, where a trial is judged on all of them at its end
PIXELS = {"mnist": 28 * 28, "cifar10": 32 * 32, "digits": 8 * 8}
# weights and momentum of a trial's model in a checkpoint, in bytes
CHECKPOINT_BYTES = {"resnet18": 90_000_000, "cnn": 2_300_000}
STARTS_OF_SIMILARITY = 2  # the attack begins from the same and from fresh random points
CHECKS_OF_STALENESS = 6
STALENESS_IMAGES = 1000
FORWARDS_OF_A_PASS = 3  # a gradient takes about twice as long as what it is the gradient of
AUTOATTACK_PASSES = 1000  # an image: APGD-CE is 100 steps, APGD-T nine times as many


@dataclass(frozen=True)
class Cost:
    """What something costs. A pass is one image, once forward and once backward.

    Evaluations are counted as if no image were broken, so they cost at most this, and usually half.

    Attributes:
        draws: images that training draws.
        training: passes of training, attacks and updates.
        evaluation: passes of evaluations, on the way and at the end.
        checkpoints: bytes that are written if training takes no minute.
    """

    draws: int = 0
    training: int = 0
    evaluation: int = 0
    checkpoints: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.draws + other.draws,
            self.training + other.training,
            self.evaluation + other.evaluation,
            self.checkpoints + other.checkpoints,
        )


@dataclass(frozen=True)
class Speed:
    """How fast a GPU is with a ResNet-18 on CIFAR-10, in seconds; `catlib gpu` measures it.

    Attributes:
        step: a forward and backward pass of few images, uncompiled: what the host needs for it.
        compiled_step: the same, compiled.
        image: a forward and backward pass of one image more, where the device is the limit.
        judged_image: the same in an evaluation, verdicts in float32 included.
        checkpoint: writing a checkpoint.
        compilation: until a training of a new shape runs compiled.
        start: until a process is ready for its first iteration.
    """

    step: float
    compiled_step: float
    image: float
    judged_image: float
    checkpoint: float
    compilation: float
    start: float


# Of an H200, estimated from its arithmetic and not measured: 3.3 GFLOP an image and pass, 30 % of
# 790 TFLOP/s in bfloat16, 171 launches of 10 us a step, a tenth of that speed in full float32.
H200 = Speed(
    step=1.7e-3,
    compiled_step=2e-4,
    image=9.3e-6,
    judged_image=2e-5,
    checkpoint=0.24,
    compilation=60.0,
    start=15.0,
)


def cost_of_trial(trial: Trial) -> Cost:
    """The cost of a run."""
    if trial.iterations is None:
        raise ValueError("iterations is None: a run without an end has no cost.")
    draws = trial.iterations * trial.sampling_number
    return Cost(
        draws=draws,
        training=draws * passes_a_draw(trial),
        evaluation=_evaluation_passes(trial, trial.iterations),
        checkpoints=_checkpoint_bytes(trial),
    )


def _evaluation_passes(trial: Trial, iterations: int) -> int:
    checks = -(-iterations // trial.evaluate_every) if trial.evaluate_every else 0
    # accuracy, the image itself, and the iterates of the attack
    passes = checks * trial.evaluation_size * (trial.evaluation_steps + 2)
    judgements = checks + (1 if trial.final_restarts else 0)
    passes += judgements * -(-trial.recalibrate // FORWARDS_OF_A_PASS)
    if trial.final_restarts:
        images = trial.final_size or TEST_IMAGES
        passes += images * (trial.evaluation_steps * trial.final_restarts + 2)
    return passes


def _checkpoint_bytes(trial: Trial) -> int:
    return CHECKPOINT_BYTES.get(trial.model, CHECKPOINT_BYTES["resnet18"])


def cost_of_runs(piece: Piece, trials: Iterable[Trial], judged: dict | None = None) -> Cost:
    """The cost of these trials of a piece; ``judged`` are the options of their finals, if any."""
    total = Cost()
    for trial in trials:
        if piece.kind == "similarity":
            total += _cost_of_similarity(piece, trial)
        else:
            total += cost_of_trial(trial)
        if judged is not None:
            total += Cost(evaluation=_passes_of_finals(judged, trial))
    return total


def _cost_of_similarity(piece: Piece, trial: Trial) -> Cost:
    """Two trainings: one compares neighbours at each iteration, one checks the age of weights."""
    assert trial.iterations is not None
    draws = 2 * trial.iterations * trial.sampling_number
    images = piece.options.get("images", 200)
    neighbours = trial.iterations * STARTS_OF_SIMILARITY * images
    staleness = CHECKS_OF_STALENESS * STALENESS_IMAGES
    return Cost(
        draws=draws,
        training=draws * passes_a_draw(trial),
        evaluation=(neighbours + staleness) * (trial.steps + 1),
    )


def _passes_of_finals(options: dict, trial: Trial) -> int:
    images = options.get("images", TEST_IMAGES)
    steps = trial.evaluation_steps
    scaled = 4 * min(images, 1000) * steps  # logits times four factors
    attacks = images * steps * (options.get("restarts", 10) + 1)  # and the worst class
    strongest = options["autoattack_size"] * AUTOATTACK_PASSES
    models = len(options.get("models", ("best", "last")))
    return models * (scaled + attacks + strongest + 2 * images)


def seconds_of_runs(
    piece: Piece, trials: Sequence[Trial], speed: Speed, judged: dict | None = None
) -> float:
    """How long these trials take, one after the other, with the start of a process."""
    seconds = speed.start
    compiled_shapes = set()
    for trial in trials:
        cost = cost_of_runs(piece, [trial], judged)
        pixels = PIXELS.get(trial.dataset, PIXELS["cifar10"]) / PIXELS["cifar10"]
        least = speed.compiled_step if trial.compile else speed.step
        a_batch = max(least, speed.image * pixels * trial.sampling_number)
        training = cost.training / trial.sampling_number * a_batch
        seconds += training + cost.evaluation * speed.judged_image * pixels
        seconds += speed.checkpoint * (1 + training // CHECKPOINT_SECONDS)
        if trial.compile:
            compiled_shapes.add((trial.sampling_number, trial.rule, trial.norm, trial.batch_norm))
    return seconds + speed.compilation * len(compiled_shapes)


@dataclass(frozen=True)
class Command:
    """A part of a piece that ends with finished runs within :data:`MINUTES_OF_A_COMMAND`.

    Attributes:
        trials: the runs of it.
        seed: the one that it is for; None where the whole piece fits into one command.
        seconds: how long it takes, by estimate.
    """

    piece: Piece
    trials: tuple[Trial, ...]
    seed: int | None
    seconds: float

    @property
    def text(self) -> str:
        seed = "" if self.seed is None else f" --seed {self.seed}"
        return f"{self.piece.command}{seed}"


def commands_of(piece: Piece, speed: Speed, judged: dict | None = None) -> list[Command]:
    """The commands of a piece: one, or one for each seed if that takes too long."""
    trials = tuple(trial for _, trial in piece.trials)
    whole = seconds_of_runs(piece, trials, speed, judged)
    if whole <= 60 * MINUTES_OF_A_COMMAND:
        return [Command(piece, trials, None, whole)]
    seeds = sorted({trial.seed for trial in trials})
    commands = []
    for seed in seeds:
        some = tuple(trial for trial in trials if trial.seed == seed)
        commands.append(Command(piece, some, seed, seconds_of_runs(piece, some, speed, judged)))
    return commands


def finals_of(piece: Piece, pieces: Iterable[Piece]) -> dict | None:
    """The options of the piece that judges the runs of this one; None if there is none."""
    for one in pieces:
        if one.kind == "finals" and one.options["of"] == piece.name:
            return one.options
    return None

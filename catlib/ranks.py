"""Several processes that train one model together, or one that trains alone.

As in torch.distributed, each process is a *rank*. All ranks draw the same batch, and each attacks
and learns from its own share of it: of the indices 7, 3, 8, 1, 5, two ranks take 7, 8, 5 and 3, 1.
What they compute is gathered, so that each updates the whole sampler. The draws are therefore those
of one process, and any number of ranks can go on with a saved training.

A process that trains alone goes through the same lines, which then change nothing.
"""

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

RANKS = ("auto", "alone")
# of a rank: its error in words, if it has one, and the checksums of its facts
_Report = tuple[str | None, dict[str, int]]
START_AGAIN = "Start all ranks again from the last state that was saved."


class Ranks:
    """The processes that train one model together, as one of them sees it.

    Attributes:
        rank: the number of this process, in 0..count-1.
        count: of all of them.
    """

    def __init__(self, rank: int = 0, count: int = 1):
        self.rank = rank
        self.count = count
        # messages between the hosts: no GPU has to be waited for
        self._host = _host_group(dist.group.WORLD) if count > 1 else None
        self._lost: BaseException | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and shows progress."""
        return self.rank == 0

    # the share of a rank

    def share(self, n: int) -> slice:
        """The places of this rank's share in a batch of n examples.

        Raises: ValueError: there are fewer examples than ranks.
        """
        if n < self.count:
            raise ValueError(
                f"the batch has {n} examples for {self.count} ranks; each needs at least one: use "
                "a larger sampling number or fewer ranks."
            )
        return slice(self.rank, None, self.count)

    def gather(self, own: Tensor, n: int) -> Tensor:
        """What all ranks computed for their shares of a batch of n examples, in its order.

        Args:
            own: (b, ...), of this rank's share.
        Returns: (n, ...), the same on every rank.
        """
        if self.count == 1:
            return own
        largest_share = -(-n // self.count)
        padded = own.new_zeros(largest_share, *own.shape[1:])
        padded[: len(own)] = own
        shares = [torch.empty_like(padded) for _ in range(self.count)]
        with self.in_step():
            dist.all_gather(shares, padded)
        # (b, count, ...): the first of every share, then the second of every share, and so on
        return torch.stack(shares, dim=1).flatten(0, 1)[:n]

    def weighed(self, loss: Tensor, n: int) -> Tensor:
        """A mean over this rank's share, times a weight.

        The mean over ranks of the result is the mean over the batch of n examples. So is its
        gradient, which DistributedDataParallel averages over the ranks, even if one has an example
        more than another.
        """
        if self.count == 1:
            return loss
        examples = len(range(n)[self.share(n)])
        return loss * (examples * self.count / n)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the ranks' values, the same on every rank."""
        if self.count == 1:
            return value
        total = value.clone()
        with self.in_step():
            dist.all_reduce(total)
        return total / self.count

    def total(self, number: int) -> int:
        """The sum of the ranks' numbers."""
        if self.count == 1:
            return number
        return sum(own for (own,) in self._from_all(number))

    # the model

    def wrap(self, network: nn.Module, wrapper: nn.Module | None = None) -> nn.Module:
        """The network whose backward pass leaves the mean of all ranks' gradients on each of them.

        Every rank gets the weights and buffers of rank 0. A ``wrapper`` that the user has made is
        used instead of one with torch's default settings.
        """
        if self.count == 1:
            return network
        self.share_buffers(network)
        return wrapper or DistributedDataParallel(network, **_without_buffers())

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0, such as the statistics of a batch norm."""
        if self.count > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    # errors

    @contextmanager
    def agreed(self) -> Iterator[dict[str, Any]]:
        """A block that succeeds on all ranks or fails on all of them.

        ``with ranks.agreed() as facts: ...; facts["draw"] = indices`` also makes sure that every
        rank has the same facts: tensors, numbers, names. In the block no rank may wait for another.

        Raises: RuntimeError: the block failed on another rank, whose error the message has; or the
            facts differ.
        """
        facts: dict[str, Any] = {}
        if self.count == 1:
            yield facts
            return
        if self._lost is not None:
            raise RuntimeError(
                f"rank {self.rank} cannot go on with the others, after {_words(self._lost)}. "
                + START_AGAIN
            )
        failure = None
        try:
            yield facts
        except BaseException as error:
            failure = error
        try:
            reports = self._reports(failure, facts)
        finally:
            if failure is not None:
                raise failure
        if reports:
            raise RuntimeError(self._reason(reports))

    def _reports(self, failure: BaseException | None, facts: dict[str, Any]) -> list[_Report]:
        """What every rank reports of itself, if one has failed or the facts differ; else nothing.

        In nearly every case all is well, and two numbers are the only message.
        """
        checksums = {name: _checksum(fact) for name, fact in facts.items()}
        summaries = self._from_all(failure is not None, _checksum(checksums))
        one_failed = any(failed for failed, _ in summaries)
        if not one_failed and len(set(summaries)) == 1:
            return []
        own_report = (None if failure is None else _words(failure), checksums)
        reports: list[Any] = [None] * self.count
        with self.in_step():
            dist.all_gather_object(reports, own_report, group=self._host)
        return reports

    def _reason(self, reports: list[_Report]) -> str:
        """Why the ranks stop: the first error of another rank, or else the facts that differ."""
        for rank, (failure, _) in enumerate(reports):
            if failure is not None:
                return (
                    f"rank {rank} of {self.count} stopped with {failure}. "
                    f"So rank {self.rank} stops, too."
                )
        # a rank that is elsewhere, as in an evaluation that no other makes, has none of these facts
        all_facts = [facts for _, facts in reports]
        names = sorted(set().union(*all_facts))
        names = [name for name in names if len({facts.get(name) for facts in all_facts}) > 1]
        return (
            f"the {self.count} ranks do not have the same {', '.join(names)}. Every rank must "
            "build the same Training, with the same data, sampler and seeds, and load the same "
            "state."
        )

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """A block in which the ranks wait for each other, so that they cannot agree on an error.

        After an error in it, this rank no longer knows where the others are, and goes no further.
        """
        try:
            yield
        except BaseException as error:
            if self.count > 1:
                self._lost = error
                error.add_note(
                    f"Rank {self.rank} of {self.count} was in a step of all ranks. If another one "
                    f"has ended, its own message says why. {START_AGAIN}"
                )
            raise

    def _from_all(self, *numbers: int) -> list[tuple[int, ...]]:
        """The numbers of every rank, in the order of the ranks."""
        own = torch.tensor(numbers, dtype=torch.int64)
        received = [torch.empty_like(own) for _ in range(self.count)]
        with self.in_step():
            dist.all_gather(received, own, group=self._host)
        return [tuple(one.tolist()) for one in received]


def find_ranks(ranks: str) -> Ranks:
    """The ranks of torch.distributed, if it is initialised; with "alone", this process alone.

    Raises: ValueError: neither "auto" nor "alone"; or torchrun has started several processes, and
        torch.distributed is not initialised.
    """
    if ranks not in RANKS:
        raise ValueError(f"ranks is {ranks!r}; it must be one of {', '.join(RANKS)}.")
    if ranks == "alone" or not dist.is_available():
        return Ranks()
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_torchelastic_launched() and started > 1:
        raise ValueError(
            f"torchrun has started {started} processes, which do not know of each other: call "
            "torch.distributed.init_process_group() before Training, or give it ranks='alone'."
        )
    return Ranks()


def own_gpu() -> torch.device:
    """The GPU of this process: under torchrun that of its number on this machine."""
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def _without_buffers() -> dict[str, Any]:
    """Options of DistributedDataParallel: no forward pass shares the buffers.

    They are shared after each update instead, so that the attack that follows has them, too. A new
    name of this option is not known to older versions of torch, and newer ones warn of the old one.
    """
    known = signature(DistributedDataParallel).parameters
    new_name = "forward_sync_buffers"
    return {new_name if new_name in known else "broadcast_buffers": False}


@cache
def _host_group(world: Any) -> Any:
    """A group of all ranks for messages on the host; one for each initialised torch.distributed."""
    return dist.new_group(backend="gloo")


def _checksum(fact: Any) -> int:
    content = fact.cpu().numpy().tobytes() if isinstance(fact, Tensor) else repr(fact).encode()
    return zlib.crc32(content)


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"

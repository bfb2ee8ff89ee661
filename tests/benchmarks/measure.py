"""How the benchmarks measure: contenders in one run, ratios within a round, medians over rounds."""

import statistics
import time

import torch


class SideBySide:
    """Time contenders in turns.

    The order changes from round to round, so that no contender always has the better neighbour. On
    a CPU the clock is the process's own time: with one thread, other programs disturb it least. On
    a GPU it is the wall's, and the device is synchronised before it is read. With `untimed`, each
    turn begins with a call that is not timed, so that no contender pays for the memory that the one
    before it went through.
    """

    def __init__(self, benchmark, contenders, rounds, device="cpu", warm=1, untimed=False):
        self.contenders, self.times, self.walls, self.results = (
            contenders,
            {n: [] for n in contenders},
            {n: [] for n in contenders},
            {},
        )
        self.untimed, self.device, self.clock = (
            untimed,
            device,
            time.process_time if device == "cpu" else time.perf_counter,
        )
        for name, run in contenders.items():
            for _ in range(warm):
                self.results[name] = run()
        names = list(contenders)

        def one_round():
            names.append(names.pop(0))
            for name in names:
                self.measure(name)

        benchmark.pedantic(one_round, rounds=rounds)
        self.rounds = rounds

    def measure(self, name):
        if self.untimed:
            self.contenders[name]()
        self.synchronize()
        wall, start = time.perf_counter(), self.clock()
        self.contenders[name]()
        self.synchronize()
        self.times[name].append(self.clock() - start)
        self.walls[name].append(time.perf_counter() - wall)

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, name):
        return statistics.median(self.times[name])

    def ratio(self, name, base, wall=False):
        times = self.walls if wall else self.times
        return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def plain_format(model):
    """The model with its weights as torch makes them, without channels_last."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model

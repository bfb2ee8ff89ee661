"""What ``make bench`` leaves: data/results/benchmarks_<device>.csv, a table of bars and a plot.

``python tests/benchmarks/report.py`` prints the table again, draws the plot and fills
docs/speed.md, all from the file.
"""

import csv
import importlib.metadata
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("row", "measure", "value", "bar", "met", "seconds", "robust_accuracy", "rounds", "note")
PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "torchattacks",
    "foolbox",
    "adversarial-robustness-toolbox",
    "pytest-benchmark",
)
WHAT = {
    "1": "PGD-20, batch 128, MNIST cnn: time over a minimal hand-written PGD",
    "2": "the same over torchattacks, foolbox, ART",
    "3": "PGD-20-10 evaluation: passes and time over ten full runs of everything",
    "4": "sampling step, k = 256",
    "5": "CAT iteration over AT iteration, MNIST cnn, n = 60,000",
    "6": "memory of the sampler, n = 5*10^7",
    "7": "CUDA: ResNet-18, PGD-10: training iteration over an eager float32 loop with torchattacks",
    "8": "CUDA: FLOP/s of the attack at batch 512 over a bfloat16 matrix product of 8192",
    "9": "CUDA: CAT iteration over AT iteration, k = 128",
}
OPEN = "open: needs a GPU; make bench DEVICE=cuda fills it in"


def path(device):
    return ROOT / "data" / "results" / f"benchmarks_{device}.csv"


def order(row):
    """By row, then by measure, numbers as numbers."""
    parts = re.split(r"(\d+)", row["measure"])
    return (
        not row["row"].isdigit(),
        row["row"],
        [(int(part), "") if part.isdigit() else (0, part) for part in parts],
    )


def write(device, rows, header):
    file = path(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="") as stream:
        stream.writelines(f"# {line}\n" for line in header)
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=order))
    return file


def read(device):
    with open(path(device), newline="") as stream:
        return list(csv.DictReader(line for line in stream if not line.startswith("#")))


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def header(device, hardware, threads, loads):
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        f"command: make bench DEVICE={device}",
        f"device: {hardware}; {threads} thread; load average over the run: {loads}",
        f"python {platform.python_version()}, {versions}",
        "data: MNIST and CIFAR-10, the first images of the test sets; "
        "weights, starts and draws from seed 0",
        "value: a ratio is the median over rounds of the ratio within a round, "
        "contenders in turns; "
        "seconds: median of a round, process time on a CPU, wall time on a GPU",
        "met: yes, no, open (not measured on this device), or empty where there is no bar",
    ]


def table(rows):
    """The nine rows of bars, as lines of Markdown; then what each trick brings."""
    lines = ["| | what | measured | target | met |", "| --- | --- | --- | --- | --- |"]
    for number, what in WHAT.items():
        lines.append(f"| **{number}** | {what} | | | |")
        for row in (r for r in rows if r["row"] == number and r["bar"]):
            measured = f"{float(row['value']):.3g}" if row["value"] != "" else row["note"]
            lines.append(f"| | {row['measure']} | {measured} | {row['bar']} | {row['met']} |")
    lines += ["", "| what a trick brings | time with over time without | |", "| --- | --- | --- |"]
    lines += [
        f"| {r['measure']} | {float(r['value']):.2f} | {r['note']} |"
        for r in rows
        if r["row"] == "trick"
    ]
    return lines


def worst(rows):
    """One line for each of the nine rows: the measure that is closest to its target, or worst."""
    lines = [
        "| | what | its measure closest to the target | measured | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for number, what in WHAT.items():
        barred = [r for r in rows if r["row"] == number and r["bar"]]
        measured = [r for r in barred if r["value"] != ""]
        if measured:
            row = max(measured, key=lambda r: share_of_bar(float(r["value"]), r["bar"]))
            cells = [row["measure"], f"{float(row['value']):.3g}", row["bar"]]
        else:
            cells = [OPEN, "—", ", ".join(r["bar"] for r in barred)]
        lines.append(f"| **{number}** | {what} | {' | '.join(cells)} |")
    return lines


def share_of_bar(value, bar):
    """How much of its target a value uses up; above 1 the target is missed."""
    limit = float(bar[2:])
    if bar.startswith(">="):
        return limit / value
    if limit == 0:  # a count of which none is allowed
        return 0.0 if value == 0 else float("inf")
    return value / limit


def plot(device):
    """Left: the attacks' times beside ours. Right: a sampling step against the size of the data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from catlib.lab.figures import COLOURS

    rows = read(device)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    shown = ("catlib", "catlib, compiled", "hand-written", "torchattacks", "foolbox", "ART")
    attacks = [
        (r["measure"], float(r["seconds"]), r["robust_accuracy"])
        for r in rows
        if r["row"] == "attack"
    ]
    attacks = sorted(
        (attack for attack in attacks if attack[0] in shown), key=lambda attack: -attack[1]
    )
    bars = left.barh(
        [name for name, _, _ in attacks],
        [seconds for _, seconds, _ in attacks],
        color=[COLOURS["CAT"] if name.startswith("catlib") else "0.7" for name, _, _ in attacks],
    )
    left.bar_label(
        bars, [f" {float(robust):.1%} stay right" for _, _, robust in attacks], fontsize=8
    )
    left.set(
        xlabel="seconds of CPU time",
        title="PGD-20 on 128 MNIST images, cnn",
        xlim=(0, 1.35 * attacks[0][1]),
    )
    lines = {}
    for r in rows:
        if r["row"] == "sampling":
            name, n = r["measure"].rsplit(", n = ", 1)
            lines.setdefault(name, []).append((float(n), float(r["seconds"]) * 1e3))
    markers = {True: iter("os^Dv"), False: iter("xPd*")}
    for name, points in sorted(lines.items(), key=lambda line: -max(line[1])[1]):
        ours = name.startswith("catlib")
        name = {
            "catlib, tree": "catlib, 1 class",
            "catlib, plain form": "catlib, 1 class, plain form",
        }.get(name, name)
        look = (
            {"color": COLOURS["CAT"], "lw": 1.8} if ours else {"color": "0.5", "lw": 1, "ls": "--"}
        )
        right.loglog(
            *zip(*sorted(points), strict=True),
            label=name,
            marker=next(markers[ours]),
            ms=5,
            mfc="white",
            **look,
        )
    right.set(
        xlabel="examples n",
        ylabel="milliseconds of CPU time a step",
        title="Draw 256 by weight, each once",
    )
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    file = ROOT / "docs" / f"benchmarks_{device}.png"
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file


def fill_page(device):
    """The plot, the worst results and, folded away, all rows, between docs/speed.md's markers."""
    from catlib.lab.markdown import between
    from catlib.lab.paths import DOCS

    head = path(device).read_text().splitlines()
    hardware = next(line for line in head if line.startswith("# device: "))
    lines = [
        f"![Attacks side by side, and a sampling step](benchmarks_{device}.png)",
        "",
        f"By `make bench`, on one {hardware.removeprefix('# device: ')}. "
        "A ratio below 1 is faster than the peer.",
        "",
        *worst(read(device)),
        "",
        "<details><summary>Every row, and what each trick brings</summary>",
        "",
        *table(read(device)),
        "",
        "</details>",
    ]
    page = DOCS / "speed.md"
    text = between(page.read_text(encoding="utf-8"), "benchmarks", "\n".join(lines))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    print("\n".join(table(read(chosen))))
    print(plot(chosen))
    if chosen == "cpu":
        fill_page(chosen)

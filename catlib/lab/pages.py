"""What is said about the study: the claims page, Tables 1 and 2, and a part of the README.

Every text is generated from the tables in data/results; :mod:`catlib.lab.claims` and
:mod:`catlib.lab.compare` give the numbers. The words stand in three places: the sentences in
templates/*.j2, the claims in claims.toml, and the remark in brackets after a verdict where the
verdict is given, in claims.py and compare.py. Headers of tables, what an arm is, and the names of
what a table was measured on, stand here.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import jinja2
import pandas as pd

from ..files import write_whole
from . import advice, claims, frontier, markdown
from .claims import Answer, Claim, first_there, levels_of, tables_of
from .compare import (
    Estimate,
    all_reached,
    costs,
    did_not_learn,
    difference,
    drawn_accuracy,
    ends,
    estimate_of,
    failures,
    faster_overall,
    final_metric,
    how_much_faster,
    measured,
    overall,
    percent,
    speed_table,
)
from .figures import COLOURS, curves, use_style
from .paper import NAMES, TRAINING_IMAGES, paper_table
from .paths import DOCS, README, RESULTS, ROOT
from .runs import Trial
from .study.plan import Piece
from .summaries import Tables, all_pieces, final, is_complete, load_tables, piece_of, summary

TEMPLATES = Path(__file__).with_name("templates")
COMMAND = "catlib pages"
CLAIMS_PAGE = "../data/results/README.md"  # from docs/
# How often the 95 % interval covers the truth, in percent, simulated in tests/test_compare.py:
# with normal data; and where one run of CAT in five does not learn, by pairs of seeds.
COVERAGE = {"normal": 95, "collapsing": {5: 67, 8: 83, 12: 93}}


@lru_cache
def templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, from our own tables
    )
    environment.filters["percent"] = percent
    environment.filters["one_line"] = one_line
    return environment


def one_line(text: str) -> str:
    """The text with every run of white space as one space: a template may break its lines."""
    return " ".join(text.split())


def render(template: str, **values) -> str:
    return templates().get_template(template).render(**values)


# ------------------------------------------------------------------ small words


def epsilon_of(piece: Piece) -> str:
    """The radius of a piece's attack, and whether it grows at first."""
    _, trial = piece.trials[0]
    growing = "growing " if trial.epsilon_warm_up else ""
    return f"{growing}ε = {radius_of(trial)}"


def radius_of(trial: Trial) -> str:
    """Its epsilon as one writes it: of CIFAR-10 in units of 1 / 255."""
    if trial.dataset == "cifar10":
        return f"{255 * trial.epsilon:.0f}/255"
    return f"{trial.epsilon:g}"


def label(table: str) -> str:
    """What a table was measured on, in a few words."""
    piece = piece_of(table)
    _, trial = piece.trials[0]
    words = [network(trial), epsilon_of(piece), f"PGD-{trial.steps}"]
    words.append(f"{trial.iterations:,} iterations")
    if trial.train_size:
        words.append(f"{trial.train_size:,} training images")
    return ", ".join(words)


def network(trial: Trial) -> str:
    return trial.model if trial.width is None else f"slim {trial.model} of width {trial.width}"


def title(table: str) -> str:
    """The dataset of a table, and what it was measured on, for readers who see no file's name."""
    dataset = piece_of(table).trials[0][1].dataset
    return f"{NAMES.get(dataset, dataset)}, {label(table)}"


# ------------------------------------------------------------------ claims


def ours(claim: Claim, answer: Answer) -> str:
    """What was measured for a claim: the macro of its measure, filled with the answer's numbers."""
    return in_words(claim.measure, answer.numbers)


def in_words(macro: str, value) -> str:
    """A macro of templates/measures.j2, filled."""
    return one_line(getattr(templates().get_template("measures.j2").module, macro)(value))


def claim_row(claim: Claim, tables: Tables) -> dict[str, str]:
    """A claim with what every table says to it, and what is open."""
    answers = claims.answers(claim, tables)
    found = [f"{label(name)}: {ours(claim, answer)}" for name, answer in answers.items()]
    verdicts = [f"{label(name)}: {answer.verdict}" for name, answer in answers.items()]
    if len(answers) == 1:
        verdicts = [str(answer.verdict) for answer in answers.values()]
    if claim.untested:
        verdicts.append(f"not tested: {claim.untested}")
    piece = claims.open_piece(claim, tables)
    if piece:
        model = " with the full ResNet-18" if piece.profile == "paper" else ""
        verdicts.append(f"**not tested**{model}: [`{piece.table}`](#open)")
    rule = f"<br>*Holds {claim.rule}.*" if claim.rule else ""
    return {
        "claim": claim.text + rule,
        "paper": claim.paper,
        "ours": "<br>".join(found) or "—",
        "verdict": "<br>".join(verdicts),
    }


def numbered_rows(tables: Tables) -> list[tuple[Claim, dict[str, str]]]:
    """Every claim and its row, with its number on the page."""
    every = claims.all_claims()
    rows = [claim_row(claim, tables) for claim in every]
    return [
        (claim, {"": str(number)} | row)
        for number, (claim, row) in enumerate(zip(every, rows, strict=True), 1)
    ]


def front(tables: Tables) -> str:
    """What was found, in a few sentences for the README, below a comment that names their file."""
    return render(
        "front.md.j2",
        command=COMMAND,
        speed=_speed(first_there("mnist", tables), tables),
        rival=_rival(tables),
        start=_start(tables),
        three=_three_times(tables),
        slim=_speed(first_there("cifar10", tables), tables),
    )


def findings(tables: Tables) -> str:
    """What was asked, what was found and how sure it is, from the best tables that are there."""
    printed = paper_table("mnist")["AT/CAT"]
    return render(
        "findings.md.j2",
        printed={
            "low": f"{100 * (1 - 1 / printed.min()):.0f}",
            "high": f"{100 * (1 - 1 / printed.max()):.0f}",
        },
        speed=_speed(first_there("mnist", tables), tables),
        strong=_speed(first_there("mnist_strong", tables), tables),
        constant=_learned(first_there("mnist_constant", tables), tables),
        parts=_parts(first_there("controls", tables), tables),
        slim=_speed(first_there("cifar10", tables), tables),
        few_met=_parts(first_there("mnist", tables), tables),
        three=_three_times(tables),
        rival=_rival(tables),
        readings=_readings(tables),
    )


def asked(rows: list[tuple[Claim, dict[str, str]]]) -> pd.DataFrame:
    """The questions at the top of the page, each with its verdicts and the row that has more.

    Args:
        rows: :func:`numbered_rows`.
    """
    answered = [
        {"question": claim.asked, "answer": row["verdict"], "row": row[""]}
        for claim, row in rows
        if claim.asked
    ]
    return pd.DataFrame(answered)


def _speed(name: str | None, tables: Tables) -> dict | None:
    """AT against CAT in one table: the ratio over all levels, and the difference at the end."""
    if name is None:
        return None
    piece = piece_of(name)
    last = ends(tables[name])
    gap = None
    if "final_robust_accuracy" in last:
        final = last.final_robust_accuracy
        gap = difference(final["CAT"], final["AT"])
    one = overall(tables[name], levels_of(piece))
    _, trial = piece.trials[0]
    clean = {}
    robust = {}
    for arm in ("CAT", "balance only"):
        if arm in last.index:
            levels = levels_of(piece, "accuracy")
            clean[arm] = overall(tables[name], levels, "accuracy", arm=arm)
            robust[arm] = overall(tables[name], levels_of(piece), arm=arm)
    return {
        "label": label(name),
        "epochs": f"{epochs_of(trial):.2g}",
        "epsilon": epsilon_of(piece),
        "levels": one.levels,
        "ratio": one.ratio,
        "verdict": faster_overall(one),
        "large": how_much_faster(one.ratio),
        "gap": gap,
        "clean": clean,
        "robust": robust,
        "clean_verdict": faster_overall(clean["CAT"]),
    }


def epochs_of(trial: Trial, batch: int | None = None) -> float:
    """How often a trial, with batches of its own or another size, draws all images there are."""
    assert trial.iterations is not None, "a trial of the study has an end"
    images = trial.train_size or TRAINING_IMAGES[trial.dataset]
    return trial.iterations * (batch or trial.sampling_number) / images


def _learned(name: str | None, tables: Tables) -> str | None:
    """How many runs of each arm did not learn, in words."""
    if name is None:
        return None
    last = ends(tables[name])
    return failures(last, *dict.fromkeys(tables[name].arm)) or None


def _parts(name: str | None, tables: Tables) -> dict | None:
    """What the weights change, beside the same balanced draws without them."""
    if name is None or "balance only" not in set(tables[name].arm):
        return None
    numbers = claims.sooner(tables[name], piece_of(name), "balance only", "CAT").numbers
    found = {
        "label": label(name),
        "ratio": numbers["overall"].ratio,
        "verdict": faster_overall(numbers["overall"]),
        "gap": numbers["difference"],
    }
    last = ends(tables[name])
    if "met_again" in last:
        drawn = drawn_accuracy(tables[name])
        found["met_again"] = last.met_again["CAT"].mean()
        found["harder"] = drawn["balance only"].mean() - drawn["CAT"].mean()
    return found


def _three_times(tables: Tables) -> dict | None:
    """The answer to the claim of 3 times on CIFAR-10, by the best table that is there."""
    claim = claims.all_claims()[0]
    best = first_there("cifar10", tables)
    if best is None:
        return None
    answer = claims.answer(claim, tables, best)
    words = {"verdict": str(answer.verdict), "ours": ours(claim, answer), "label": label(best)}
    return words | {"full": best == claim.tables[0]}


def _rival(tables: Tables) -> dict | None:
    """The cheap attack that the advice begins with: how much sooner than AT, and where it ends.

    Where none keeps up with AT, the one that loses least.
    """
    name = tables_of("cheap")[1]
    if name not in tables:
        return None
    piece = piece_of(name)
    found = [one for one in advice.rivals(tables[name], piece) if not one.failed]
    best = advice.best_of(found)
    if best is None:
        best = max(found, key=lambda one: one.gap.value)
    last = ends(tables[name])
    _, trial = piece.trials[0]
    passes = last.passes / last.iteration / trial.sampling_number
    return {
        "arm": best.arm,
        "what": ARMS[best.arm].split(" (")[0],  # without its source
        "passes": best.passes,
        "verdict": faster_overall(best.passes, best.arm, "passes"),
        "cost": f"{passes[best.arm].mean():.0f} of the {passes['AT'].mean():.0f} passes",
        "gap": best.gap,
    }


def _start(tables: Tables) -> dict | None:
    """What beginning at the last perturbation saves beside the best rival, on the hardest data."""
    there = [name for name in FRONTIERS if name in tables]
    if not there:
        return None
    table = tables[there[0]]
    _, trial = piece_of(there[0]).trials[0]
    saving = frontier.saved(table, frontier.OURS, frontier.best_rival(table))
    about = ARMS.get(saving.other, "").partition(" (")[0]  # without its source
    return {
        "data": NAMES.get(trial.dataset, f"the {trial.dataset}"),
        "saving": saving,
        "other": f" ({about})" if about else "",
    }


def _readings(tables: Tables) -> dict | None:
    """Which readings of the paper reach its highest robust accuracy on MNIST."""
    name = tables_of("mnist_audit")[1]
    if name not in tables:
        return None
    found = claims.printed_reached(tables[name], piece_of(name)).numbers
    return found | {"label": label(name)}


# ------------------------------------------------------------------ the claims page


def claims_page(tables: Tables) -> str:
    """data/results/README.md."""
    every = numbered_rows(tables)
    groups: dict[str, list] = {}
    for claim, row in every:
        groups.setdefault(claim.group, []).append(row)
    audits = ("mnist_audit", "mnist_audit_weaker", "cifar10_audit")
    audited = tuple(table for name in audits for table in tables_of(name))
    sections = [
        _section("The controls", tables_of("controls"), controls, tables),
        _section("The cheap rivals", tables_of("cheap"), cheap_rivals, tables),
        _section("The audit", audited, audit_table, tables, AUDIT),
        frontiers(tables),
    ]
    return render(
        "results_readme.md.j2",
        command=COMMAND,
        coverage=COVERAGE,
        findings=findings(tables),
        asked=markdown.table(asked(every)),
        groups=[
            {"title": title, "table": markdown.table(pd.DataFrame(rows))}
            for title, rows in groups.items()
        ],
        settings=markdown.table(settings(tables)) if tables else "",
        arms=markdown.table(pd.DataFrame(ARMS.items(), columns=["arm", "what it is"])),
        sections=[section for section in sections if section["parts"]],
        open=[
            {"piece": piece, "state": state_of(piece, tables)}
            for piece in [*_of("paper"), *_of("cpu")]
            if piece.kind != "notebook" and not is_complete(piece, tables)
        ],
    )


def state_of(piece: Piece, tables: Tables) -> str:
    """How much of a piece that is not complete there is."""
    if piece.table not in tables or "seed" not in tables[piece.table]:
        return "not begun"
    there = tables[piece.table].seed.nunique()
    planned = len({trial.seed for _, trial in piece.trials})
    if there < planned:
        return f"{there} of {planned} seeds, measured by an older plan"
    return "measured before an arm or a value was added"


def settings(tables: Tables) -> pd.DataFrame:
    """What every table of the page was measured on, by its own first lines: a row a table.

    The plan in study.toml may be newer than a table.
    """
    used = dict.fromkeys(name for claim in claims.all_claims() for name in claim.tables)
    rows = []
    for name in used:
        if name not in tables or name.endswith("_staleness"):
            continue
        table = tables[name]
        piece = piece_of(name)
        _, trial = piece.trials[0]
        judged, _, every = _noted(table, "evaluation").partition("; tick: ")
        noted = _noted(table, "update").partition("batch ")[2].split(",")[0]
        batches = re.findall(r"\d+", noted) or [str(trial.sampling_number)]
        rows.append(
            {
                "table": f"`{name}.csv`",
                "data": NAMES.get(trial.dataset, trial.dataset),
                "network": network(trial),
                "attack in training": f"PGD-{trial.steps}, ε = {radius_of(trial)}{_growth(table)}",
                "iterations": f"{table.iteration.max():,}, batches of {_range(batches)}",
                "epochs": _range(f"{epochs_of(trial, int(batch)):.2g}" for batch in batches),
                "checks": every.split("; ")[0] or "—",
                "on": judged.split(", PGD")[0] or "—",
                "at the end": _noted(table, "final") or "the last check",
                "seeds": table.seed.nunique(),
            }
        )
    return pd.DataFrame(rows)


def _noted(table: pd.DataFrame, what: str) -> str:
    """What the first lines of a table of the study say of something; empty if nothing."""
    for line in table.attrs.get("about", "").splitlines():
        if line.startswith(f"{what}: "):
            return line.removeprefix(f"{what}: ")
    return ""


def _growth(table: pd.DataFrame) -> str:
    """Over how many iterations epsilon grew, in words; empty where it did not."""
    over = re.search(r"epsilon grows over (\d+)", _noted(table, "update"))
    return f", grown over {over[1]} iterations" if over and int(over[1]) else ""


def _range(values: Iterable[str]) -> str:
    """The first and the last of values in order, as "32 to 512"; a single one as it is."""
    every = list(values)
    return every[0] if len(every) == 1 else f"{every[0]} to {every[-1]}"


# What an arm is: as AT or CAT, but for what is said.
ARMS = {
    "AT": "adversarial training: every epoch visits all images in a new random order",
    "CAT": "draws by weight (Eq. 3 and 4, α = 0.5), equally many of each class",
    "balance only": "CAT's draws without weights: random, equally many of each class",
    "weights only": "CAT's draws without balance: by weight, whatever the classes",
    "random subset": "neither weights nor balance: unlike in AT, an image may return at once",
    "inverted weights": "CAT with the opposite weights: easy examples first",
    "alpha 0.25": "CAT with another α; likewise the other values",
    "temperature 1": "CAT with w / 1 in place of w / standard deviation of w; likewise 3",
    "warm-up": "CAT that draws at random in its first iterations",
    "softplus": "CAT that draws in proportion to softplus(w), a positive function of w",
    "clamp": "CAT that draws in proportion to w, or nearly never where w is not positive",
    "rank": "CAT that draws in proportion to the place of w in the order of all",
    "boundary": "CAT that prefers a w close to 0, where the model is unsure",
    "PGD-2": "AT by an attack of two steps",
    "PGD-3": "AT by an attack of three steps; the frontier calls AT itself PGD-10",
    "FGSM-RS": "AT by one step from a random start (Wong et al., ICLR 2020)",
    "N-FGSM": "AT by one step from a noisy start (de Jorge et al., NeurIPS 2022)",
    "free": "AT that updates the model at every step of the attack (Shafahi et al., NeurIPS 2019)",
    "TRADES": "another loss, and an attack on the divergence (Zhang et al., ICML 2019)",
    "MART": "a loss that stresses misread images (Wang et al., ICLR 2020)",
    "CAT + ...": "the same with CAT's draws",
    "remembered": "AT by one step from where the last attack on the same image ended; with its "
    "additions in lesson 09",
}


# the tables of the frontier, the hardest data first
FRONTIERS = (
    "cpu_cifar10_frontier",
    "cpu_mnist_frontier_0.3",
    "cpu_mnist_frontier_0.1",
    "cpu_digits_frontier",
)
FRONTIER = one_line("""
    This asks beyond the paper: with which way of training does a number of passes buy the most
    robust accuracy at the end? "Remembered" begins one step where the last attack on the same
    image ended, which needs a byte of memory a pixel; three additions use CAT's weights. Every way
    was tuned by as many random settings, at one budget, judged on held-out training images, and the
    rival in the sentences is the one that ends highest at the largest budget that the most ways
    were given. The columns are budgets;
    the checks of a guard against catastrophic overfitting (the sudden loss of robustness to which
    few-step attacks are prone) come on top of them and count in the ratios. Lesson 09 explains it.
""")


AUDIT = one_line("""
    Is a printed robust accuracy reached within the printed iterations? What decides is the median
    over seeds of the best robust accuracy that a run had until then, on test images; beside it
    stand the same on its own training batches, and the clean accuracy at that evaluation, median
    over seeds: where the two hardly differ, the attack of this reading hardly does anything; where
    it is near 10 %, the model had not learned yet. The readings: "raw gradient" is Eq. 2 as
    printed, without the sign, in training and in judging; "raw gradient in training" in training
    alone, and judged with the sign; "of the batch's mean" takes the gradient of the mean loss of a
    batch, which is as many times smaller as the batch has images; "normalised epsilon" is ε in
    units of the pixels' standard deviation; "half epsilon" is half of ε; "random noise" trains on
    noise of that size and is judged by the gradient of the batch's mean. AT and CAT alone are as
    everywhere on this page. The last two columns: how far the reading's attack moves a pixel on
    average, in units of ε, and the robust accuracy under signed PGD-20 at full ε.
""")


def _of(profile: str) -> list[Piece]:
    return [piece for piece in all_pieces() if piece.profile == profile]


def _section(title: str, names, make, tables: Tables, about: str = "") -> dict:
    """A section of the claims page: a table of Markdown for every table of the study there is."""
    parts = []
    for name in names:
        if name in tables:
            rows = markdown.table(make(tables[name], piece_of(name)))
            parts.append({"name": name, "label": label(name), "table": rows, "said": []})
    return {"title": title, "about": about, "parts": parts}


def frontiers(tables: Tables) -> dict:
    """The section of the claims page on what each way of training reaches for its passes."""
    parts = []
    for piece in all_pieces():
        table = tables.get(piece.table)
        if piece.kind != "frontier" or table is None or frontier.OURS not in set(table.arm):
            continue
        _, trial = piece.trials[0]
        dataset = NAMES.get(trial.dataset, trial.dataset)
        draws = piece_of(f"{piece.profile}_{piece.options['chosen']}").options["draws"]
        parts.append(
            {
                "name": piece.table,
                "label": f"{dataset}, {network(trial)}, ε = {radius_of(trial)}, "
                f"{table.seed.nunique()} seeds, at the end {_noted(table, 'final')}, "
                f"the best of {draws} random settings each",
                "table": markdown.table(frontier_rows(table)),
                "said": frontier.sentences(table),
            }
        )
    return {
        "title": "The frontier: the most robustness for a number of passes",
        "about": FRONTIER,
        "parts": parts,
    }


def frontier_rows(table: pd.DataFrame) -> pd.DataFrame:
    """A row an arm: its robust accuracy with each budget; what an addition to the memory brings."""
    found = frontier.by_budget(table)
    runs = table.groupby(["arm", "budget"]).seed.nunique()
    compared = frontier.compared_budget(table)
    gaps = {row.arm: row.gap for row in frontier.ablation(table).itertuples()}
    rows = []
    for arm, own in found.groupby("arm", sort=False):
        row = {"arm": arm}
        for at in own.itertuples():
            text = f"{100 * at.mean:.1f} % [{100 * at.low:.1f}, {100 * at.high:.1f}]"
            begun = runs[arm, at.budget]
            if at.seeds < begun:
                text += f" ({at.seeds} of {begun} seeds; the others diverged)"
            row[f"{at.budget:,} passes"] = text
        difference = points(gaps[arm]) if arm in gaps else ""
        row[f"{compared:,} passes: difference to `remembered`"] = difference
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def points(estimate: Estimate) -> str:
    """A difference with its interval and p."""
    return in_words("points", estimate)


def times(estimate: Estimate) -> str:
    """A ratio with its interval and p."""
    return in_words("ratio", estimate)


def controls(records: pd.DataFrame, piece: Piece) -> pd.DataFrame:
    """What is left of CAT when a part is taken away or turned round."""
    level = highest_level(records, piece)
    last = ends(records)
    failed = did_not_learn(last)
    rows = []
    for arm in dict.fromkeys(records.arm):
        mine = last.loc[arm]
        gap = ""
        speed = ""
        if arm != "AT":
            gap = points(difference(mine.robust_accuracy, last.loc["AT"].robust_accuracy))
        if arm != "AT" and level is not None:
            row = speed_table(records, [level], arm=arm).iloc[0]
            speed = times(estimate_of(row))
            if not all_reached(row, arm=arm):
                speed = f"— ({row[f'{arm} reached']} seeds)"
        rows.append(
            {
                "arm": arm,
                "seeds": len(mine),
                "did not learn": failed[arm],
                "robust accuracy at the end": percent(mine.robust_accuracy),
                "difference to AT": gap,
                f"AT / arm, iterations to {100 * (level or 0):g} %": speed,
                "training images seen": percent(mine.coverage),
            }
        )
    return pd.DataFrame(rows)


def highest_level(records: pd.DataFrame, piece: Piece) -> float | None:
    """The highest level of robust accuracy that AT reached on every seed."""
    at = records[records.arm == "AT"]
    reached = [level for level in levels_of(piece) if costs(at, level).iteration.notna().all()]
    return max(reached, default=None)


def cheap_rivals(records: pd.DataFrame, piece: Piece) -> pd.DataFrame:
    """Cheap attacks: what a run costs, where it ends, and how soon it reaches the levels."""
    last = ends(records)
    metric = final_metric(last)
    failed = did_not_learn(last)
    rows = []
    for arm in dict.fromkeys(records.arm):
        mine = last.loc[arm]
        gap = ""
        speed = ""
        levels = ""
        if arm != "AT":
            gap = points(difference(mine[metric], last.loc["AT", metric]))
            one = overall(records, levels_of(piece), cost="passes", arm=arm)
            speed = times(one.ratio)
            levels = ", ".join(f"{100 * level:g}" for level in one.levels)
        rows.append(
            {
                "arm": arm,
                "seeds": len(mine),
                "did not learn": failed[arm],
                "passes in all": f"{mine.passes.mean():,.0f}",
                "robust accuracy at the end": percent(mine[metric]),
                "difference to AT": gap,
                "AT / arm, passes": speed,
                "at levels that every run of both reached, %": levels,
            }
        )
    return pd.DataFrame(rows)


def audit_table(records: pd.DataFrame, piece: Piece) -> pd.DataFrame:
    """:func:`catlib.lab.compare.audit` for reading: a row a reading, a column a printed level."""
    rows: dict[str, dict] = {}
    added: dict[str, dict] = {}  # columns that come last
    for _, row in claims.audit(records, piece).iterrows():
        on_test = yes_or_no(row["reached on test"], row.test, row.clean)
        in_training = yes_or_no(row["reached in training"], row.training)
        cells = rows.setdefault(row.arm, {"reading": row.arm})
        cells[f"{row.level} %"] = f"test: {on_test}<br>training: {in_training}"
        if "full_strength" in row:
            ends = added.setdefault(row.arm, {})
            ends["a pixel moves, in ε"] = f"{row.moved:.2g}"
            ends["PGD-20 at full ε"] = f"{100 * row.full_strength:.1f} %"
    return pd.DataFrame([cells | added.get(arm, {}) for arm, cells in rows.items()])


def yes_or_no(reached: bool, share: float, clean: float | None = None) -> str:
    """Whether a level was reached, what decides, and the clean accuracy beside it."""
    word = "yes" if reached else "no"
    beside = "" if clean is None else f"; clean {100 * clean:.1f} %"
    return f"{word} ({100 * share:.1f} %{beside})"


# ------------------------------------------------------------------ Tables 1 and 2


def printed_tables(tables: Tables) -> str:
    """docs/tables.md: Tables 1 and 2 of the paper beside ours, as they stand on the claims page."""
    rows = [
        {name: text.replace("](#", f"]({CLAIMS_PAGE}#") for name, text in row.items() if name}
        for claim, row in numbered_rows(tables)
        if claim.measure in ("cell", "competitive")
    ]
    return render(
        "tables.md.j2",
        command=COMMAND,
        page=CLAIMS_PAGE,
        cells=markdown.table(pd.DataFrame(rows)),
    )


# ------------------------------------------------------------------ files


def pages(results: Path, readme: str) -> dict[Path, str]:
    """Every generated text by its file, from the tables in ``results``.

    Args:
        readme: the text of the project's README; the parts between its markers are renewed.
    """
    tables = load_tables(results)
    readme = markdown.between(readme, "found", front(tables))
    return {
        results / "summary.csv": _csv(
            summary(tables),
            "Ratios baseline / arm of what a level cost, paired by seed; t intervals, sign-flip p",
        ),
        results / "final.csv": _csv(
            final(tables),
            "Where each arm stood at the last iteration, and its difference to its baseline",
        ),
        results / "README.md": claims_page(tables),
        DOCS / "tables.md": printed_tables(tables),
        README: readme,
    }


def _csv(table: pd.DataFrame, about: str) -> str:
    text = table.to_csv(index=False, lineterminator="\n")
    return f"# {about}\n# command: {COMMAND}\n{text}"


def write_pages(results: Path = RESULTS) -> None:
    """Write the summaries, the claims page and the README's parts; and the README's race."""
    for path, text in pages(results, README.read_text(encoding="utf-8")).items():
        write_whole(path, text.encode())
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    race = measured("cpu_mnist_tables", results)
    if race is not None and results == RESULTS:
        use_style()
        axes = curves(race[race.arm.isin(COLOURS)])
        axes[0].figure.savefig(DOCS / "mnist_race.png", dpi=110)

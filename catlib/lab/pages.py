"""What is said about the study: the claims page, Tables 1 and 2, and a part of the README.

Every text is generated from the tables in data/results; :mod:`catlib.lab.claims` and
:mod:`catlib.lab.compare` give the numbers. The words stand in three places: the sentences in
templates/*.j2, the claims in claims.toml, and the remark in brackets after a verdict where the
verdict is given, in claims.py and compare.py. Headers of tables, and the names of what a table was
measured on, stand here.
"""

from functools import lru_cache
from pathlib import Path

import jinja2
import pandas as pd

from ..files import write_whole
from . import claims, markdown
from .claims import Answer, Claim, final_metric, first_there, levels_of, tables_of
from .compare import (
    METRICS,
    all_reached,
    costs,
    did_not_learn,
    difference,
    ends,
    estimate_of,
    faster_overall,
    how_much_faster,
    measured,
    overall,
    percent,
    readable,
    speed_table,
)
from .figures import COLOURS, curves, use_style
from .paper import NAMES, paper_table
from .paths import DOCS, README, RESULTS, ROOT
from .study.plan import Piece
from .summaries import Tables, all_pieces, final, is_complete, load_tables, piece_of, summary

TEMPLATES = Path(__file__).with_name("templates")
COMMAND = "catlib pages"
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
    radius = f"{trial.epsilon:g}"
    if trial.dataset == "cifar10":
        radius = f"{255 * trial.epsilon:.0f}/255"
    return f"growing ε = {radius}" if trial.epsilon_warm_up else f"ε = {radius}"


def label(table: str) -> str:
    """What a table was measured on, in a few words."""
    piece = piece_of(table)
    _, trial = piece.trials[0]
    model = trial.model
    if trial.width is not None:
        model = f"slim {model} of width {trial.width}"
    words = [model, epsilon_of(piece)]
    if trial.train_size:
        words.append(f"{trial.train_size:,} training images")
    return ", ".join(words)


def title(table: str) -> str:
    """The dataset of a table, and what it was measured on, for readers who see no file's name."""
    dataset = piece_of(table).trials[0][1].dataset
    return f"{NAMES.get(dataset, dataset)}, {label(table)}"


# ------------------------------------------------------------------ claims


def ours(claim: Claim, answer: Answer) -> str:
    """What was measured for a claim: the macro of its measure, filled with the answer's numbers."""
    macro = getattr(templates().get_template("measures.j2").module, claim.measure)
    return one_line(macro(answer.numbers))


def claim_row(claim: Claim, tables: Tables) -> dict[str, str]:
    """A claim with what every table says to it, and what is open."""
    answers = claims.answers(claim, tables)
    found = [f"{label(name)}: {ours(claim, answer)}" for name, answer in answers.items()]
    verdicts = [f"{label(name)}: {answer.verdict}" for name, answer in answers.items()]
    if len(answers) == 1:
        verdicts = [str(answer.verdict) for answer in answers.values()]
    piece = claims.open_piece(claim, tables)
    if piece:
        model = " with ResNet-18" if piece.profile == "paper" else ""
        verdicts.append(f"**not tested**{model}: [`{piece.table}`](#open)")
    return {
        "claim": claim.text,
        "paper": claim.paper,
        "ours": "<br>".join(found) or "—",
        "verdict": "<br>".join(verdicts),
    }


def front(tables: Tables) -> str:
    """What was found, in three sentences for the README, below a comment that names their file."""
    return render(
        "front.md.j2",
        command=COMMAND,
        speed=_speed(first_there("mnist", tables), tables),
        rival=_rival(tables),
        three=_three_times(tables),
    )


def findings(tables: Tables) -> str:
    """What was asked, what was found and how sure it is, from the best tables that are there."""
    printed = paper_table("mnist")["AT/CAT"]
    return render(
        "findings.md.j2",
        printed={
            "low": f"{100 * (printed.min() - 1):.0f}",
            "high": f"{100 * (printed.max() - 1):.0f}",
        },
        speed=_speed(first_there("mnist", tables), tables),
        strong=_speed(first_there("mnist_strong", tables), tables),
        parts=_parts(first_there("controls", tables), tables),
        three=_three_times(tables),
        rival=_rival(tables),
        readings=_readings(tables),
    )


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
    return {
        "label": label(name),
        "epsilon": epsilon_of(piece),
        "ratio": one.ratio,
        "verdict": faster_overall(one),
        "large": how_much_faster(one.ratio),
        "gap": gap,
    }


def _parts(name: str | None, tables: Tables) -> dict | None:
    """What class balance and weights each change at the end."""
    if name is None:
        return None
    last = ends(tables[name]).robust_accuracy
    return {
        "label": label(name),
        "balance": difference(last["balance only"], last["AT"]),
        "weights": difference(last["CAT"], last["balance only"]),
    }


def _three_times(tables: Tables) -> dict | None:
    """The answer to the claim of 3 times on CIFAR-10."""
    claim = claims.all_claims()[0]
    best = claim.tables[0]
    if best not in tables:
        return None
    answer = claims.answer(claim, tables[best], best)
    return {"verdict": str(answer.verdict), "ours": ours(claim, answer)}


def _rival(tables: Tables) -> dict | None:
    """N-FGSM with uniform draws on MNIST: how much sooner than AT and CAT, its end beside AT's."""
    name = tables_of("cheap")[1]
    if name not in tables:
        return None
    piece = piece_of(name)
    last = ends(tables[name])
    metric = final_metric(last)
    _, trial = piece.trials[0]
    passes = last.passes / last.iteration / trial.sampling_number
    sooner = {
        baseline: overall(
            tables[name], levels_of(piece), cost="passes", baseline=baseline, arm="N-FGSM"
        ).ratio
        for baseline in ("AT", "CAT")
    }
    return {
        "passes": sooner["CAT"],
        "passes_of_at": sooner["AT"],
        "cost": f"{passes['N-FGSM'].mean():.0f}",
        "cat_cost": f"{passes['CAT'].mean():.0f}",
        "gap": difference(last.loc["N-FGSM", metric], last.loc["AT", metric]),
    }


def _readings(tables: Tables) -> dict | None:
    """Which readings of the paper reach its highest robust accuracy on MNIST."""
    name = tables_of("mnist_audit")[1]
    if name not in tables:
        return None
    return claims.printed_reached(tables[name], piece_of(name)).numbers


# ------------------------------------------------------------------ the claims page


def claims_page(tables: Tables) -> str:
    """data/results/README.md."""
    rows = [claim_row(claim, tables) for claim in claims.all_claims()]
    numbered = [{"": number} | row for number, row in enumerate(rows, 1)]
    audits = ("mnist_audit", "mnist_audit_weaker", "cifar10_audit")
    audited = tuple(table for name in audits for table in tables_of(name))
    sections = [
        _section("The controls", tables_of("controls"), controls, tables, CONTROLS),
        _section("The cheap rivals", tables_of("cheap"), cheap_rivals, tables),
        _section("The audit", audited, audit_table, tables, AUDIT),
    ]
    return render(
        "results_readme.md.j2",
        command=COMMAND,
        coverage=COVERAGE,
        findings=findings(tables),
        claims=markdown.table(pd.DataFrame(numbered)),
        sections=[section for section in sections if section["parts"]],
        open=[
            piece
            for piece in [*_of("paper"), *_of("cpu")]
            if piece.kind != "notebook" and not is_complete(piece, tables)
        ],
    )


CONTROLS = one_line("""
    Each control is CAT with one part taken away or changed. `balance only` draws at random,
    equally many of each class; `weights only` draws by weight, whatever the classes;
    `random subset` does neither. `inverted weights` prefers the easy examples, `warm-up` draws at
    random at first. The last four replace w in the draw: `softplus` and `clamp` by positive
    functions of it, `rank` by its place in the order, and `boundary` prefers a w close to 0, where
    the model is unsure.
""")


AUDIT = one_line("""
    Is a printed robust accuracy reached within the printed iterations, on test images; and on
    training batches? In brackets what decides: the median over seeds of the best robust accuracy
    that a run had until then. Beside it stands the clean accuracy at that evaluation, median over
    seeds: where the two hardly differ, the attack of this reading hardly does anything. So say how
    far that attack moves a pixel on the mean, and the robust accuracy under signed PGD-20 with the
    whole ε, both at the end of a run, where they were measured.
""")


def _of(profile: str) -> list[Piece]:
    return [piece for piece in all_pieces() if piece.profile == profile]


def _section(title: str, names, make, tables: Tables, about: str = "") -> dict:
    """A section of the claims page: a table of Markdown for every table of the study there is."""
    parts = []
    for name in names:
        if name in tables:
            rows = make(tables[name], piece_of(name))
            parts.append({"name": name, "label": label(name), "table": markdown.table(rows)})
    return {"title": title, "about": about, "parts": parts}


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
            gap = difference(mine.robust_accuracy, last.loc["AT"].robust_accuracy).as_points()
        if arm != "AT" and level is not None:
            row = speed_table(records, [level], arm=arm).iloc[0]
            speed = estimate_of(row).as_ratio()
            if not all_reached(row, arm=arm):
                speed = f"— ({row[f'{arm} reached']} seeds)"
        rows.append(
            {
                "arm": arm,
                "seeds": len(mine),
                "did not learn": failed[arm],
                "robust accuracy at the end": percent(mine.robust_accuracy),
                "difference to AT, points": gap,
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
            gap = difference(mine[metric], last.loc["AT", metric]).as_points()
            one = overall(records, levels_of(piece), cost="passes", arm=arm)
            speed = one.ratio.as_ratio()
            levels = ", ".join(f"{100 * level:g}" for level in one.levels)
        rows.append(
            {
                "arm": arm,
                "seeds": len(mine),
                "did not learn": failed[arm],
                "passes in all": f"{mine.passes.mean():,.0f}",
                "robust accuracy at the end": percent(mine[metric]),
                "difference to AT, points": gap,
                "AT / arm, passes": speed,
                "at levels that every run of both reached, %": levels,
            }
        )
    return pd.DataFrame(rows)


def audit_table(records: pd.DataFrame, piece: Piece) -> pd.DataFrame:
    """:func:`catlib.lab.compare.audit` for reading: a row a reading, a column a printed level."""
    rows: dict[str, dict] = {}
    for _, row in claims.audit(records, piece).iterrows():
        on_test = yes_or_no(row["reached on test"], row.test, row.clean)
        in_training = yes_or_no(row["reached in training"], row.training)
        cells = rows.setdefault(row.arm, {"reading": row.arm})
        cells[f"{row.level} %"] = f"{on_test}; {in_training}"
        if "full_strength" in row:
            cells["a pixel moves, in ε"] = f"{row.moved:.2g}"
            cells["PGD-20 at full ε"] = f"{100 * row.full_strength:.1f} %"
    return pd.DataFrame(rows.values())


def yes_or_no(reached: bool, share: float, clean: float | None = None) -> str:
    """Whether a level was reached, what decides, and the clean accuracy beside it."""
    word = "yes" if reached else "no"
    beside = "" if clean is None else f"; clean {100 * clean:.1f} %"
    return f"{word} ({100 * share:.1f} %{beside})"


# ------------------------------------------------------------------ Tables 1 and 2


def printed_tables(tables: Tables) -> str:
    """docs/tables.md: Tables 1 and 2 of the paper beside ours."""
    name = first_there("mnist", tables)
    if name is None:
        return render("tables.md.j2", label=None, command=COMMAND)
    rows = []
    for claim in claims.cell_claims():
        best = next((table for table in claim.tables if table in tables), None)
        row = {"": claim.text, "paper": claim.paper}
        if best is None:
            row |= {"ours": "—", "verdict": "not tested: `make study PROFILE=paper`, on a GPU"}
        else:
            row |= _cell_of_page(claim, tables[best], best)
        rows.append(row)
    defence = next(claim for claim in claims.all_claims() if claim.measure == "competitive")
    rows.append(
        {"": "Competitive defence effect (abstract)", "paper": defence.paper}
        | _cell_of_page(defence, tables[name], name)
    )
    strong = [table for table in tables_of("mnist_strong") if table in tables]
    return render(
        "tables.md.j2",
        command=COMMAND,
        label=label(name),
        cells=markdown.table(pd.DataFrame(rows)),
        strong=[
            {"label": label(table), "table": markdown.table(strong_attack(tables[table], table))}
            for table in strong
        ],
    )


def _cell_of_page(claim: Claim, records: pd.DataFrame, table: str) -> dict[str, str]:
    answer = claims.answer(claim, records, table)
    return {"ours": ours(claim, answer), "verdict": str(answer.verdict)}


def strong_attack(records: pd.DataFrame, table: str) -> pd.DataFrame:
    """The iterations to every level and the robust accuracy in the end, where epsilon is large."""
    rows = []
    for metric, words in METRICS.items():
        speed = speed_table(records, levels_of(piece_of(table), metric), metric)
        for level, row in readable(speed).iterrows():
            rows.append(
                {
                    "iterations to": f"{level} % {words}",
                    "AT": row["AT"],
                    "CAT": row["CAT"],
                    "AT / CAT": row["AT/CAT"],
                }
            )
    last = ends(records).final_robust_accuracy
    rows.append(
        {
            "iterations to": "robust accuracy at the end, PGD-20 with restarts",
            "AT": percent(last["AT"]),
            "CAT": percent(last["CAT"]),
            "AT / CAT": "",
        }
    )
    return pd.DataFrame(rows)


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

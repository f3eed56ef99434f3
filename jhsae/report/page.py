"""Fills the template: everything that it shows is looked up or worded here, and everything is escaped there."""

import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jhsae.files.escaping import script_hash
from jhsae.report import figures, finding, judging, overview
from jhsae.report import truth as truths
from jhsae.report.cards import groups
from jhsae.report.columns import COLUMNS, Cell, cell, everything
from jhsae.report.formats import significant
from jhsae.report.reading import Json, Run, at

MARKER = "jhsae-report"
SCRIPT = """
// Convenience alone: print everything that is folded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
"""
FOLDER = Path(__file__).parent
NOT_MEASURED = {
    "absorption": "feature absorption and splitting",
    "probe": "sparse probing",
    "steer": "the effect of steering with a feature",
    "interp": "automatic or human rating of interpretability",
}
VALIDATION = {
    "orthogonality": "|angle − 90°| between a child's delta and its parent, in degrees; 0 is orthogonal. As "
    "estimated, the parent has seen the child's tokens, which alone brings the angle near 90°; “unseen” is the angle "
    "to the parent estimated without them. Nulls: another parent; tokens dealt out to the concepts anew (“shuffled”).",
    "projection": "Projection of tokens on their concept's vector, as a fraction of its length; 1 is expected for "
    "tokens of the concept and 0 for other words. Held-out words were not used for the vector, nor were those of an "
    "unseen child; AUC is the chance that a held-out token exceeds another word. Medians.",
    "hierarchy": "Cosine of a category's vector less its parent's with its parent's vector, over all categories of the "
    "ontology; 0 is orthogonal. With fewer tokens than dimensions it is near 0 for shuffled tokens too, because the "
    "parent has seen the tokens of its child: only “unseen”, a parent estimated without them, can differ from it.",
    "consecutive": "Cosine of two consecutive differences, category less parent and parent less grandparent; 0 is "
    "orthogonal. The same caution holds.",
    "simplex": "Are the differences of k siblings to their parent the corners of a simplex? Random vectors are, where "
    "there are more dimensions than siblings: only a difference from the null says something.",
    "interventions": "Change of a logit difference when the contrast of two sibling concepts is added to the residual "
    "stream at the teacher's layer, at words that the contrast was not made of; the null is a random direction of the "
    "same norm.",
    "interventions_last_layer": "The same after the last block.",
}


def render(config: Json, runs: list[Run], teacher: Json | None, browsers: dict[str, str] | None = None) -> str:
    """The page as HTML.

    Args:
        config: that of the page.
        runs: in the order of the rows.
        teacher: its teacher.json; None for no section on it.
        browsers: the address of a run's feature browser, by the run's name.
    """
    table = judging.matches(runs)
    rows = [(run, [cell(column, run) for column in COLUMNS]) for run in runs]
    shown = {
        "marker": MARKER,
        "script": Markup(SCRIPT),
        "script_hash": script_hash(SCRIPT),
        "marked": json.dumps([run.name for run in runs]),
        "style": Markup((FOLDER / "style.css").read_text()),
        "config": config,
        "runs": runs,
        "finding": finding.sentences(runs),
        "lead_figure": finding.figure(runs),
        "browsers": browsers or {},
        "paragraph": overview.paragraph(runs),
        "cautions": judging.cautions(runs, table),
        "matches": table,
        "columns": COLUMNS,
        "rows": rows,
        "reasons": list(dict.fromkeys(one.reason for _, cells in rows for one in cells if one.reason)),
        "everything": everything(runs),
        "losses": losses(runs),
        "not_measured": not_measured(runs),
        "general": figures.general(runs),
        "terms": figures.terms(runs),
        "optimiser": figures.optimiser(runs),
        "normalisers": [(run.name, judging.part(at(run.config, "data.normalize")) or "unknown") for run in runs],
        "windows": [(run.name, at(run.config, "dead_window") or "unknown") for run in runs],
        "densities": figures.densities(runs),
        "angles": figures.angles(runs),
        "asked_for": figures.asked_for(runs),
        "cards": [(run, groups(run)) for run in runs],
        "kinds": _kinds(runs),
        "coherent": any(entry.get("chosen") == "coherence" for run in runs for entry in run.contexts or []),
        "truth": truths.section(runs),
        "level_head": truths.LEVEL_HEAD,
        "teacher": teacher,
        "teacher_figure": figures.teacher(teacher.get("validation") or {}) if teacher else None,
        "teacher_tables": tables(teacher.get("validation") or {}) if teacher else [],
        "stores": overview.stores(runs),
        "versions": overview.versions(runs),
        "commands": config["commands"] or overview.commands(runs),
    }
    return environment().get_template("template.html.jinja").render(shown)


def _kinds(runs: list[Run]) -> str:
    """The features of the top level of these runs, in words."""
    if len({run.hierarchical for run in runs}) > 1:
        return "experts (or flat features)"
    return "experts" if runs[0].hierarchical else "features"


def environment() -> Environment:
    """Escapes everything; a name that the template does not find is an error."""
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100),
        "svg": Markup,
        "commit": judging.short_commit,
        "text": overview.text,
        "number": significant,
        "listed": judging.listed,
    }
    return made


def losses(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """(model, zeros) cross-entropy and the runs measured with them, for the caption of the table."""
    found: dict[str, list[str]] = {}
    for run in runs:
        model, zero = run.metrics.get("ce_model"), run.metrics.get("ce_zero")
        if model is not None and zero is not None:
            found.setdefault(f"{model:.3f} by itself and {zero:.3f} with zeros", []).append(run.name)
    return list(found.items())


def not_measured(runs: list[Run]) -> list[str]:
    """What a reader may miss, and will not find in results.jsonl."""
    keys = [key for run in runs for key in run.metrics]
    missing = [words for stem, words in NOT_MEASURED.items() if not any(stem in key for key in keys)]
    return ["the spread over seeds", "other sparsities (L0) than these", *missing]


def tables(validation: Json) -> list[tuple[str, str, list[str], list[tuple[str, list[Cell]]]]]:
    """Every section of a validation as a table: (name, meaning, head, rows of cells)."""
    found = []
    for name, section in validation.items():
        rows = section if isinstance(section, dict) else {"value": section}
        rows = {key: row if isinstance(row, dict) else {"value": row} for key, row in rows.items()}
        head = list(dict.fromkeys(key for row in rows.values() for key in row))
        body = [(_words(key), [_cell(row.get(column)) for column in head]) for key, row in rows.items()]
        found.append((name, VALIDATION.get(name, ""), [_words(column) for column in head], body))
    return found


def _cell(value: Any) -> Cell:
    if value is None:
        return Cell("", "n/a", reason="not in teacher.json")
    return Cell("", significant(value) if isinstance(value, int | float) else str(value), repr(value))


def _words(key: str) -> str:
    return key.replace("_", " ")

"""The columns of the tables: numbers of a row of results.jsonl."""

from collections.abc import Callable
from typing import Any

from jobs import Row

Value = Callable[[Row], Any]


def metric(name: str) -> Value:
    """A number of a row's metrics."""
    return lambda row: row["metrics"].get(name)


def truth(*path: str | int) -> Value:
    """A number of what was recovered of a world; None where an SAE has no such part."""

    def value(row: Row) -> Any:
        found = row["truth"]
        for name in path:
            if found is None or (isinstance(name, int) and name >= len(found)):
                return None
            found = found[name]
        return found

    return value


def of_tree(level: int, name: str = "matched_f1") -> Value:
    """F1 of a level of the truth by the latents of that level of the SAE's tree."""
    own = truth("levels", level, name)
    return lambda row: None if row["truth"]["edges"] is None else own(row)


COSTS: dict[str, Value] = {
    "parameters": metric("parameters"),
    "encoder MACs": metric("encoder_macs"),
    "without tables": metric("encoder_macs_without_tables"),
    "step, s": metric("step_seconds"),
}
QUALITY: dict[str, Value] = {
    "L0": metric("l0"),
    "EV": metric("ev_r2"),
    "CE recovered": metric("ce_recovered"),
    "dead": metric("dead"),
    "dead, training rows": metric("dead_in_training_rows"),
    "sibling cosine": metric("sibling_cosine"),
}
WORLDS: dict[str, Value] = {
    "L0": metric("l0"),
    "EV": metric("ev_r2"),
    "MCC": metric("mcc"),
    "roots F1": of_tree(0),
    "level 1 F1": of_tree(1),
    "level 2 F1": of_tree(2),
    "level 3 F1": of_tree(3),
    "roots, F1 of latents": of_tree(0, "f1"),
    "roots": of_tree(0, "latents"),
    "edges": truth("edges", "share"),
    "tree": truth("tree", "share"),
    "roots, any latent": truth("levels", 0, "feature_f1"),
    "level 1, any latent": truth("levels", 1, "feature_f1"),
    "absorption, hard": truth("absorption", "hard"),
    "soft": truth("absorption", "soft"),
}

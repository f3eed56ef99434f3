"""Are the rows of the table like for like, and what should keep a reader from trusting them?

Everything is looked up in the files: a property that was not recorded counts as unknown, never as equal.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from jhsae.report.formats import count, one
from jhsae.report.reading import Json, Run, at


class Match(NamedTuple):
    """One property of every run, as text, and whether they agree; `within` is the tolerance of a number."""

    name: str
    values: list[str]
    verdict: str

    @property
    def same(self) -> bool:
        """False also where the property is unknown."""
        return self.verdict.startswith(("same", "within"))


def tokens_seen(run: Run) -> int | None:
    """Training tokens up to the last logged step."""
    batch = at(run.config, "data.batch")
    return batch * run.steps[-1]["step"] if batch and run.steps else None


def matches(runs: list[Run]) -> list[Match]:
    """What decides whether two rows may be compared."""
    return [
        _equal("training store (sha256)", runs, lambda r: at(r.about, "store.sha256"), lambda s: s[:12]),
        _equal("held-out store (sha256)", runs, lambda r: r.evaluated_on.sha256, lambda s: s[:12]),
        _equal("held-out tokens", runs, lambda r: r.metrics.get("rows"), count),
        _equal("language model spliced into", runs, lambda r: at(r.result, "evaluation.lm")),
        _equal("training tokens", runs, tokens_seen, count),
        _equal("batch (tokens)", runs, lambda r: at(r.config, "data.batch"), count),
        _equal("seed", runs, lambda r: at(r.config, "seed")),
        _equal("input normaliser", runs, lambda r: part(at(r.config, "data.normalize"))),
        _close("L0", runs, lambda r: r.metrics.get("l0"), 0.02, one),
        _close("parameters", runs, lambda r: r.metrics.get("parameters"), 0.05, count),
        _equal("code (commit)", runs, lambda r: r.result["commit"], lambda c: short_commit(c)),
        _equal("device", runs, device),
    ]


def cautions(runs: list[Run], table: list[Match]) -> list[str]:
    """Reasons not to trust the numbers, from the general to the particular."""
    seeds = {at(run.config, "seed") for run in runs}
    found = [
        f"Every row is one training run ({'one seed' if len(seeds) == 1 else f'{len(seeds)} seeds'} in all). How much "
        "a row would move with another seed was not measured here, so a small difference means nothing."
    ]
    different = [match.name for match in table if not match.same and match.name not in ("code (commit)", "device")]
    if len(runs) > 1 and different:
        found.append(
            f"The runs are not matched in {listed(different)} (see the table of what is matched): a difference between "
            "two rows cannot be put down to the architecture alone."
        )
    unrecorded = [r.name for r in runs if not r.result["commit"] or r.result["commit"].endswith("-dirty")]
    if unrecorded:
        found.append(
            f"No commit records the code that trained {listed(unrecorded)} (no repository, or uncommitted changes): "
            "it may not be reproducible."
        )
    found += [text for run in runs for text in _doubts(run)]
    devices = next(match for match in table if match.name == "device")
    if len(runs) > 1 and not devices.same:
        found.append("The runs did not share a device, so their times are not comparable.")
    return found


def _doubts(run: Run) -> Iterable[str]:
    metrics = run.metrics
    if run.evaluated_on.is_known_as(run.about["store"]["sha256"]):
        yield f"{run.name} was evaluated on the very activations that it was trained on: nothing of it is held out."
    if run.trained_on.manifest and not run.trained_on.is_known_as(run.about["store"]["sha256"]):
        yield f"The store at {run.trained_on.path} is no longer the one that {run.name} was trained on."
    if (metrics.get("dead") or 0) > 0.5:
        yield (
            f"{100 * metrics['dead']:.0f}% of the features of {run.name} never fired on the held-out tokens: "
            "its parameters are not all at work."
        )
    own, null = metrics.get("parent_child_off_90"), metrics.get("parent_child_off_90_null")
    if own is not None and null is not None and own >= null:
        yield (
            f"In {run.name} atoms are no more orthogonal to their own expert than to other experts "
            f"({own:.2f}° against {null:.2f}° off a right angle, causal metric)."
        )
    seconds = [row["seconds"] for row in run.timing]
    if any(later < earlier for earlier, later in pairwise(seconds)):
        yield f"The training of {run.name} was interrupted and resumed; its time counts the last part alone."


def device(run: Run) -> str | None:
    """Kind and number of devices that a run was trained on."""
    kind, number = at(run.about, "device_kind"), at(run.about, "device_count")
    return f"{number} × {kind}" if kind and number else None


def part(slot: Any) -> str | None:
    """A slot as one reads it: the class, and its arguments."""
    if not isinstance(slot, dict) or "_target_" not in slot:
        return None
    arguments = ", ".join(f"{key}={part(value) or value}" for key, value in slot.items() if key != "_target_")
    return class_name(slot) + (f"({arguments})" if arguments else "")


def class_name(slot: Json) -> str:
    """The class of a slot, without its package."""
    return slot["_target_"].rsplit(".", 1)[-1]


def short_commit(commit: str) -> str:
    """The first twelve digits; a mark of uncommitted changes stays."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _equal(name: str, runs: list[Run], get: Callable[[Run], Any], show: Callable[[Any], str] = str) -> Match:
    values = [get(run) for run in runs]
    verdict = "unknown" if None in values else "same" if len(set(values)) == 1 else "differs"
    return Match(name, ["unknown" if value is None else show(value) for value in values], verdict)


def _close(name: str, runs: list[Run], get: Callable[[Run], Any], within: float, show: Callable[[Any], str]) -> Match:
    values = [get(run) for run in runs]
    if None in values:
        return _equal(name, runs, get, show)
    low, high = min(values), max(values)
    if low <= 0:  # no ratio to something that is 0
        return _equal(name, runs, get, show)
    spread = high / low - 1
    verdict = "same" if spread == 0 else f"within {within:.0%}" if spread <= within else f"differs by {spread:.0%}"
    return Match(name, [show(value) for value in values], verdict)

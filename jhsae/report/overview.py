"""Sentences on the runs of a report and the commands that repeat them, from the files alone."""

import shlex
from typing import Any

from jhsae.files.escaping import visible
from jhsae.report.formats import count
from jhsae.report.judging import listed, short_commit, tokens_seen
from jhsae.report.reading import Json, Run, Source, at

WORLD = "jhsae.worlds.WorldActivations"


def paragraph(runs: list[Run]) -> str:
    """Which SAEs, on which model, layer and text, trained and evaluated on how much."""
    many = len(runs) > 1
    seen = [tokens for run in runs if (tokens := tokens_seen(run))]
    sentences = [
        f"{len(runs)} sparse autoencoders ({listed([run.name for run in runs])})"
        if many
        else f"One sparse autoencoder ({runs[0].name})",
        f" read {origins(runs)}. ",
        f"{'Each was' if many else 'It was'} trained on {_range(seen)} tokens, drawn from the "
        f"{_texts([(_world(run), run.trained_on) for run in runs])}; the results below were measured on the "
        f"{_texts([(at(run.result, 'evaluation.truth'), run.evaluated_on) for run in runs])}.",
    ]
    spliced = [run for run in runs if at(run.result, "evaluation.lm")]
    sequences = sorted({s for run in spliced if (s := at(run.result, "evaluation.sequences"))})
    if sequences:
        sentences.append(
            f" Cross-entropy was measured on {_range(sequences)} held-out sequences with the reconstruction spliced "
            f"into {listed(sorted({_quoted(at(run.result, 'evaluation.lm')) for run in spliced}))}."
        )
    return "".join(sentences)


def origins(runs: list[Run]) -> str:
    """Model and layer of the activations."""
    found = dict.fromkeys(_origin(_world(run), run.trained_on) for run in runs)
    return listed(list(found))


def stores(runs: list[Run]) -> list[tuple[str, Source]]:
    """Every store once, and what it was used for."""
    found: dict[str, tuple[str, Source]] = {}
    for run in runs:
        found.setdefault(run.trained_on.path, ("training", run.trained_on))
        if run.evaluated_on.path:
            found.setdefault(run.evaluated_on.path, ("evaluation", run.evaluated_on))
    return list(found.values())


def commands(runs: list[Run]) -> list[str]:
    """How to make the same files again; the configs that they read are on the page."""
    commits = dict.fromkeys((run.result["commit"] or "").removesuffix("-dirty") for run in runs)
    lines = [_shell("git checkout", commit) for commit in commits if commit]
    lines += [
        _shell("jhsae harvest CONFIG.yaml", f"out={source.path}")
        for _, source in stores(runs)
        if at(source.manifest, "config")
    ]
    lines += [_shell("jhsae train", f"{run.folder}/config.yaml", f"out={run.folder}-again") for run in runs]
    lines += [_shell("jhsae evaluate CONFIG.yaml", f"run={run.folder}-again") for run in runs]
    return lines


def _shell(command: str, *words: str) -> str:
    """A line for the shell, which takes names from files as they are, whatever is in them."""
    return " ".join([command, *(shlex.quote(visible(word)) for word in words)])


def text(dataset: Json) -> str:
    """A text source as its manifest describes it."""
    facts = {key: value for key, value in dataset.items() if key != "source" and value is not None}
    words = ", ".join(f"{key} {_brief(value)}" for key, value in facts.items())
    return f"{dataset.get('source', 'text')}{f' ({words})' if words else ''}"


def versions(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Package -> version in every run; commit and device first."""
    names = dict.fromkeys(name for run in runs for name in at(run.about, "versions") or {})
    rows = [("commit", [short_commit(run.about["commit"]) if run.about.get("commit") else "none" for run in runs])]
    rows += [(key, [str(at(run.about, key) or "unknown") for run in runs]) for key in ("platform", "device_kind")]
    rows += [(name, [str(at(run.about, "versions").get(name) or "none") for run in runs]) for name in names]
    return rows


def _world(run: Run) -> str | None:
    """The folder of the world that a run was trained on; None for a language model."""
    return at(run.config, "data.live.path") if at(run.config, "data.live._target_") == WORLD else None


def _origin(world: str | None, source: Source) -> str:
    if world:
        return f"activations of the synthetic world {_quoted(world)}"
    if not source.manifest:
        return f"the residual stream of an unknown language model (the store {source.path} has no manifest here)"
    layer = source.manifest["layer"]
    blocks = f"{layer} {'block' if layer == 1 else 'blocks'}"
    return f"the residual stream of the language model {_quoted(source.manifest['model'])} after {blocks}"


def _texts(sources: list[tuple[str | None, Source]]) -> str:
    found = dict.fromkeys(
        f"synthetic world {_quoted(world)}"
        if world
        else f"{count(s.manifest['rows'])} activations of {text(s.manifest['dataset'])}"
        if s.manifest
        else f"activations of a store that has no manifest here ({s.path or 'path not recorded'})"
        for world, s in sources
    )
    return listed(list(found))


def _quoted(name: Any) -> str:
    return f"“{name}”"


def _brief(value: Any) -> str:
    return f"of {len(value)}" if isinstance(value, list | dict) else str(value)


def _range(values: list[int]) -> str:
    if not values:
        return "an unknown number of"
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"

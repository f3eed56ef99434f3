"""``jhsae browse``: every latent of a trained SAE on one HTML page that opens anywhere, offline.

For each latent: how often and how strongly it fires on held-out text, its contexts, the tokens it raises and lowers,
its neighbours; an expert opens to its atoms; typing a word lists the latents that fire on it.
"""

import re
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Annotated, Any, ClassVar

from jhsae import browser
from jhsae import config as cfg
from jhsae.browser.contexts import Window
from jhsae.commands.evaluate import expert_names
from jhsae.commands.last_line import last_line, opened
from jhsae.config.trust import TrustedPackages
from jhsae.data import AbstractNormalizer, Store
from jhsae.errors import UserError
from jhsae.features.origin import check_origin, language_model
from jhsae.files import bounded
from jhsae.files.folders import local_folder, write_whole, writing
from jhsae.ranges import Count, Natural, Words, ranged
from jhsae.sae import AbstractSAE
from jhsae.training.checkpoint import load_sae


@ranged
@dataclass(frozen=True)
class Browse:
    """The SAE to show, the text to show it on, and how much of both."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"trust"})

    run: Annotated[Words, "folder of a finished run (jhsae train) or of a saved SAE"]
    store: Annotated[Words, "activation store of held-out text, same model and layer"]
    lm: Annotated[Words, "language model of the store, for tokens and logits: a folder, a hub name, or 'embedded'"]
    out: Annotated[Words, "the page to write, such as runs/scale.html"]
    rows: Annotated[Count | None, "held-out activations to measure; null for all"] = None
    features: Annotated[
        Count | None, "experts (or flat features) shown, at even ranks of frequency; null: all live"
    ] = None
    atoms: Annotated[Count | None, "atoms shown per expert, the most frequent ones; null for all live"] = None
    examples: Annotated[Count, "strongest contexts per latent"] = 24
    spread: Annotated[Natural, "weaker contexts per latent, at evenly spaced ranks"] = 6
    before: Annotated[Natural, "tokens shown before the firing one"] = 16
    after: Annotated[Natural, "tokens shown after it"] = 10
    logits: Annotated[Count, "tokens raised and lowered most"] = 10
    neighbours: Annotated[Natural, "nearest decoder directions"] = 8
    title: Annotated[str | None, "heading of the page; null for the name of the run"] = None
    trust: TrustedPackages = field(default_factory=list)


def run(config: Browse) -> Path:
    """Writes the page and returns its path. Raises `UserError` before any compute for bad input."""
    folder, out = Path(config.run), local_folder(config.out)
    sae, normalizer, about = load_sae(folder, trust=config.trust)
    name = about.get("name") or folder.name
    claim(out, name)
    store = Store.open(config.store)
    check_origin(sae, about, store, config.run)
    model = language_model(config.lm, store)
    rows = min(config.rows or store.rows, store.rows)
    window = Window(config.before, config.after)
    limits = browser.Limits(
        config.features, config.atoms, config.examples, config.spread, window, config.logits, config.neighbours
    )
    names = expert_names(folder)
    data = browser.gather(sae, normalizer, store, rows, model, names, limits)
    page = browser.render(data, describe(config, name, sae, normalizer, about, store, data))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    content = page.encode("utf-8", "backslashreplace")  # a lone surrogate is no text
    write_whole(out, content)
    made = f"{len(data['latents'])} latents on {rows:,} tokens", f"{len(content) / 1e6:.1f} MB"
    print(last_line(out, made, opened(out)))
    return out


def claim(out: Path, name: str) -> None:
    """Raises `UserError` where writing `out` would lose something; a page may be written again for the same run."""
    if out.suffix != ".html":
        raise UserError(f"out is {out}, expected the name of an HTML file; write out={out / 'latents.html'}")
    if not out.exists():
        return
    if (other := shown_run(out)) is None:
        raise UserError(f"{out} exists and is no page of jhsae browse; write another out=...")
    if other != name:
        raise UserError(f"{out} shows the latents of {other}, not of {name}; write another out=...")


def shown_run(page: Path) -> str | None:
    """The name of the run whose latents a page of ``jhsae browse`` shows; None for any other file."""
    start = bounded.read_start(page, 100_000).decode(errors="replace")
    found = re.search(rf'<meta name="{browser.MARKER}" content="([^"]*)">', start)
    return unescape(found[1]) if found else None


def describe(
    config: Browse,
    name: str,
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
    store: Store,
    data: dict[str, Any],
) -> dict[str, Any]:
    """What the template says around the data."""
    manifest, tree = store.manifest, sae.tree is not None
    facts = [f"{key} {value}" for key, value in manifest.dataset.items() if key != "source" and value is not None]
    origin = {
        "run": name,
        "config": about.get("config_hash"),
        "commit": _short(about.get("commit")),
        "store": manifest.config_hash,
        "page": cfg.config_hash(config),
        "page made at commit": _short(cfg.provenance()["commit"]),
    }
    return {
        "name": name,
        "title": config.title or f"What the latents of {name} do",
        "model": manifest.model,
        "layer": manifest.layer,
        "store": config.store,
        "text": f"{manifest.dataset.get('source', 'text')} ({', '.join(facts)})",
        "rows": data["rows"],
        "stored": store.rows,
        "partial": data["rows"] < store.rows,
        "trained_here": store.is_known_as((about.get("store") or {}).get("sha256")),
        "normalizer": type(normalizer).__name__,
        "shape": _shape(sae),
        "tree": tree,
        "deep": sae.tree is not None and len(sae.tree.levels) > 2,
        "named": any(latent["name"] for latent in data["latents"]),
        "origin": [(key, (value or "unknown")) for key, value in origin.items()],
    }


def _short(commit: str | None) -> str | None:
    """A commit in 12 digits; where files had changed since, still marked so."""
    return commit and commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _shape(sae: AbstractSAE) -> str:
    if sae.tree is None:
        return f"{sae.features:,} latents"
    roots, *below = sae.tree.levels
    return f"{roots:,} experts" + "".join(f" of {each} atoms" for each in below)

"""An SAE as a folder to share: the format of `jhsae.load_sae`, and a README.md with its description and usage."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jhsae.data import AbstractNormalizer
from jhsae.files.checksums import new_folder
from jhsae.files.escaping import code, escaped, literal
from jhsae.files.forms import COUNT, NUMBER, TEXT
from jhsae.sae import AbstractSAE
from jhsae.sae.io import sae_files

# What a row of results.jsonl calls it, and what people do.
METRICS = {
    "l0": "L0",
    "ev_r2": "explained variance (centred R²)",
    "ce_recovered": "cross-entropy recovered",
    "dead": "dead features",
}
RESULTS = {
    "evaluation": {"store": TEXT, "commit?": TEXT},
    "metrics": {"rows": COUNT} | {f"{key}?": NUMBER for key in METRICS},
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
USAGE = """\
```python
import jax.numpy as jnp
import jhsae

sae, normalizer, about = jhsae.load_sae({folder})  # this folder
inside, token = normalizer(jnp.asarray(x))  # x [tokens, {embed}]: the activations named above
codes = sae.encode(inside)  # codes.dense() [tokens, {features}]
x_hat = normalizer.undo(sae.decode(codes), token)
```"""


def write(
    folder: str | Path,
    sae: AbstractSAE,
    normalizer: AbstractNormalizer,
    about: dict[str, Any],
    results: dict[str, Any] | None = None,
) -> None:
    """Writes `sae` with its `normalizer` and `about` (as `load_sae` gives them) and a README.md into a new `folder`.

    `results` is a row of results.jsonl (``jhsae evaluate``), which the README quotes. `UserError`:
    something is there already.
    """
    folder = Path(folder)
    files = sae_files(sae, about["sae"], about["normalize"], normalizer, about)
    with new_folder(folder) as new:
        for name, content in files.items():
            new.write(name, content)
        new.write("README.md", card(folder.name, sae, about, results))


def card(name: str, sae: AbstractSAE, about: dict[str, Any], results: dict[str, Any] | None) -> str:
    """The README of a folder called `name`, with the header that the Hugging Face hub reads."""
    model, layer = about["reads"]["model"], about["reads"]["layer"]
    where = "somewhere" if layer is None else f"in the residual stream after {layer} blocks"
    reads = f"activations of {escaped(model or 'a language model')} {escaped(where)}"
    facts = {
        "reads": reads,
        "architecture": escaped(_format_slot(about["sae"])),
        "size": f"{sae.embed} dimensions, {sae.features} features",
        "input": escaped(_format_slot(about["normalize"])),
        "made by": f"config hash {code(about.get('config_hash'))}, commit {code(about.get('commit'))}",
    }
    usage = USAGE.format(folder=literal(name), embed=sae.embed, features=sae.features)
    return "\n".join(
        [
            *_header(model),
            f"# {escaped(name)}",
            "",
            "A sparse autoencoder of jhsae (JAX, Equinox).",
            "",
            *(f"- {key}: {value}" for key, value in facts.items()),
            *_measured(results),
            "",
            "## Load",
            "",
            usage,
            "",
        ]
    )


def _header(model: str | None) -> list[str]:
    base = [f"base_model: {model}"] if model and HUB_NAME.fullmatch(model) and not Path(model).exists() else []
    return ["---", "library_name: jhsae", "tags: [sparse-autoencoder, interpretability]", *base, "---", ""]


def _measured(results: dict[str, Any] | None) -> list[str]:
    if results is None:
        return []
    evaluation, metrics = results["evaluation"], results["metrics"]
    where = f"{metrics['rows']:,} tokens of {code(evaluation['store'])}, commit {code(str(evaluation.get('commit')))}"
    numbers = [f"- {words}: {metrics[key]:.4g}" for key, words in METRICS.items() if metrics.get(key) is not None]
    return ["", f"Measured on held-out text ({where}):", "", *numbers]


def _format_slot(slot: Any) -> str:
    """A slot as a constructor call: ``TopK(k=32)``."""
    if not isinstance(slot, Mapping):
        return str(slot)
    inside = ", ".join(f"{key}={_format_slot(value)}" for key, value in slot.items() if key != "_target_")
    return f"{slot.get('_target_', '').rpartition('.')[2]}({inside})"

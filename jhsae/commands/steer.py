"""``jhsae steer``: latents edited inside the language model, beside random directions of the same norm.

Prompts in; a table on the screen and one HTML page out. For each latent: the change of the logits of its tokens with an
interval over prompts, the null, what is likeliest next and how the prompt goes on. For each prompt: the attribution of
a logit difference to latents, its sum beside the true effect.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MinLen

from jhsae import config as cfg
from jhsae import lm
from jhsae.commands.last_line import last_line, opened
from jhsae.commands.steered_page import claim, described
from jhsae.config import Slot, Supplied
from jhsae.config.trust import TrustedPackages
from jhsae.evals import interventions
from jhsae.evals.interventions import AbstractEdit, AbstractPath, SplicedLM, Steered, with_sae
from jhsae.evals.interventions.model import ErrorTerm, Norm
from jhsae.evals.interventions.prompts import Positions
from jhsae.evals.interventions.steer import LEAST
from jhsae.features.names import label
from jhsae.files.folders import local_folder, write_whole, writing
from jhsae.ranges import Count, Natural, Seed, Words, ranged
from jhsae.report.steering import render, table
from jhsae.training.checkpoint import load_sae


@ranged
@dataclass(frozen=True)
class Steer:
    """The SAE, the prompts, and what is done to which latents."""

    UNHASHED: ClassVar[frozenset[str]] = frozenset({"trust"})

    run: Annotated[Words, "folder of a finished run (jhsae train), of an import or of a saved SAE"]
    lm: Annotated[Words, "language model that it reads: a folder, a hub name, or 'embedded'"]
    prompts: Annotated[list[Words], MinLen(1), "texts; effects are measured at the end of each"]
    out: Annotated[Words, "the page to write, such as runs/steer.html"]
    latents: Annotated[list[Words | Natural], "names or rows of latents; empty for those that write most there"] = (
        field(default_factory=list)
    )
    most: Annotated[Count, "how many latents where none is named"] = 6
    edit: Annotated[Slot, "what happens to the code of a latent", Supplied(kind=AbstractEdit)] = field(
        default_factory=lambda: {"_target_": "jhsae.evals.AddShare", "share": 0.5}
    )
    tokens: Annotated[
        list[Words | Natural] | None, "tokens whose logits are measured; null: those that its row raises"
    ] = None
    positions: Annotated[Positions, "all tokens of a prompt are edited, or the last one"] = "all"
    norm: Annotated[Norm, "kept scales the edited stream to the norm that it had"] = "free"
    error: Annotated[ErrorTerm, "what the SAE does not reconstruct stays in the stream, or is dropped"] = "kept"
    layer: Annotated[Natural | None, "layer that the SAE reads; null for that of the run"] = None
    controls: Annotated[int, Ge(LEAST), "random directions per latent"] = 60
    continuation: Annotated[Natural, "tokens by which the prompts are continued; 0 for none"] = 12
    attributed: Annotated[Natural, "latents in the attribution of each prompt; 0 for none"] = 8
    token: Annotated[Words | Natural | None, "token whose logit is attributed; null for the likeliest"] = None
    than: Annotated[Words | Natural | None, "token whose logit is subtracted; null for the likeliest other"] = None
    path: Annotated[Slot, "where the gradient is taken", Supplied(kind=AbstractPath)] = field(
        default_factory=lambda: {"_target_": "jhsae.evals.AlongPath"}
    )
    batch: Annotated[Count, "prompts per forward pass"] = 8
    seed: Annotated[Seed, "of the random directions"] = 0
    title: Annotated[str | None, "heading of the page; null for the name of the run"] = None
    trust: TrustedPackages = field(default_factory=list)


def run(config: Steer) -> Path:
    """Writes the page and returns its path. Raises `UserError` before any compute for bad input."""
    out = local_folder(config.out)
    claim(out)
    loaded = load_sae(config.run, trust=config.trust)
    edit, path = cfg.build(config.edit, AbstractEdit), cfg.build(config.path, AbstractPath)
    inside = with_sae(lm.load(config.lm), loaded, config.layer, error=config.error)
    prompts = inside.prompts(config.prompts)
    names = list(config.latents) or interventions.most_active(inside, prompts, config.most)
    for name in names:
        inside.rows({name: edit})
    for token in (*(config.tokens or ()), *(t for t in (config.token, config.than) if t is not None)):
        interventions.token_id(token, inside.model)
    found = _attributed(config, inside, prompts, path) if config.attributed else []
    steered = [_steered(config, inside, prompts, name, edit) for name in names]
    plain = _continued(config, inside, prompts, {})
    latents = [
        (one, _continued(config, inside, prompts, {name: edit})) for name, one in zip(names, steered, strict=True)
    ]
    data = described(config, inside, loaded[2], prompts, latents, plain, found)
    print(table(data))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    content = render(data).encode("utf-8", "backslashreplace")  # a lone surrogate is no text
    write_whole(out, content)
    made = f"{len(steered)} latents on {len(config.prompts)} prompts", f"{len(content) / 1e6:.1f} MB"
    print(last_line(out, made, opened(out)))
    return out


def _steered(config: Steer, inside: SplicedLM, prompts: Any, name: str | int, edit: AbstractEdit) -> Steered:
    return interventions.steer(
        inside,
        prompts,
        label(name, inside.sae.tree) if isinstance(name, int) else name,
        edit,
        config.tokens,
        positions=config.positions,
        norm=config.norm,
        controls=config.controls,
        seed=config.seed,
        batch=config.batch,
    )


def _continued(config: Steer, inside: SplicedLM, prompts: Any, edits: Any) -> list[list[int]]:
    if not config.continuation:
        return [[] for _ in config.prompts]
    return interventions.continued(
        inside, prompts, config.continuation, edits, positions=config.positions, norm=config.norm
    )


def _attributed(config: Steer, inside: SplicedLM, prompts: Any, path: AbstractPath) -> list[Any]:
    """The attribution of each prompt, and the true effect of ablating each latent that is shown."""
    found = []
    for i in range(len(config.prompts)):
        one = interventions.attribute(inside, prompts.part(i, i + 1), config.token, config.than, path)
        shown = list(one.by_latent())[: config.attributed]
        found.append((one, interventions.ablation_effects(inside, prompts.part(i, i + 1), one, shown)))
    return found

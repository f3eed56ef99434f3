"""``jhsae teach``: from an ontology and a language model to a teacher, the start of a geometric SAE.

WordNet -> concepts whose words are single tokens -> samples of those tokens (rows of the unembedding, or
activations on prompts) -> a direction per parent and a delta per child -> an artifact, with the numbers that say
how far its geometry is real.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from jhsae import config as cfg
from jhsae import lm
from jhsae.commands.last_line import command, with_next
from jhsae.config import Slot, Supplied
from jhsae.errors import UserError
from jhsae.files.folders import local_folder, refuse_existing
from jhsae.files.lock import owned
from jhsae.metric import causal
from jhsae.ranges import Count, Fraction, Natural, PositiveFraction, Seed, Words, ranged
from jhsae.teacher import (
    AbstractEstimator,
    AbstractEvidence,
    Concept,
    Prompts,
    SelectionLimits,
    Teacher,
    View,
    Vocabulary,
    build,
    estimate,
    from_wordnet,
    readout,
    select,
    single_tokens,
    summary,
    validate,
)
from jhsae.teacher.artifact import NUMBERS, read_metadata

logger = logging.getLogger(__name__)
READ = ("the", "they spoke about the")  # prompts in which readouts are tried


@ranged
@dataclass(frozen=True)
class Source:
    """The language model that is taught from."""

    path: Annotated[Words, "a folder, a Hugging Face name, or 'embedded'"]
    layer: Annotated[Natural | None, "residual stream that prompts and readouts are read from; null for none"] = None
    dtype: Annotated[Literal["float32", "bfloat16"], "of the weights and of matrix products"] = "float32"


@ranged
@dataclass(frozen=True)
class Teach:
    """The config of one teacher."""

    out: Annotated[Words, "the teacher's folder; must not hold anything else"]
    lm: Annotated[Source, "the language model"]
    wordnet: Annotated[str | None, "folder of WordNet 3.x (data.noun, index.noun); null: the bundled subset"] = None
    senses: Annotated[Count | None, "how many senses of a word count, the commonest first; null: all"] = 1
    parents: Annotated[Count, "how many parents to find, where `concepts` names none"] = 64
    concepts: Annotated[list[str], "the parents by name (plant.n.02), word or id"] = field(default_factory=list)
    limits: Annotated[SelectionLimits, "what a concept needs to be a parent or a child"] = field(
        default_factory=SelectionLimits
    )
    evidence: Annotated[Slot, "where samples come from", Supplied(kind=AbstractEvidence)] = field(
        default_factory=lambda: {"_target_": "jhsae.teacher.Unembedding"}
    )
    estimator: Annotated[Slot, "from samples to directions", Supplied(kind=AbstractEstimator)] = field(
        default_factory=lambda: {"_target_": "jhsae.teacher.ParkEstimator"}
    )
    shrinkage: Annotated[Fraction, "relative ridge of the unembedding's covariance"] = 0.05
    sub: Annotated[Count, "dimensions of a parent's subspace"] = 8
    variance: Annotated[PositiveFraction, "share of the children's variance to keep in it"] = 1.0
    others: Annotated[Natural, "words of no parent that are sampled for comparison"] = 2048
    seed: Annotated[Seed, "what fills the subspaces; splits and nulls of the validation"] = 0


def run(config: Teach) -> Path:
    """Makes the teacher, prints what was made and returns its folder. Raises what `teach` does."""
    folder = teach(config)
    parents, sub, embed = (teacher := Teacher.load(folder)).up.shape
    sizes = {"embed": embed, "experts": parents, "sub": sub, "atoms": teacher.atoms.shape[1]}
    words = [f"teacher={folder}", "data.store=STORE", *(f"sae.{key}={size}" for key, size in sizes.items())]
    print(with_next(about(folder), command("jhsae", "train", "geometry.yaml", *words, "out=runs/geometry")))
    return folder


def teach(config: Teach) -> Path:
    """Makes the teacher, or leaves the one that this very config made alone.

    Returns:
        The teacher's folder.

    Raises:
        UserError: Input that does not fit together, or a teacher of another config; before any compute.
    """
    out = local_folder(config.out)
    with owned(out, "teach"):
        if _finished(out, cfg.config_hash(config)):
            logger.info(f"{out} is finished; nothing to do")
        else:
            refuse_existing(out)
            _teach(config)
    return out


def about(folder: Path) -> str:
    """A finished teacher in one line."""
    teacher = Teacher.load(folder)
    parents, sub, embed = teacher.up.shape
    return (
        f"{folder}: {parents} parents with {int(teacher.counts.sum())} children, subspaces of {sub} of {embed} "
        f"dimensions, from {teacher.provenance['model']}"
    )


def _finished(out: Path, config_hash: str) -> bool:
    """True when this very config made `out`. `UserError`: another one did."""
    if not (out / NUMBERS).exists():
        return False
    made_by = read_metadata(out)["provenance"].get("config_hash")
    if made_by != config_hash:
        raise UserError(
            f"{out} holds a teacher of another config ({made_by} there, {config_hash} here) and is never overwritten; "
            "write another out=..."
        )
    return True


def _teach(config: Teach) -> None:
    evidence = cfg.build(config.evidence, AbstractEvidence)
    estimator = cfg.build(config.estimator, AbstractEstimator)
    with tqdm(total=5, desc="teach: model and ontology", disable=None) as bar:
        loaded = lm.load(config.lm.path, layers=config.lm.layer or 0, dtype=jnp.dtype(config.lm.dtype))
        if config.sub >= loaded.model.embed:
            raise UserError(f"sub={config.sub}, but {loaded.name} has {loaded.model.embed} dimensions; write less")
        vocabulary, concepts = find_concepts(config, loaded)
        _next(bar, "geometry")
        view = make_view(config, loaded)
        _next(bar, "samples")
        samples = evidence(view, concepts, pool(config, concepts, vocabulary))
        _next(bar, "directions")
        directions = estimate(concepts, estimator, samples)
        _next(bar, "validation")
        validation = validate(concepts, directions, estimator, samples, vocabulary.lemmas(), config.seed)
        if config.lm.layer is not None:
            activations = Prompts(READ)(view, concepts, samples.tokens.tolist())
            validation["readout"] = readout(concepts, estimator, samples, activations, vocabulary.lemmas(), config.seed)
        bar.update()
    teacher = build(
        concepts,
        directions,
        view.geometry,
        sub=config.sub,
        variance=config.variance,
        seed=config.seed,
        provenance=describe(config, loaded, concepts, vocabulary, view.geometry.condition),
        validation=validation,
    )
    print(summary(teacher, vocabulary))
    teacher.save(config.out)


def find_concepts(config: Teach, loaded: lm.LanguageModel) -> tuple[Vocabulary, tuple[Concept, ...]]:
    """The model's words in the ontology and the parents chosen among its concepts."""
    ontology = from_wordnet(config.wordnet, senses=config.senses)
    words = (word for words in ontology.words.values() for word in words)
    vocabulary = single_tokens(loaded.tokenizer, words, ontology.usage)
    if (largest := max(vocabulary.surface, default=0)) >= loaded.model.vocab:
        raise UserError(
            f"the tokenizer of {loaded.name} gives token {largest} ({vocabulary.surface[largest]!r}), but the model "
            f"has {loaded.model.vocab} tokens; copy the tokenizer that belongs to the model"
        )
    return vocabulary, select(ontology, vocabulary, config.parents, config.limits, config.concepts)


def make_view(config: Teach, loaded: lm.LanguageModel) -> View:
    """What evidence may look at: unembedding, causal geometry, activations at the teacher's layer."""
    unembedding = np.asarray(loaded.model.unembedding())
    return View(
        unembedding=unembedding,
        geometry=causal(unembedding, config.shrinkage),
        residual=_residual(config, loaded.model),
        encode=lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"],
        bos=loaded.tokenizer.bos_token_id,
    )


def pool(config: Teach, concepts: tuple[Concept, ...], vocabulary: Vocabulary) -> Iterable[int]:
    """The tokens of the concepts and `others` more."""
    taught = {t for concept in concepts for t in concept.tokens}
    rest = sorted(vocabulary.surface.keys() - taught)
    more = np.random.default_rng(config.seed).permutation(rest)[: config.others]
    return sorted(taught) + [int(t) for t in more]


def describe(
    config: Teach,
    loaded: lm.LanguageModel,
    concepts: tuple[Concept, ...],
    vocabulary: Vocabulary,
    condition: float,
) -> dict[str, Any]:
    """What the teacher was made of."""
    tokens = {t for concept in concepts for t in concept.tokens}
    return {
        "model": loaded.name,
        "model_sha256": loaded.sha256,
        "layer": config.lm.layer,
        "embed": loaded.model.embed,
        "vocab": loaded.model.vocab,
        "words": len(vocabulary.ids),
        "tokens": len(tokens),
        "parents": len(concepts),
        "children": sum(len(c.children) for c in concepts),
        "condition": condition,
        "config": cfg.to_dict(config),
        "config_hash": cfg.config_hash(config),
        **cfg.provenance(),
    }


def _residual(
    config: Teach, model: lm.AbstractLM
) -> Callable[[Int[np.ndarray, "batch time"]], Float[np.ndarray, "batch time embed"]]:
    layer = config.lm.layer
    forward = eqx.filter_jit(lambda model, ids: model.residual(ids, layer))

    def residual(ids: Int[np.ndarray, "batch time"]) -> Float[np.ndarray, "batch time embed"]:
        if layer is None:
            raise UserError(f"{config.evidence['_target_']} reads activations; write lm.layer=...")
        return np.asarray(forward(model, jnp.asarray(ids)))

    return residual


def _next(bar: tqdm, name: str) -> None:
    bar.update()
    bar.set_description(f"teach: {name}")

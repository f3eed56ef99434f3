"""``jhsae teach``: from an ontology and a language model to a teacher, the start of a geometric SAE.

WordNet (or another ontology) -> concepts whose words are single tokens -> samples of those tokens (rows of the
unembedding, or activations on prompts) -> a direction per parent and a delta per child -> an artifact, with the numbers
that say how far its geometry is real.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from jhsae import config as cfg
from jhsae import lm
from jhsae.commands.last_line import command, with_next
from jhsae.commands.made_before import same_config
from jhsae.config import Slot, Supplied
from jhsae.data import ModelName
from jhsae.errors import UserError
from jhsae.files.folders import local_folder, refuse_existing
from jhsae.files.lock import owned
from jhsae.metric import CausalGeometry, Shrinkage
from jhsae.ranges import Count, Fraction, Natural, PositiveFraction, Seed, Words, ranged
from jhsae.teacher import (
    AbstractEstimator,
    AbstractEvidence,
    AbstractGeometry,
    Concept,
    Model,
    Ontology,
    ParkEstimator,
    Prompts,
    Samples,
    SelectionLimits,
    Teacher,
    Unembedding,
    View,
    Vocabulary,
    build,
    categories,
    estimate,
    from_edges,
    from_wordnet,
    interventions,
    readout,
    select,
    single_tokens,
    summary,
    theory,
    validate,
)
from jhsae.teacher.artifact import NUMBERS, read_metadata

logger = logging.getLogger(__name__)
READ = ("the", "they spoke about the")  # prompts in which readouts are tried and directions added
STRENGTH = 0.5  # of what is added, as a share of the norm of the residual stream
GEOMETRY = {"_target_": "jhsae.teacher.UnembeddingCovariance"}


@ranged
@dataclass(frozen=True)
class Source:
    """The language model that is taught from."""

    path: Annotated[Words, "a folder, a Hugging Face name, or 'embedded'"]
    layer: Annotated[Natural | None, "residual stream that prompts and readouts are read from; null for none"] = None
    dtype: Annotated[Literal["float32", "bfloat16"], "of the weights and of matrix products"] = "float32"
    random: Annotated[Seed | None, "draw the weights anew, a null of the whole teacher; null for the model's own"] = (
        None
    )

    def load(self, blocks: int | None) -> lm.LanguageModel:
        """The model with its first `blocks` blocks, None for all, and its own weights or random ones."""
        loaded = lm.load(self.path, layers=blocks, dtype=jnp.dtype(self.dtype))
        return loaded if self.random is None else lm.with_random_weights(loaded, self.random)


@ranged
@dataclass(frozen=True)
class Teach:
    """The config of one teacher."""

    LATER: ClassVar[dict[str, Any]] = {
        "parts": "n",
        "ontology": None,
        "geometry": GEOMETRY,
        "theory": False,
        "interventions": 0,
        "lm.random": None,
        "held_out": 0.0,
    }

    out: Annotated[Words, "the teacher's folder; must not hold anything else"]
    lm: Annotated[Source, "the language model"]
    wordnet: Annotated[str | None, "folder of WordNet 3.x (data.noun, index.noun); null: the bundled subset"] = None
    parts: Annotated[Literal["n", "v", "nv"], "parts of speech of WordNet: nouns, verbs, or both"] = "n"
    ontology: Annotated[str | None, "file of another ontology instead (format: jhsae/teacher/edges.py)"] = None
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
    geometry: Annotated[Slot, "whose covariance is the metric", Supplied(kind=AbstractGeometry)] = field(
        default_factory=lambda: dict(GEOMETRY)
    )
    shrinkage: Annotated[Shrinkage, "relative ridge of that covariance: its weight, or ledoit_wolf to estimate it"] = (
        0.05
    )
    sub: Annotated[Count, "dimensions of a parent's subspace"] = 8
    variance: Annotated[PositiveFraction, "share of the children's variance to keep in it"] = 1.0
    held_out: Annotated[Fraction, "share of the words that the teacher never sees, for scores of what it starts"] = 0.0
    others: Annotated[Natural, "words of no parent that are sampled for comparison"] = 2048
    seed: Annotated[Seed, "what fills the subspaces; splits and nulls of the validation"] = 0
    theory: Annotated[bool, "validate every category of the ontology too: chains of parents, simplices"] = False
    interventions: Annotated[Natural, "pairs of siblings whose contrast is added in the whole model; 0 for none"] = 0

    def __post_init__(self) -> None:
        if self.ontology is not None and (self.wordnet is not None or self.parts != "n"):
            raise UserError(
                "names an ontology beside wordnet or parts, which choose from WordNet; write one of the two"
            )


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
    return same_config(out, "a teacher", read_metadata(out)["provenance"].get("config_hash"), config_hash)


def _teach(config: Teach) -> None:
    evidence = cfg.build(config.evidence, AbstractEvidence)
    estimator = cfg.build(config.estimator, AbstractEstimator)
    with tqdm(total=6, desc="teach: model and ontology", disable=None) as bar:
        blocks = None if config.interventions else config.lm.layer or 0
        loaded = config.lm.load(blocks)
        if config.sub >= loaded.model.embed:
            raise UserError(f"sub={config.sub}, but {loaded.name} has {loaded.model.embed} dimensions; write less")
        ontology = read_ontology(config)
        vocabulary = words_of(ontology, loaded).known(config.held_out, config.seed)
        concepts = select(ontology, vocabulary, config.parents, config.limits, config.concepts)
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
        _next(bar, "tests of the theory")
        if config.theory:
            validation |= _theory(config, ontology, vocabulary, view)
        if config.interventions:
            validation |= _interventions(config, loaded, concepts, estimator, samples, vocabulary, view)
        bar.update()
    teacher = build(
        concepts,
        directions,
        view.geometry,
        sub=config.sub,
        variance=config.variance,
        seed=config.seed,
        provenance=describe(config, loaded, concepts, vocabulary, view.geometry),
        validation=validation,
    )
    print(summary(teacher, vocabulary))
    teacher.save(config.out)


def read_ontology(config: Teach) -> Ontology:
    """The file that the config names, or WordNet."""
    if config.ontology is not None:
        return from_edges(config.ontology)
    return from_wordnet(config.wordnet, config.parts, config.senses)


def words_of(ontology: Ontology, loaded: lm.LanguageModel) -> Vocabulary:
    """The ontology's words that are single tokens of the model. `UserError` where there are none."""
    vocabulary = single_tokens(loaded.tokenizer, ontology.lexicon("n"), ontology.usage, ontology.lexicon("v"))
    if not vocabulary.surface:
        words = len(ontology.lexicon("n") | ontology.lexicon("v"))
        raise UserError(
            f"none of the {words:,} words of the ontology is a single token of {loaded.name}; "
            f"write an ontology in the language of the model, or a model with a larger vocabulary"
        )
    if (largest := max(vocabulary.surface)) >= loaded.model.vocab:
        raise UserError(
            f"the tokenizer of {loaded.name} gives token {largest} ({vocabulary.surface[largest]!r}), but the model "
            f"has {loaded.model.vocab} tokens; copy the tokenizer that belongs to the model"
        )
    return vocabulary


def find_concepts(config: Teach, loaded: lm.LanguageModel) -> tuple[Vocabulary, tuple[Concept, ...]]:
    """The model's words in the ontology and the parents chosen among its concepts."""
    ontology = read_ontology(config)
    vocabulary = words_of(ontology, loaded).known(config.held_out, config.seed)
    return vocabulary, select(ontology, vocabulary, config.parents, config.limits, config.concepts)


def make_view(config: Teach, loaded: lm.LanguageModel) -> View:
    """What evidence may look at: unembedding, causal geometry, activations at the teacher's layer."""
    model = Model(ModelName.of(loaded.name, loaded.sha256), np.asarray(loaded.model.unembedding()))
    return View(
        unembedding=model.unembedding,
        geometry=cfg.build(config.geometry, AbstractGeometry)(model, config.shrinkage),
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
    geometry: CausalGeometry,
) -> dict[str, Any]:
    """What the teacher was made of."""
    tokens = {t for concept in concepts for t in concept.tokens}
    return {
        "model": loaded.name,
        "model_sha256": loaded.sha256,
        "layer": config.lm.layer,
        "embed": loaded.model.embed,
        "vocab": loaded.model.vocab,
        "words": len(vocabulary.words()),
        "tokens": len(tokens),
        "parents": len(concepts),
        "children": sum(len(c.children) for c in concepts),
        "condition": geometry.condition,
        "shrinkage": geometry.shrinkage,
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


def _theory(config: Teach, ontology: Ontology, vocabulary: Vocabulary, view: View) -> dict[str, Any]:
    """Park et al.'s tests, with their estimator on the unembedding, whatever the teacher itself is estimated by."""
    found = categories(ontology, vocabulary, config.limits.min_tokens, config.limits.rest)
    samples = Unembedding()(view, (), vocabulary.surface)
    return theory(found, ParkEstimator(), samples, config.seed)


def _interventions(
    config: Teach,
    loaded: lm.LanguageModel,
    concepts: tuple[Concept, ...],
    estimator: AbstractEstimator,
    samples: Samples,
    vocabulary: Vocabulary,
    view: View,
) -> dict[str, Any]:
    """Sections of the validation: at the end of the model and, where one is named, at the teacher's layer."""
    layers = {"interventions_last_layer": loaded.model.layers}
    layers |= {} if config.lm.layer is None else {"interventions": config.lm.layer}
    rest = (vocabulary.lemmas(), view.geometry)
    return {
        name: interventions(
            concepts, estimator, samples, *rest, steered(loaded, view, layer), config.interventions, config.seed
        )
        for name, layer in layers.items()
    }


def steered(
    loaded: lm.LanguageModel, view: View, layer: int
) -> Callable[[Float[np.ndarray, "added embed"]], Float[np.ndarray, "added vocab"]]:
    """Logits after the prompts `READ`, averaged, with vectors added at their last token.

    Args:
        loaded: The whole language model.
        view: Access to its tokenizer.
        layer: The residual stream that they are added to; the number of blocks is the input of the unembedding.
    """
    first = [] if view.bos is None else [view.bos]
    prompts = [jnp.asarray([first + view.encode(text)], jnp.int32) for text in READ]

    @eqx.filter_jit
    def logits(
        model: lm.AbstractLM, ids: Int[Array, "1 time"], added: Float[Array, "added embed"]
    ) -> Float[Array, "added vocab"]:
        x = model.residual(ids, layer)
        size = STRENGTH * jnp.linalg.norm(x[0, -1])
        every = jnp.repeat(x, len(added), axis=0).at[:, -1].add(size * added)
        return model.logits_from(every, layer)[:, -1]

    def steer(added: Float[np.ndarray, "added embed"]) -> Float[np.ndarray, "added vocab"]:
        vectors = jnp.asarray(added, jnp.float32)
        return np.mean([np.asarray(logits(loaded.model, ids, vectors)) for ids in prompts], axis=0)

    return steer


def _next(bar: tqdm, name: str) -> None:
    bar.update()
    bar.set_description(f"teach: {name}")

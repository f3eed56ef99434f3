"""Neuronpedia's tables above the features: release, model, source set, source, as its importer reads them.

Keys are columns of Neuronpedia's database (apps/webapp/prisma/schema.prisma); the importer refuses a key it does not
know, so only such are written. A source is one SAE at one layer, ``<block>-<source set>``; Neuronpedia counts blocks,
so the residual stream after L blocks is at block L - 1.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from jhsae.data import Manifest
from jhsae.interop.saelens.layout import hook_names
from jhsae.lm import LanguageModel
from jhsae.ranges import Count, Natural, Seed, ranged


@ranged
@dataclass(frozen=True)
class Dashboard:
    """How much is written of each feature, and under whose name.

    `creator_id` is the user that Neuronpedia's own converters write by default; the database must have it. `top`
    examples have the largest values; of each of `bins` equal intervals from 0 to the maximum, `per_bin` examples are
    drawn at random. An example is a whole sequence, or `window` tokens of a longer one. `logits` tokens are listed at
    either end, and `neighbours` features of the nearest decoder rows, or as many as there are. `batch` features stand
    in one file. `vectors` writes the decoder rows, for steering.
    """

    creator: str = "jhsae"
    creator_id: str = "clkht01d40000jv08hvalcvly"
    release: str | None = None
    urls: tuple[str, ...] = ()
    top: Count = 20
    bins: Count = 5
    per_bin: Natural = 5
    window: Count = 128
    logits: Count = 10
    neighbours: Natural = 10
    batch: Count = 1024
    vectors: bool = True
    seed: Seed = 0


@dataclass(frozen=True)
class SourceSet:
    """The features `start` to `stop` of an SAE's dictionary as a source set of their own, indexed from 0."""

    model: str
    block: int
    hook: str
    name: str
    start: int
    stop: int
    description: str

    @property
    def source(self) -> str:
        """Neuronpedia's id of the SAE; also the name of its folder."""
        return f"{self.block}-{self.name}"


def place(manifest: Manifest) -> tuple[str, int, str]:
    """The model's id (the last part of its name), the block and the TransformerLens hook of a store."""
    hook = hook_names(manifest.layer)["hook_name"]
    assert hook is not None  # only where the layer is unknown
    return identifier(manifest.model.rstrip("/").rsplit("/", 1)[-1]), max(manifest.layer - 1, 0), hook


def identifier(name: str) -> str:
    """`name` in the letters of a Neuronpedia id: a-z, 0-9, dot, dash, underscore."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-")


def short_count(count: int) -> str:
    """16384 is "16k", as Neuronpedia names widths."""
    return f"{count // 1000}k" if count >= 1000 else str(count)


def now() -> str:
    """The time in the form that Neuronpedia's database library takes."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def tables(
    source_set: SourceSet,
    model: LanguageModel,
    manifest: Manifest,
    dashboard: Dashboard,
    release: str,
    sequences: int,
    created: str,
) -> dict[str, dict[str, Any]]:
    """The one row of each of ``release``, ``model``, ``sourceset`` and ``source``."""
    by = {"creatorId": dashboard.creator_id, "createdAt": created}
    return {
        "release": {
            "name": release,
            "description": release,
            "descriptionShort": release,
            "visibility": "PUBLIC",
            "urls": list(dashboard.urls),
            "creatorName": dashboard.creator,
            "creatorNameShort": dashboard.creator,
            **by,
        },
        "model": {
            "id": source_set.model,
            "displayName": source_set.model,
            "displayNameShort": source_set.model,
            "dimension": model.model.embed,
            "layers": model.model.layers,
            "neuronsPerLayer": model.model.config.hidden,
            "instruct": source_set.model.endswith("-it"),
            "owner": dashboard.creator,
            "visibility": "PUBLIC",
            "updatedAt": created,
            **by,
        },
        "sourceset": {
            "modelId": source_set.model,
            "name": source_set.name,
            "description": source_set.description,
            "type": "",
            "releaseName": release,
            "creatorName": dashboard.creator,
            "urls": list(dashboard.urls),
            "hasDashboards": True,
            "showCorrelated": True,
            "visibility": "PUBLIC",
            **by,
        },
        "source": {
            "id": source_set.source,
            "modelId": source_set.model,
            "setName": source_set.name,
            "hasDashboards": True,
            "dataset": str(manifest.dataset.get("name", manifest.dataset["source"])),
            "num_prompts": sequences,
            "num_tokens_in_prompt": manifest.context,
            "notes": f"{source_set.description} Hook: {source_set.hook}.",
            "visibility": "PUBLIC",
            **by,
        },
    }

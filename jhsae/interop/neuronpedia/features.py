"""The feature rows of a Neuronpedia bundle: one row of its Neuron table per feature.

Codes are in the SAE's own units; vectors and logits are in those of the language model. Links between parents and
atoms stand in ``correlated_features_*``, where l1 is the cosine of the two codes, as SAEDashboard writes it.
``decoder_weights_dist`` (shares of attention heads) means nothing in a residual stream and stays empty, and so do the
correlations with neurons.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float32

from jhsae.features.coactivation import Links
from jhsae.features.decoder import FeatureLogits, aligned_dimensions, feature_logits, nearest
from jhsae.interop.neuronpedia.tables import Dashboard, SourceSet
from jhsae.interop.numbers import short

BINS = 50


@dataclass(frozen=True, eq=False)
class Sheet:
    """What the rows of one source set are made of.

    Its links, its decoder rows in the language model's units (`unit`: their directions), the unembedding with the text
    of every token, and the number of measured tokens.
    """

    source_set: SourceSet
    links: Callable[[int], Links]
    rows: Float32[np.ndarray, "features embed"]
    unit: Float[Array, "features embed"]
    unembedding: Float[Array, "vocab embed"]
    words: list[str]
    tokens: int
    dashboard: Dashboard
    created: str


def feature_rows(sheet: Sheet, start: int, values: list[Float32[np.ndarray, "_"]]) -> Iterator[dict[str, Any]]:
    """Rows for the features of the set from `start`, whose codes other than 0 are `values`, one array each."""
    stop, dashboard = start + len(values), sheet.dashboard
    shown = min(dashboard.logits, len(sheet.unembedding))
    logits = feature_logits(sheet.rows[start:stop], sheet.unembedding, shown, BINS)
    near = min(dashboard.neighbours, len(sheet.rows) - 1)
    ids, cosines = nearest(sheet.unit, np.arange(start, stop), near)
    for i, index in enumerate(range(start, stop)):
        close = {"topkCosSimIndices": ids[i].tolist(), "topkCosSimValues": short(cosines[i])}
        found = _tables(sheet, index) | _logits(logits, i, sheet.words) | _fired(sheet, values[i])
        yield _head(sheet, index, values[i]) | close | found


def _head(sheet: Sheet, index: int, values: np.ndarray) -> dict[str, Any]:
    where, vectors = sheet.source_set, sheet.dashboard.vectors
    most = short([max(0.0, float(values.max(initial=0)))])[0]
    return {
        "modelId": where.model,
        "layer": where.source,
        "index": str(index),
        "sourceSetName": where.name,
        "creatorId": sheet.dashboard.creator_id,
        "createdAt": sheet.created,
        "maxActApprox": most,
        "hasVector": vectors,
        "vector": short(sheet.rows[index]) if vectors else [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": most,
        "hookName": where.hook if vectors else None,
    }


def _tables(sheet: Sheet, index: int) -> dict[str, Any]:
    dimensions, weights, shares = aligned_dimensions(sheet.rows[index])
    links = sheet.links(index)
    return {
        "neuron_alignment_indices": dimensions.tolist(),
        "neuron_alignment_values": short(weights),
        "neuron_alignment_l1": short(shares),
        "correlated_neurons_indices": [],
        "correlated_neurons_pearson": [],
        "correlated_neurons_l1": [],
        "correlated_features_indices": links.indices,
        "correlated_features_pearson": short(links.pearson),
        "correlated_features_l1": short(links.cosine),
        "decoder_weights_dist": [],
    }


def _logits(logits: FeatureLogits, i: int, words: list[str]) -> dict[str, Any]:
    return {
        "pos_str": [words[token] for token in logits.top_ids[i]],
        "pos_values": short(logits.top[i]),
        "neg_str": [words[token] for token in logits.bottom_ids[i]],
        "neg_values": short(logits.bottom[i]),
        "logits_hist_data_bar_heights": logits.counts[i].tolist(),
        "logits_hist_data_bar_values": short(logits.centres[i]),
    }


def _fired(sheet: Sheet, values: np.ndarray) -> dict[str, Any]:
    """The fraction of tokens on which the feature fired, and a histogram of its values there."""
    heights, edges = np.histogram(values, BINS) if len(values) else (np.zeros(0, int), np.zeros(1))
    return {
        "frac_nonzero": len(values) / sheet.tokens,
        "freq_hist_data_bar_heights": heights.tolist(),
        "freq_hist_data_bar_values": short((edges[1:] + edges[:-1]) / 2),
    }

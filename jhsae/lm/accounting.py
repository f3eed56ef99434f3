"""Every tensor of a checkpoint is read, known to be unneeded, or refused by its name.

A tensor that the forward pass of the family does not use (an adapter, a bias, a norm of queries, a second head, parts
of a quantised weight) may change what the model computes, so none is silently ignored.
"""

import re
from collections.abc import Iterable

import jax

from jhsae.errors import UserError
from jhsae.leaf import describe
from jhsae.lm.base import AbstractLM
from jhsae.lm.scaled import Weights

ROTARY = r".*\.rotary_emb\.inv_freq"  # follows from config.json; older versions of transformers saved it
ADVICE = "write a checkpoint in bfloat16 or float32"
# Parts of tensor names, and the weights that they indicate.
MARKS = {
    r"lora_|\.base_layer\.|\.modules_to_save\.": (
        "an adapter (LoRA)",
        "merge it (peft: model.merge_and_unload()) and write the merged checkpoint",
    ),
    r"\.(qweight|qzeros|g_idx)$": ("weights quantised by GPTQ or AWQ", ADVICE),
    r"quant_state|\.absmax$|\.quant_map$|\.nested_": ("weights quantised by bitsandbytes in 4 bits", ADVICE),
    r"\.SCB$|\.weight_format$": ("weights quantised by bitsandbytes in 8 bits", ADVICE),
    r"\.weight_packed$|\.weight_shape$|\.weight_global_scale$": ("packed weights of compressed-tensors", ADVICE),
    r"_blocks$": ("weights quantised by MXFP4", ADVICE),
    r"\.W_q$": ("weights quantised by HQQ", ADVICE),
    r"\.(codebooks|codes)$": ("weights quantised by AQLM", ADVICE),
    r"\.(centroids|res_centroids|indices)$": ("weights quantised by VPTQ", ADVICE),
    r"\._data$|\._scale$|\._shift$": ("weights quantised by quanto", ADVICE),
    r"\.weight_scales$": ("weights quantised by EETQ", ADVICE),
    r"scale|zero_point|zeros": ("quantised weights", ADVICE),
    r"^(score|classifier|qa_outputs|v_head|value_head)\.": (
        "a head for another task than the next token",
        "write the checkpoint of the causal language model",
    ),
    r"vision|visual|image|audio|multi_modal": ("a model of more than text", "write the checkpoint of its text model"),
}


def tensor_names(model: AbstractLM) -> dict[str, list[str]]:
    """The names of the tensors of every leaf of a model (or of its shapes), by the leaf's path."""
    found = {}
    for leaf in jax.tree.leaves(describe(model)):
        name = model.tensors[leaf.path]
        found[leaf.path] = [name.format(i) for i in range(model.config.layers)] if "{}" in name else [name]
    return found


def account(weights: Weights, whole: AbstractLM, unneeded: set[str], source: str) -> None:
    """Refuses tensors that the model does not read.

    Args:
        weights: The tensors of the checkpoint.
        whole: The model of all layers, as shapes.
        unneeded: Names of tensors known not to affect the forward pass.
        source: The path of config.json, for messages.

    Raises:
        UserError: The first tensor, by name, that is neither read nor known to be unneeded.
    """
    wanted = {name for names in tensor_names(whole).values() for name in names}
    known = unneeded.union(*(weights.names(name) for name in wanted))
    unread = re.compile("|".join([ROTARY, *(f"({_any(whole.prefixes)})({name})" for name in whole.unread)]))
    left = sorted(name for name in weights.tensors.names - known if not unread.fullmatch(name))
    if not left:
        return
    first = next((name for name in left if _mark(name)), left[0])
    more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
    raise UserError(f"{weights.tensors.folder}: tensor {first}{more} {_meaning(first, whole, source)}")


def _any(words: Iterable[str]) -> str:
    """A pattern for one of these words."""
    return "|".join(map(re.escape, words))


def _mark(name: str) -> tuple[str, str] | None:
    return next((meaning for pattern, meaning in MARKS.items() if re.search(pattern, name)), None)


def _meaning(name: str, model: AbstractLM, source: str) -> str:
    config = model.config
    if mark := _mark(name):
        return f"belongs to {mark[0]}, which is not read; {mark[1]}"
    stems = {pattern.partition("{}")[0] for pattern in model.tensors.values() if "{}" in pattern}
    stems = {stem.removeprefix(model.prefixes[0]) for stem in stems}
    layer = re.match(rf"(?:{_any(model.prefixes)})(?:{_any(stems)})(\d{{1,9}})\.", name)
    if layer and int(layer[1]) >= config.layers:
        return f"is beyond the {config.layers} layers of {source}; write the config.json that belongs to the weights"
    return (
        f"is not part of a {config.model_type} as {source} describes it and may change the numbers; write the "
        "checkpoint of the plain model, with its own config.json"
    )

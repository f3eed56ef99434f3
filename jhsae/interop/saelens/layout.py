"""The names in a SAELens directory (sae-lens 6.54.12): files, and the residual stream that an SAE reads.

`layer` counts the blocks that have run, so the residual stream after block N is layer N + 1.
"""

import re

VERSION = "6.54.12"
MAJOR = 6
CONFIG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"

# Hooks of TransformerLens and Hugging Face on the residual stream, and the offset of the layer to the block index.
HOOKS = (
    (r"blocks\.(\d+)\.hook_resid_pre", 0),
    (r"blocks\.(\d+)\.hook_resid_post", 1),
    (r"(?:model\.|language_model\.)*layers\.(\d+)", 1),
    (r"transformer\.h\.(\d+)", 1),
    (r"gpt_neox\.layers\.(\d+)", 1),
)
# Names that only TransformerLens knows a model by, and those of the hub.
MODELS = (
    (r"gpt2-small", "openai-community/gpt2"),
    (r"gemma-[23]-\w+(-it|-pt)?", r"google/\g<0>"),
    (r"pythia-\d+(\.\d+)?[mb](-deduped)?", r"EleutherAI/\g<0>"),
)


def hook_names(layer: int | None) -> dict[str, str | None]:
    """Hook names of the residual stream at `layer`: TransformerLens's, and Hugging Face's where there is one."""
    if layer is None:
        return {"hook_name": None}
    if layer == 0:
        return {"hook_name": "blocks.0.hook_resid_pre"}
    return {"hook_name": f"blocks.{layer - 1}.hook_resid_post", "hf_hook_name": f"model.layers.{layer - 1}"}


def hub_name(model: str) -> str:
    """The hub's name of a model that TransformerLens names; any other name as it is."""
    found = ((re.fullmatch(pattern, model), name) for pattern, name in MODELS)
    return next((match.expand(name) for match, name in found if match), model)


def layer_of(hook: str) -> int | None:
    """The number of blocks that have run at `hook`; None where that is not the residual stream."""
    found = ((re.fullmatch(pattern, hook), more) for pattern, more in HOOKS)
    return next((int(match[1]) + more for match, more in found if match and len(match[1]) < 5), None)

"""Does an SAE read what a store holds, and is this the language model that the store was harvested from?"""

from typing import Any

from jhsae import lm
from jhsae.data import Store
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE


def check_origin(sae: AbstractSAE, about: dict[str, Any], store: Store, name: str = "the SAE") -> None:
    """Raises `UserError` unless `store` has the width, the model and the layer that the SAE was trained on.

    `about` is that of `load_sae`; what a foreign SAE does not tell is not checked. `name` is what messages call it.
    """
    if sae.embed != store.embed:
        raise UserError(
            f"{name} reads vectors of {sae.embed} numbers, but {store.path} holds activations of {store.embed}; "
            "write the store that was harvested from the model and layer of the SAE"
        )
    reads, here = about["reads"], {"model": store.manifest.model, "layer": store.manifest.layer}
    if any(reads[key] not in (None, here[key]) for key in here):
        raise UserError(
            f"{name} reads {reads['model']} layer {reads['layer']}, but {store.path} holds {here['model']} layer "
            f"{here['layer']}; harvest held-out text with the same lm.path and lm.layer"
        )


def language_model(path: str, store: Store) -> lm.LanguageModel:
    """The language model at `path`; `UserError` unless `store` was harvested from it."""
    model = lm.load(path)
    if model.name != store.manifest.model:
        raise UserError(
            f"lm is {model.name}, but the store {store.path} was harvested from {store.manifest.model}; "
            f"write lm={store.manifest.model}"
        )
    return model

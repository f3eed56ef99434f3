"""Checks that an SAE, a store and a language model belong together: model, layer, width, tokenizer."""

from typing import Any

from jhsae import lm
from jhsae.data import Store
from jhsae.data.places import has_tokens
from jhsae.data.same_model import ModelName, same_model
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
    reads, here = about["reads"], ModelName.recorded(store.manifest)
    model = None if reads["model"] is None else ModelName(reads["model"], reads.get("model_sha256"))
    other_model = model is not None and not same_model(model, here, store.path)
    if other_model or reads["layer"] not in (None, store.manifest.layer):
        changed = "; the weights there have changed" if model is not None and model.name == here.name else ""
        raise UserError(
            f"{name} reads {reads['model']} layer {reads['layer']}, but {store.path} holds {here.name} layer "
            f"{store.manifest.layer}{changed if other_model else ''}; harvest held-out text with the same lm.path and "
            "lm.layer"
        )


def language_model(path: str | None, store: Store) -> lm.LanguageModel:
    """The language model at `path`, or of None where the store says it lies; checked by `check_language_model`."""
    model = lm.load(_place(ModelName.recorded(store.manifest), store) if path is None else path)
    check_language_model(model, store)
    return model


def check_language_model(model: lm.LanguageModel, store: Store) -> None:
    """Raises `UserError` where `store` was harvested from another language model, or with another tokenizer.

    So it does for a store of an array that does not hold the whole text that the language model would read.
    """
    dataset = store.manifest.dataset
    if not has_tokens(dataset) or "gaps" in dataset:
        lacks = "rows of documents with gaps or of different lengths" if "gaps" in dataset else "rows without token ids"
        raise UserError(
            f"the store {store.path} holds {lacks}, which no language model can read; leave lm=... out, or store whole "
            "documents of one length with their token ids"
        )
    recorded, found = ModelName.recorded(store.manifest), ModelName.of(model.name, model.sha256)
    if not same_model(found, recorded, store.path):
        raise UserError(_difference(found, recorded, store))
    if model.model.embed != store.embed or model.model.layers < store.manifest.layer:
        raise UserError(
            f"lm is {model.name} with {model.model.layers} layers of width {model.model.embed}, but the store "
            f"{store.path} holds layer {store.manifest.layer} of width {store.embed}; write the lm=... of the harvest"
        )
    vocabulary = store.manifest.tokenizer.get("sha256")
    if vocabulary not in (None, lm.fingerprint(model.tokenizer)["sha256"]):
        raise UserError(
            f"the tokenizer in {model.name} has another vocabulary than the one that {store.path} was harvested with; "
            "write the lm=... whose tokenizer was not changed"
        )


def _place(recorded: ModelName, store: Store) -> str:
    if recorded.name == "embedded":
        return recorded.name
    folders = recorded.folders(store.path)
    return str(folders[0]) if folders else recorded.name


def _difference(found: ModelName, recorded: ModelName, store: Store) -> str:
    said = f"lm is {found.name}, but the store {store.path} was harvested from {recorded.name}"
    if recorded.sha256 is not None:
        if found.name == recorded.name:
            return f"{said} when its weights were others; write the lm=... that still holds those, or harvest again"
        return f"{said}, and their weights differ; write the lm=... that holds the weights of the harvest"
    return (
        f"{said} and does not know its content; write lm={recorded.name}, from a working directory where that path "
        "holds the model, or harvest again"
    )

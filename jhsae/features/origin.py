"""Checks that an SAE, a store and a language model belong together: model, layer, width, tokenizer."""

from typing import Any

from jhsae import lm
from jhsae.data import Aligned, Hook, Stores, places_of
from jhsae.data.hook import RESIDUAL
from jhsae.data.same_model import ModelName, same_model
from jhsae.errors import UserError
from jhsae.sae import AbstractSAE


def check_origin(sae: AbstractSAE, about: dict[str, Any], store: Stores, name: str = "the SAE") -> None:
    """Raises `UserError` unless `store` has the width, the model and the layer that the SAE was trained on.

    `about` is that of `load_sae`; what a foreign SAE does not tell is not checked. `name` is what messages call it.
    """
    inputs = store.read_alone() if isinstance(store, Aligned) else store
    targets = store.targets if isinstance(store, Aligned) else ()
    if sae.embed != inputs.embed:
        raise UserError(
            f"{name} reads vectors of {sae.embed} numbers, but {inputs.path} holds activations of {inputs.embed}; "
            "write the store that was harvested from the model and layer of the SAE"
        )
    if sae.writes_input == bool(targets):
        mend = "leave target out" if targets else "write target=FOLDER, a store of what it writes"
        raise UserError(f"{name} writes {'what' if targets else 'something else than'} it reads; {mend}")
    if targets and sae.output != (found := sum(one.embed for one in targets)):
        raise UserError(f"{name} writes vectors of {sae.output} numbers, but the target holds {found}; write its own")
    read, written = places_of(store)
    _check_place(about["reads"], read, inputs, f"{name} reads")
    if targets and about.get("writes") is not None:
        _check_place(about["writes"], written, store, f"{name} writes")


def _check_place(known: dict[str, Any], hooks: tuple[Hook, ...], store: Stores, what: str) -> None:
    """Raises `UserError` where a store is of another model or hook than ``reads`` or ``writes`` of an SAE."""
    here = ModelName.recorded(store.manifest)
    model = None if known["model"] is None else ModelName(known["model"], known.get("model_sha256"))
    other_model = model is not None and not same_model(model, here, store.path)
    wanted = hooks_of(known)
    if other_model or (wanted is not None and wanted != hooks):
        changed = "; the weights there have changed" if model is not None and model.name == here.name else ""
        raise UserError(
            f"{what} {known['model']} {_words(wanted)}, but {store.path} holds {here.name} {_words(hooks)}"
            f"{changed if other_model else ''}; harvest held-out text with the same lm.path and lm.layer"
        )


def hooks_of(known: dict[str, Any]) -> tuple[Hook, ...] | None:
    """The hooks of ``reads`` or ``writes`` of an SAE; None where it is not known."""
    if known.get("hooks"):
        return tuple(Hook.parse(text) for text in known["hooks"])
    return None if known["layer"] is None else (Hook(known.get("hook", RESIDUAL), known["layer"]),)


def _words(hooks: tuple[Hook, ...] | None) -> str:
    return " and ".join(hook.words for hook in hooks or ()) or "layer None"


def language_model(path: str | None, store: Stores) -> lm.LanguageModel:
    """The language model at `path`, or of None where the store says it lies; checked by `check_language_model`."""
    model = lm.load(_place(ModelName.recorded(store.manifest), store) if path is None else path)
    check_language_model(model, store)
    return model


def check_language_model(model: lm.LanguageModel, store: Stores) -> None:
    """Raises `UserError` where `store` was harvested from another language model, or with another tokenizer."""
    recorded, found = ModelName.recorded(store.manifest), ModelName.of(model.name, model.sha256)
    if not same_model(found, recorded, store.path):
        raise UserError(_difference(found, recorded, store))
    places, width = [place for side in places_of(store) for place in side], store.manifest.embed
    if model.model.embed != width or model.model.layers < (deepest := max(places, key=lambda p: p.blocks)).blocks:
        where = store.manifest.place if model.model.embed != width else deepest
        raise UserError(
            f"lm is {model.name} with {model.model.layers} layers of width {model.model.embed}, but the store "
            f"{store.path} holds {where.words} of width {width}; write the lm=... of the harvest"
        )
    vocabulary = store.manifest.tokenizer.get("sha256")
    if vocabulary not in (None, lm.fingerprint(model.tokenizer)["sha256"]):
        raise UserError(
            f"the tokenizer in {model.name} has another vocabulary than the one that {store.path} was harvested with; "
            "write the lm=... whose tokenizer was not changed"
        )


def _place(recorded: ModelName, store: Stores) -> str:
    if recorded.name == "embedded":
        return recorded.name
    folders = recorded.folders(store.path)
    return str(folders[0]) if folders else recorded.name


def _difference(found: ModelName, recorded: ModelName, store: Stores) -> str:
    said = f"lm is {found.name}, but the store {store.path} was harvested from {recorded.name}"
    if recorded.sha256 is not None:
        if found.name == recorded.name:
            return f"{said} when its weights were others; write the lm=... that still holds those, or harvest again"
        return f"{said}, and their weights differ; write the lm=... that holds the weights of the harvest"
    return (
        f"{said} and does not know its content; write lm={recorded.name}, from a working directory where that path "
        "holds the model, or harvest again"
    )

"""The supported architectures by their model_type, and models of shapes alone."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, get_args, get_type_hints

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike

from jhsae.errors import UserError, nearest
from jhsae.lm.base import AbstractConfig, AbstractLM
from jhsae.lm.gemma2 import Gemma2
from jhsae.lm.gemma2_config import gemma2_config
from jhsae.lm.llama import Llama
from jhsae.lm.llama_config import llama_config
from jhsae.lm.neox import NeoX
from jhsae.lm.neox_config import neox_config


@dataclass(frozen=True)
class Family:
    """`config` reads a parsed config.json, whose name it gets for its errors; `model` computes."""

    config: Callable[[dict[str, Any], str], AbstractConfig]
    model: type[AbstractLM]


FAMILIES = {
    "gemma2": Family(gemma2_config, Gemma2),
    "llama": Family(llama_config, Llama),
    "mistral": Family(llama_config, Llama),
    "qwen2": Family(llama_config, Llama),
    "qwen3": Family(llama_config, Llama),
    "gpt_neox": Family(neox_config, NeoX),
}


def config_of(settings: dict[str, Any], source: str) -> AbstractConfig:
    """The config of a language model.

    Args:
        settings: A parsed config.json.
        source: Its path, for messages.

    Raises:
        UserError: An unsupported model_type, or a missing or unsupported setting.
    """
    kind = str(settings.get("model_type"))
    if kind not in FAMILIES:
        raise UserError(f"{source}: model_type is {kind!r}, supported: {', '.join(FAMILIES)}{_hint(kind)}")
    return FAMILIES[kind].config(settings, source)


def shapes(config: AbstractConfig, dtype: DTypeLike = jnp.float32) -> AbstractLM:
    """A model of abstract arrays.

    Args:
        config: Of any family.
        dtype: Of the weights.

    Returns:
        The model with a `jax.ShapeDtypeStruct` in place of every array.
    """
    model, dtype = FAMILIES[config.model_type].model, jnp.dtype(dtype)
    return eqx.filter_eval_shape(
        lambda: model(**_zeros(model, config, dtype), config=config, matmul_dtype=dtype.name)  # type: ignore[call-arg]
    )


def _zeros(module: type[eqx.Module], config: AbstractConfig, dtype: jnp.dtype) -> dict[str, Any]:
    """Every array field of a class of modules, in the sizes of its logical axes; None where `config` lacks it."""
    found: dict[str, Any] = {}
    hints = get_type_hints(module)
    for field in fields(module):  # type: ignore[arg-type]
        hint = hints[field.name]
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        if field.metadata.get("static", False):
            continue
        if issubclass(kinds[0], eqx.Module):
            found[field.name] = kinds[0](**_zeros(kinds[0], config, dtype))
        elif NoneType in get_args(hint) and field.name not in config.extras:
            found[field.name] = None
        else:
            found[field.name] = jnp.zeros([config.sizes()[axis] for axis in kinds[0].dim_str.split()], dtype)
    return found


def _hint(kind: str) -> str:
    hint = nearest(kind, FAMILIES)
    return hint if "did you mean" in hint else ""

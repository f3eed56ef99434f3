"""The supported architectures, one file each, and models of shapes alone.

To add one, write a file here that ends with ``FAMILY = Family(model_types, config, model)``:

- a config, a frozen dataclass under `AbstractConfig`: sizes and constants, and `to_hugging_face`;
- a function from a parsed config.json to it that refuses what the model does not compute (`jhsae.lm.settings`);
- an Equinox module with the weights of all blocks, stacked; annotations name their logical axes, which determine shapes
  (`AbstractConfig.pieces`) and sharding (`jhsae.lm.sharding`);
- a model under `AbstractLM`: `tensors` maps its leaves to the names in a checkpoint, `_start` is layer 0, `_block` one
  block, which passes what its hooks are to `tap`, `_head` the logits, `unembedding` the rows behind them.

Loading (sharded, quantised), saving, harvest, evaluation and plan need no other change. In a package of your own, the
entry point ``gptj = "my_package.gptj:FAMILY"`` of the group ``jhsae.families`` adds the model_type gptj. gpt2.py is one
to start from, tests/lm/toy_family.py a minimal one; hold it to transformers with a case in tests/lm/families.py.
"""

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from types import NoneType
from typing import Any, get_args, get_type_hints

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike

from jhsae.errors import UserError, one_line
from jhsae.lm.base import AbstractConfig, AbstractLM, Family

ENTRY_POINTS = "jhsae.families"


def family_of(model_type: str) -> Family | None:
    """The family of a model_type, or None.

    Raises:
        UserError: The package that adds it cannot be imported, or its entry point is no `Family`.
    """
    if model_type in _files():
        return _files()[model_type]
    for point in entry_points(group=ENTRY_POINTS, name=model_type):
        where = f"the entry point {point.name} = {point.value} of {ENTRY_POINTS}"
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"{where} cannot be loaded ({one_line(error)}); repair or remove its package") from error
        if not isinstance(found, Family):
            raise UserError(f"{where} is a {type(found).__name__}, expected a jhsae.lm.Family; repair its package")
        return found
    return None


def supported() -> list[str]:
    """Every model_type that can be loaded."""
    return [*_files(), *sorted(point.name for point in entry_points(group=ENTRY_POINTS) if point.name not in _files())]


def config_of(settings: dict[str, Any], source: str) -> AbstractConfig:
    """The config of a language model.

    Args:
        settings: A parsed config.json.
        source: Its path, for messages.

    Raises:
        UserError: An unsupported model_type, or a missing or unsupported setting.
    """
    kind = str(settings.get("model_type"))
    family = family_of(kind)
    if family is None:
        # No nearest name: config.json is written by programs, so that another name is another architecture.
        raise UserError(
            f"{source}: model_type is {kind[:80]!r}, supported: {', '.join(supported())}; write a model of one of "
            "them, or add the family in one file (jhsae/lm/families/__init__.py says how)"
        )
    return family.config(settings, source)


def model_of(config: AbstractConfig) -> type[AbstractLM]:
    """The class of the models of a config."""
    family = family_of(config.model_type)
    assert family is not None, config.model_type
    return family.model


def shapes(config: AbstractConfig, dtype: DTypeLike = jnp.float32) -> AbstractLM:
    """A model of abstract arrays.

    Args:
        config: Of any family.
        dtype: Of the weights.

    Returns:
        The model with a `jax.ShapeDtypeStruct` in place of every array.
    """
    model, dtype = model_of(config), jnp.dtype(dtype)
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


@cache
def _files() -> dict[str, Family]:
    """The families of this folder by model_type."""
    found: dict[str, Family] = {}
    for file in pkgutil.iter_modules(__path__):
        family = vars(importlib.import_module(f"{__name__}.{file.name}")).get("FAMILY")
        found |= dict.fromkeys(family.model_types, family) if family else {}
    return found

"""jhsae: hierarchical sparse autoencoders on language-model activations, in JAX and Equinox.

The names below, and the packages (``jhsae.losses``, ``jhsae.data``, ...), are imported when they are first used, so
that ``jhsae --help`` does not wait for JAX. A module that has moved is found by its old name too, with a
`DeprecationWarning` (`jhsae.config.aliases`).
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jhsae.codes import Codes as Codes
    from jhsae.codes import TreeCodes as TreeCodes
    from jhsae.data import Store as Store
    from jhsae.errors import UserError as UserError
    from jhsae.losses import Objective as Objective
    from jhsae.sae import FlatSAE as FlatSAE
    from jhsae.sae import GatedSAE as GatedSAE
    from jhsae.sae import HierarchicalSAE as HierarchicalSAE
    from jhsae.sae import MatchingPursuitSAE as MatchingPursuitSAE
    from jhsae.sae import PursuitSAE as PursuitSAE
    from jhsae.sae import mixture_of_experts_v2 as mixture_of_experts_v2
    from jhsae.sae import teacher_initialized as teacher_initialized
    from jhsae.sparsify import BatchTopK as BatchTopK
    from jhsae.sparsify import JumpReLU as JumpReLU
    from jhsae.sparsify import ReLU as ReLU
    from jhsae.sparsify import TopK as TopK
    from jhsae.teacher import Teacher as Teacher
    from jhsae.training.checkpoint import load_sae as load_sae
    from jhsae.training.checkpoint import save_sae as save_sae
    from jhsae.training.fit import fit as fit
    from jhsae.usage import Context as Context

__version__ = "0.1.0"

_HOME = {
    "load_sae": "jhsae.training.checkpoint",
    "save_sae": "jhsae.training.checkpoint",
    "Codes": "jhsae.codes",
    "TreeCodes": "jhsae.codes",
    "Store": "jhsae.data",
    "UserError": "jhsae.errors",
    "Objective": "jhsae.losses",
    "FlatSAE": "jhsae.sae",
    "GatedSAE": "jhsae.sae",
    "HierarchicalSAE": "jhsae.sae",
    "MatchingPursuitSAE": "jhsae.sae",
    "PursuitSAE": "jhsae.sae",
    "mixture_of_experts_v2": "jhsae.sae",
    "teacher_initialized": "jhsae.sae",
    "BatchTopK": "jhsae.sparsify",
    "JumpReLU": "jhsae.sparsify",
    "ReLU": "jhsae.sparsify",
    "TopK": "jhsae.sparsify",
    "Teacher": "jhsae.teacher",
    "fit": "jhsae.training.fit",
    "Context": "jhsae.usage",
}
_MODULES = {
    "codes", "config", "constraint", "data", "errors", "evals", "features", "init", "interop", "lm", "losses", "metric",
    "ops", "optimizer", "parallel", "resampling", "sae", "schedule", "sparsify", "teacher", "training", "usage",
    "worlds",
}  # fmt: skip
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"jhsae.{name}")
    if name not in _HOME:
        known = ", ".join([*__all__, *sorted(_MODULES)])
        raise AttributeError(f"module 'jhsae' has no attribute '{name}'; public names: {known}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])


class _Moved(MetaPathFinder, Loader):
    """Finds a module of this package by the name that it once had. Asked last, so it costs other imports nothing."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if not fullname.startswith("jhsae.") or fullname.startswith("jhsae.config"):
            return None
        return ModuleSpec(fullname, self) if _current(fullname) != fullname and _is_module(_current(fullname)) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warnings.warn(f"{spec.name} is now {_current(spec.name)}", DeprecationWarning, stacklevel=2)
        return _Forwarded(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Everything in it is looked up when it is asked for."""


class _Forwarded(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module, _, member = _current(f"{self.__name__}.{name}").rpartition(".")
        return getattr(import_module(module), member)


def _is_module(name: str) -> bool:
    """False for a class of a module: ``from jhsae.loop import Phase`` asks for a module of that name too."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _current(name: str) -> str:
    return import_module("jhsae.config.aliases").current(name)


sys.meta_path.append(_Moved())

"""jhsae: hierarchical sparse autoencoders on language-model activations, in JAX and Equinox.

The names below are imported when they are first used, so that ``jhsae --help`` does not wait for JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jhsae.checkpoint import load_sae as load_sae
    from jhsae.codes import Codes as Codes
    from jhsae.codes import TreeCodes as TreeCodes
    from jhsae.data import Store as Store
    from jhsae.errors import UserError as UserError
    from jhsae.fitting import fit as fit
    from jhsae.losses import Objective as Objective
    from jhsae.sae import FlatSAE as FlatSAE
    from jhsae.sae import GatedSAE as GatedSAE
    from jhsae.sae import HierarchicalSAE as HierarchicalSAE
    from jhsae.sae import mixture_of_experts_v2 as mixture_of_experts_v2
    from jhsae.sae import teacher_initialized as teacher_initialized
    from jhsae.sparsify import BatchTopK as BatchTopK
    from jhsae.sparsify import JumpReLU as JumpReLU
    from jhsae.sparsify import ReLU as ReLU
    from jhsae.sparsify import TopK as TopK
    from jhsae.teacher import Teacher as Teacher
    from jhsae.usage import Context as Context

_HOME = {
    "load_sae": "jhsae.checkpoint",
    "Codes": "jhsae.codes",
    "TreeCodes": "jhsae.codes",
    "Store": "jhsae.data",
    "UserError": "jhsae.errors",
    "Objective": "jhsae.losses",
    "FlatSAE": "jhsae.sae",
    "GatedSAE": "jhsae.sae",
    "HierarchicalSAE": "jhsae.sae",
    "mixture_of_experts_v2": "jhsae.sae",
    "teacher_initialized": "jhsae.sae",
    "BatchTopK": "jhsae.sparsify",
    "JumpReLU": "jhsae.sparsify",
    "ReLU": "jhsae.sparsify",
    "TopK": "jhsae.sparsify",
    "Teacher": "jhsae.teacher",
    "fit": "jhsae.fitting",
    "Context": "jhsae.usage",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jhsae' has no attribute '{name}'; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__

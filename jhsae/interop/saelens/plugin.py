"""Plug-in: after importing this module, SAELens loads what `jhsae.interop.torch_hsae` and `torch_pursuit` write.

    import jhsae.interop.saelens.plugin
    from sae_lens import SAE
    sae = SAE.load_from_disk("folder")

It registers the architectures "jhsae_hsae" and "jhsae_pursuit" (`sae_lens.register_sae_class`). The forward pass is
that of the shipped torch module; W_enc, W_dec and the biases are its flat view, made when the weights are loaded. For
inference: saving writes the weights as they were trained.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from sae_lens import SAE, SAEConfig, register_sae_class
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor, nn

from jhsae.assets.torch import hsae, pursuit

PREFIX = "structure.weights."


@dataclass
class AbstractConfig(SAEConfig):
    """SAELens's keys, and under `hsae` what the torch module reads."""

    metadata: Any = field(default_factory=SAEMetadata)  # SAELens's from_dict passes a dict first
    hsae: dict[str, Any] = field(default_factory=dict)
    rescale_acts_by_decoder_norm: bool = False


@dataclass
class HSAEConfig(AbstractConfig):
    """Of a hierarchical SAE."""

    @classmethod
    def architecture(cls) -> str:
        """The name in cfg.json."""
        return "jhsae_hsae"


@dataclass
class PursuitConfig(AbstractConfig):
    """Of a pursuit."""

    @classmethod
    def architecture(cls) -> str:
        """The name in cfg.json."""
        return "jhsae_pursuit"


C = TypeVar("C", bound=AbstractConfig)
Structure = hsae.Structure | pursuit.Structure


class AbstractInSAELens(SAE[C]):
    """An SAE of ours with SAELens's interface; `hook_sae_acts_pre` never fires, there is no flat encoder."""

    b_enc: nn.Parameter

    @staticmethod
    @abstractmethod
    def made_of(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Structure:
        """The weights as they were trained, and the forward pass that finds the codes."""

    def initialize_weights(self) -> None:
        """The parameters, without values: `load_from_disk` puts them in."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)

        shapes = self.cfg.hsae.get("tensors")
        if not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
            raise ValueError("cfg.json describes no tensors under hsae.tensors; copy the folder again")
        tensors = {name: empty(*shape) for name, shape in shapes.items()}
        self.structure = self.made_of(self.cfg.hsae, tensors)
        for name, shape in self._flat_shapes().items():
            setattr(self, name, nn.Parameter(empty(*shape), requires_grad=False))

    def encode(self, x: Tensor) -> Tensor:
        """Activations [..., d_in] -> codes [..., d_sae]."""
        x = self.hook_sae_input(self.reshape_fn_in(x.to(self.dtype)))
        codes = self.structure(x.reshape(-1, x.shape[-1])) * self.norms
        return self.hook_sae_acts_post(codes.reshape(*x.shape[:-1], -1))

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Codes [..., d_sae] -> activations [..., d_in]."""
        out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(out, self.d_head)

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """From the weights of the file to the parameters of this module. ValueError: they do not fit cfg.json."""
        flat = self.made_of(self.cfg.hsae, state_dict).flattened()
        weights = {PREFIX + name: tensor for name, tensor in state_dict.items()}
        state_dict.clear()
        state_dict.update(flat | weights)

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Keeps only the weights as they were trained."""
        weights = {name.removeprefix(PREFIX): w for name, w in state_dict.items() if name.startswith(PREFIX)}
        state_dict.clear()
        state_dict.update(weights)

    def fold_W_dec_norm(self) -> None:  # noqa: N802  (SAELens's name)
        """Nothing to do: decoder rows have norm 1, and the norms are in the codes."""

    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Refused: the normaliser is part of the exported SAE."""
        raise NotImplementedError("this SAE reads raw activations; its own normaliser is part of it")

    def fold_activation_whitening(self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor) -> None:
        """Refused: the normaliser is part of the exported SAE."""
        raise NotImplementedError("this SAE reads raw activations; its own normaliser is part of it")

    def _flat_shapes(self) -> dict[str, tuple[int, ...]]:
        d_in, d_sae = self.cfg.d_in, self.cfg.d_sae
        return {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "norms": (d_sae,)}


class HSAEInSAELens(AbstractInSAELens[HSAEConfig]):
    """A hierarchical SAE."""

    @staticmethod
    def made_of(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Structure:
        return hsae.Structure(settings, weights)


class PursuitInSAELens(AbstractInSAELens[PursuitConfig]):
    """A dictionary that a pursuit encodes."""

    @staticmethod
    def made_of(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Structure:
        return pursuit.Structure(settings, weights)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**40 for size in value)


register_sae_class(HSAEConfig.architecture(), HSAEInSAELens, HSAEConfig)
register_sae_class(PursuitConfig.architecture(), PursuitInSAELens, PursuitConfig)

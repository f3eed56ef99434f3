"""SAEs of other libraries, and of ours for torch, each in the working directory, and the doors that read them."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from basics import ABOUT, ATOMS, EMBED, EXPERTS, FEATURES, SUB, command, normal, write_json
from outcomes import as_command
from safetensors.numpy import save_file

from jhsae.assets.torch.hsae import HSAE
from jhsae.data import ConstantNorm, Identity
from jhsae.errors import UserError
from jhsae.interop import saelens, torch_hsae
from jhsae.sae import FlatSAE, HierarchicalSAE
from jhsae.sparsify import ReLU, TopK


def saelens_files() -> None:
    """A SAELens directory."""
    sae = FlatSAE(EMBED, FEATURES, ReLU(), key=jax.random.key(0))
    saelens.write(Path("sae"), sae, Identity(), ABOUT, np.full(FEATURES, 0.1))


def dictionary() -> None:
    """A TopK SAE of dictionary_learning."""
    tensors = {
        "encoder.weight": normal(FEATURES, EMBED), "decoder.weight": normal(EMBED, FEATURES),
        "encoder.bias": normal(FEATURES), "b_dec": normal(EMBED), "k": np.array(3), "threshold": np.float32(0.1),
    }  # fmt: skip
    trainer = {"dict_class": "AutoEncoderTopK", "k": 3, "activation_dim": EMBED, "dict_size": FEATURES, "layer": 3}
    write_json(Path("sae/config.json"), {"trainer": trainer | {"lm_name": "a/b"}, "buffer": {"io": "out"}})
    save_file({key: np.asarray(tensor) for key, tensor in tensors.items()}, Path("sae/ae.safetensors"))


def pickled() -> None:
    """The same as a pickle of torch."""
    import torch
    from safetensors.numpy import load_file

    dictionary()
    tensors = load_file(Path("sae/ae.safetensors"))
    torch.save({key: torch.tensor(tensor) for key, tensor in tensors.items()}, Path("sae/ae.pt"))
    (Path("sae/ae.safetensors")).unlink()


def eleuther() -> None:
    """An SAE of EleutherAI sparsify."""
    hookpoint = Path("sae/layers.3")
    write_json(hookpoint / "cfg.json", {"d_in": EMBED, "k": 3, "num_latents": FEATURES, "activation": "topk"})
    write_json(Path("sae/config.json"), {"model": "a/b"})
    tensors = {"encoder.weight": normal(FEATURES, EMBED), "W_dec": normal(FEATURES, EMBED)}
    save_file(tensors | {"encoder.bias": normal(FEATURES), "b_dec": normal(EMBED)}, hookpoint / "sae.safetensors")


def openai() -> None:
    """An SAE of openai/sparse_autoencoder, as safetensors."""
    tensors = {"pre_bias": normal(EMBED), "latent_bias": normal(FEATURES), "encoder.weight": normal(FEATURES, EMBED)}
    tensors["decoder.weight"] = normal(EMBED, FEATURES)
    save_file(tensors, Path("sae.safetensors"), {"activation": "TopK", "k": "3"})


def gemma() -> None:
    """An SAE of Gemma Scope, first edition."""
    place = Path("layer_3/width")
    place.mkdir(parents=True)
    arrays = {"W_enc": normal(EMBED, FEATURES), "W_dec": normal(FEATURES, EMBED), "b_enc": normal(FEATURES)}
    np.savez(place / "params.npz", **arrays, b_dec=normal(EMBED), threshold=np.full(FEATURES, 0.1, np.float32))


def imports(place: str, *words: str) -> Callable[[], Callable[[], int]]:
    """``jhsae import`` of a file or folder of the artifact."""
    return lambda: command("import", f"source={place}", "out=out/imported", *words)


def torch_files() -> None:
    """An H-SAE for torch."""
    made = HierarchicalSAE(EMBED, EXPERTS, SUB, ATOMS, TopK(2), TopK(1), key=jax.random.key(0))
    torch_hsae.write(Path("sae"), made, ConstantNorm(), ABOUT)


def in_torch() -> Callable[[], int]:
    """The shipped module stands alone: its sentences are ValueErrors that name one of its files."""

    def load() -> None:
        import torch

        try:
            HSAE.load("sae").encode(torch.ones(2, EMBED))
        except ValueError as error:
            if not any(name in str(error) for name in ("cfg.json", "sae_weights.safetensors", "unknown sparsifier")):
                raise
            raise UserError(str(error)) from error

    return as_command(load)

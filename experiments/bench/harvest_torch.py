"""The forward pass of `jhsae harvest` beside that of transformers in torch, on one Gemma-2 with random weights.

    pip install torch==2.13.0
    python experiments/bench/harvest_torch.py --threads 1 --json experiments/bench/harvest_torch_1.json

transformers writes the model, both sides read it: token ids in, the residual stream after the last block as float32 in
NumPy out. Ours is what `jhsae harvest` runs (`jhsae.activations.streams.Streams`), without the packing of text and the
store; torch's ends before the final norm and the logits, as ours does, in eager attention, the only form that caps the
logits of attention. Both must agree to 1e-4 of the greatest entry before anything is timed. float32, interleaved. The
default sizes are those of the embedded language model, up to the layer that `harvest/embedded.yaml` reads.
"""

import os
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jhsae import lm
from jhsae.activations.streams import Streams
from jhsae.bench.measurement import environment, interleave, load_average, write
from jhsae.data import Hook
from jhsae.errors import UserError
from jhsae.parallel.mesh import MeshShape, make_mesh

AGREE = 1e-4
HEAD = 64  # dimensions of a head of attention
PAUSE = 0.1  # seconds before a pass, for threads that spin to sleep
Pass = Callable[[], np.ndarray]


def both(words: Namespace) -> dict[str, Pass]:
    """The forward pass of each side on the same weights and the same tokens."""
    settings = {
        "vocab_size": words.vocab,
        "hidden_size": words.embed,
        "intermediate_size": 4 * words.embed,
        "num_hidden_layers": words.layers,
        "num_attention_heads": words.embed // HEAD,
        "num_key_value_heads": max(1, words.embed // HEAD // 2),
        "head_dim": HEAD,
        "query_pre_attn_scalar": HEAD,
        "sliding_window": words.context // 2,
        "attn_implementation": "eager",
    }
    torch.manual_seed(0)
    torch.set_num_threads(words.threads)
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**settings)).eval()
    tokens = np.random.default_rng(0).integers(words.vocab, size=(words.batch, words.context), dtype=np.uint32)
    mesh = make_mesh(MeshShape(data=1), devices=1)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(lm.bundled()).save_pretrained(folder)
        loaded = lm.load(folder, layers=words.layers, dtype=jnp.dtype("float32"), mesh=mesh)
    streams = Streams(loaded.model, (Hook("resid", words.layers),), mesh, words.batch, "float32")
    backbone, ids = model.model, torch.from_numpy(tokens.astype(np.int64))
    backbone.norm = torch.nn.Identity()  # what it returns is then the residual stream

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            return backbone(input_ids=ids, use_cache=False).last_hidden_state.numpy()

    return {"jhsae": lambda: np.asarray(streams(tokens)[0]), "transformers": theirs}


def error(sides: dict[str, Pass]) -> float:
    """The greatest difference over the greatest entry. Raises `UserError` where it is more than `AGREE`."""
    here, there = (one() for one in sides.values())
    found = float(np.abs(here - there).max() / np.abs(there).max())
    if not found <= AGREE:
        raise UserError(f"the residual streams differ by {found:.1e}, expected at most {AGREE}")
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    for name, number in (("embed", 256), ("layers", 2), ("vocab", 8192), ("batch", 32), ("context", 128)):
        parser.add_argument(f"--{name}", type=int, default=number, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (%(default)s)")
    parser.add_argument("--seconds", type=float, default=180, help="no further round after so long (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    words, before = parser.parse_args(), load_average()
    if words.embed < HEAD or words.embed % HEAD:
        parser.error(f"--embed is {words.embed}, expected a multiple of {HEAD}, the size of a head")
    sides = both(words)
    apart, tokens = error(sides), words.batch * words.context
    times = interleave(sides, words.rounds, words.seconds, dict.fromkeys(sides, lambda: time.sleep(PAUSE)))
    ratio, found = times.ratio("transformers", "jhsae"), dict[str, Any]()
    for name in sides:
        rate, ms = times.per_second(name, tokens), times.milliseconds(name)
        print(f"{name:14}{ms.median:9.1f} ms{rate.median:12,.0f} tokens/s ({rate.min:,.0f} to {rate.max:,.0f})")
        found[name] = {"ms": asdict(ms), "tokens_per_second": asdict(rate)}
    spread = f"{ratio.median:.2f} ({ratio.min:.2f} to {ratio.max:.2f})"
    print(f"time of transformers over ours, round by round: {spread}; greatest relative difference {apart:.1e}")
    settings = {name: getattr(words, name) for name in ("embed", "layers", "vocab", "batch", "context", "threads")}
    peers = {name: version(name) for name in ("torch", "transformers")}
    about = {"settings": settings, "error": apart, "transformers_over_jhsae": asdict(ratio), "sides": found}
    about |= {"rounds": times.rounds, "seconds": times.seconds, "peers": peers}
    write(about | {"load_before": before, "load_after": load_average()} | environment(), words.json)


if __name__ == "__main__":
    main()

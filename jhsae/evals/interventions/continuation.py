"""Greedy continuations of prompts, with and without an edit."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jhsae.evals.interventions.model import Edits, Norm, SplicedLM, logits_at
from jhsae.evals.interventions.prompts import Positions, Prompts, of_ids
from jhsae.ranges import Count, ranged


@ranged
def continued(
    inside: SplicedLM,
    prompts: str | Sequence[str] | Prompts,
    count: Count,
    edits: Edits | None = None,
    *,
    positions: Positions = "all",
    norm: Norm = "free",
) -> list[list[int]]:
    """The likeliest next token, `count` times: ids of the new tokens of each prompt, up to the end of the text.

    Args:
        inside: the language model with the SAE in it.
        prompts: texts, or their token ids.
        count: of new tokens, at most.
        edits: as in `SplicedLM.run`; they hold for the new tokens too.
        positions: "last" edits the last token of a prompt and every new one.
        norm: as in `SplicedLM.run`.

    Raises:
        UserError: as `SplicedLM.run`, and where the prompt and the new tokens are more than the model takes.
    """
    given, rows = inside.prompts(prompts).lists(), inside.rows(edits or {})
    ids = [list(one) for one in given]
    starts = jnp.asarray([len(one) - 1 for one in given])[:, None]
    ends = inside.model.tokenizer.eos_token_id
    time = max(map(len, given)) + count
    for _ in range(count):
        now = of_ids(ids, inside.model, time - max(map(len, ids)))
        read = inside.read(now)
        where = now.live & (jnp.arange(time) >= (starts if positions == "last" else 0))
        stream = inside.edited(now, read, rows, where, norm)
        logits = logits_at(inside.model.model, stream, inside.layer, now.last)
        following = np.asarray(jnp.argmax(logits, axis=-1))
        done = [len(one) > len(start) and one[-1] == ends for one, start in zip(ids, given, strict=True)]
        if all(done):
            break
        for one, token, over in zip(ids, following.tolist(), done, strict=True):
            if not over:
                one.append(token)
    return [one[len(start) :] for one, start in zip(ids, given, strict=True)]

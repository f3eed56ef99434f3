"""Transcoders, crosscoders and cross-layer transcoders written out token by token, feature by feature."""

import jax.numpy as jnp


def topk_codes(pre, k):
    """The k largest positive pre-activations of one token."""
    order = jnp.argsort(-pre)[:k]
    return jnp.zeros_like(pre).at[order].set(jnp.maximum(pre[order], 0))


def transcoder(x, sae, k, skip=None):
    """One token: read x, write y."""
    codes = topk_codes(sae.W_enc @ x + sae.b_enc, k)
    return codes @ sae.W_dec + sae.b_dec + (0 if skip is None else skip @ x), codes


def crosscoder(x, sae, k, layers):
    """One token of several layers: one code, whose encoder adds up over layers; every layer is written."""
    parts = jnp.split(x, layers)
    enc, dec, bias = (jnp.split(a, layers, axis=-1) for a in (sae.W_enc, sae.W_dec, sae.b_dec))
    norms = sum(jnp.linalg.norm(part, axis=1) for part in dec)
    pre = sum(e @ (part - b) for e, part, b in zip(enc, parts, bias, strict=True)) + sae.b_enc
    codes = topk_codes(pre * norms, k)
    return jnp.concatenate([(codes / norms) @ d + b for d, b in zip(dec, bias, strict=True)]), codes


def cross_layer(x, sae, k, layers):
    """One token of several layers: features of layer l read it and write to it and all after it."""
    parts, enc, bias = jnp.split(x, layers), jnp.split(sae.W_enc, layers), jnp.split(sae.b_enc, layers)
    codes = [topk_codes(enc[i] @ parts[i] + bias[i], k) for i in range(layers)]
    dec = [jnp.split(rows, layers, axis=1) for rows in jnp.split(sae.W_dec, layers)]
    written = [sum(codes[source] @ dec[source][to] for source in range(to + 1)) for to in range(layers)]
    return jnp.concatenate(written) + sae.b_dec, jnp.concatenate(codes)


def tree_of_layer(x, sae, layer, k, layers):
    """One token: what the experts of one layer and their atoms write, the whole of it and that of the parents."""
    own = slice(layer * (sae.experts // layers), (layer + 1) * (sae.experts // layers))
    parents = topk_codes(sae.router_enc[own] @ x + sae.b_enc[own], k)
    up, router = sae.up[own], sae.router_dec[own]
    from_parents, y = parents @ router, parents @ router
    for e in range(len(parents)):
        children = topk_codes(sae.atom_enc[own][e] @ (sae.down[own][e] @ x) + sae.b_atom[own][e], 1)
        y = y + (parents[e] > 0) * (children @ sae.atom_dec[own][e]) @ up[e]
    return y, from_parents


def hierarchical(x, sae, k, layers=1):
    """One token: a hierarchical transcoder, of several layers where each writes to itself and those after it."""
    size = sae.router_dec.shape[1] // layers
    y, upper = sae.b_dec, sae.b_dec
    for layer, part in enumerate(jnp.split(x, layers)):
        whole, parents = tree_of_layer(part, sae, layer, k, layers)
        allowed = jnp.arange(len(y)) >= layer * size
        y, upper = y + allowed * whole, upper + allowed * parents
    return y, upper

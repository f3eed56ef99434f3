"""SAELens directories: ``write`` makes one that ``sae_lens.SAE.load_from_disk`` loads, ``read`` reads one.

A directory holds ``cfg.json`` and ``sae_weights.safetensors`` (W_enc [d_in, d_sae], W_dec [d_sae, d_in]), perhaps
``sparsity.safetensors``; a training checkpoint also ``activation_scaler.json`` and
``activation_whitening.safetensors``. Verified against the source of sae-lens 6.54.12.
"""

from jhsae.interop.saelens.read import read as read
from jhsae.interop.saelens.write import check as check
from jhsae.interop.saelens.write import write as write

"""An SAE against a world whose features and hierarchy are known.

matching (of latents with features), counts (what fires together), forest (the SAE's own tree) -> levels,
agreement, interference (the metrics) -> evaluate (all of them in one pass), splitting (SAEs of growing width).
"""

from jhsae.evals.truth.agreement import agreement as agreement
from jhsae.evals.truth.evaluate import truth as truth
from jhsae.evals.truth.forest import latent_parents as latent_parents
from jhsae.evals.truth.splitting import splitting as splitting

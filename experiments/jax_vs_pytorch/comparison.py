"""The rows of the original comparison: what it says of both designs, what is wrong with it, the axes that swap it."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of the original comparison.

    Args:
        name: its title.
        jax: what it says of MixtureOfExperts_v2.
        pytorch: what it says of PolytopeSAE.
        axes: of configs/ablate/jax_vs_pytorch.yaml that swap the choice; none for a row without a measured effect.
        note: where the row is wrong or compares what is not comparable, or why nothing is measured.
        see: whether its effect is that of another row.
    """

    name: str
    jax: str
    pytorch: str
    axes: tuple[str, ...]
    note: str
    see: bool = False


SIZES = (
    Row("Experts", "16,384", "80 (80-256)", ("experts",), "Parameters go with it. Configs of the second: 16 to 768."),
    Row("Subspace dimension", "4", "96", ("sub",), "Parameters go with it. Its main config has 32."),
    Row(
        "both at once", "16,384 of 4", "80 of 96", ("experts_and_sub",),
        "Not in the original: at equal parameters the two rows above are one choice.",
    ),
    Row("Atoms per expert", "16", "32", ("atoms",), "Its main config has 8."),
    Row(
        "Top-k", "32", "8", ("top_k",),
        "Not comparable: 32 are asked for, and those below the offset are dropped (about 8 are left, inferred). "
        "PolytopeSAE's main config has 1.",
    ),
    Row("Batch", "32,512", "8,192", ("batch",), "Main config: 1,024. Equal tokens here, at the pole's rate."),
    Row(
        "L1 penalty", "1e-3", "1e-3 (same)", ("l1",),
        "Not the same: a sum over codes beside an error summed over dimensions, against a mean over experts of binary "
        "codes, which is constant: no gradient. With magnitudes, as at the pole geometry, it has one.",
    ),
    Row(
        "Orthogonality penalty", "1e-1", "1e-3 to 3e-4 (33-333x lighter)", (),
        "The reverse: times its weight the first is about 6e-6 (divided by n² - n; the diagonal is subtracted as a "
        "row), the second about 3.9 at the start (a raw sum). Its swaps are those of Regularization.", True,
    ),
)  # fmt: skip
TRAINING = (
    Row(
        "Learning rate", "peak 5e-4, from 1e-11", "3e-4, constant", ("schedule",),
        "The first ends at 2.8e-4: its cosine is for twice the steps. Swapped is the form; the peaks tried are above.",
    ),
    Row("Warm-up steps", "1,000", "none", ("warm_up",), "1,000 of 60,799; here a tenth of the run."),
    Row("Norm clipping", "0.75", "1.0", ("clip",), "Bounds of two losses of different scale."),
    Row(
        "Epochs", "4", "by steps", (),
        "Wrong: the loop of the first runs 2, whatever the config says. A run here reads a third of its store once.",
    ),
    Row(
        "Stages", "one", "two (freeze, adapt)", ("stages",),
        "As published the causal penalty is on only while all that it touches is frozen: no gradient.",
    ),
)  # fmt: skip
CHOICES = (
    Row(
        "Weight tying", "tied", "untied", ("tying",),
        "Wrong: the first is tied at the start and free from the first update on; `hard` is what the row says. "
        "Tied options of the second crash.",
    ),
    Row(
        "Routing", "hard top-k", "Gumbel-softmax, differentiable", ("routing", "temperature"),
        "Wrong: the snippet discards the Gumbel sample, and its router gets no gradient; as published, gradients reach "
        "the selected experts alone, and codes are binary: no magnitude reaches the decoder. The noise is for inputs "
        "of norm 16 or more: `gumbel_rescaled` has a sixteenth of it.",
    ),
    Row(
        "Normalization", "gradient projection", "simple L2 norm", ("normalization",),
        "Both renormalise after every step; the second not periodically, as the text says.",
    ),
    Row(
        "Regularization", "cross-orthogonality", "bi-orthogonality and causal", ("regularization",),
        "Weights: see the orthogonality penalty.",
    ),
    Row(
        "Initialization", "random (he-uniform)", "teacher", ("initialization",),
        "The second leaves its encoders random. `teacher` gives 56 of 256 experts; the null is `permuted_teacher`.",
    ),
)  # fmt: skip
TEXT = (
    Row(
        "Router activation", "leaky, learned offset", "logits", ("offset",),
        "Wrong: slope 0 at the router (0.01 at the atoms), and an offset without gradient.",
    ),
    Row(
        "Bias", "geometric median", "decoder bias", ("biases",),
        "Wrong: the median is loaded and set to zeros, and off by default.",
    ),
    Row(
        "Geometry", "Euclidean", "causal", ("metric",),
        "The published one is the unembedding's side of the metric, applied to residual vectors.",
    ),
    Row(
        "Top-k method", "efficient scan", "`torch.topk`", (),
        "Wrong: the scan is 32 full passes. Every exact method selects the same experts: no effect to measure.",
    ),
    Row(
        "Data", "billions of tokens", "prompts of concepts", (),
        "Here both read one store. The second trains on the activations of its prompts (at most about 37,000), on all "
        "of which its teacher was estimated.",
    ),
    Row("(order of the data)", "", "", ("order",), "Not in the original: a swap that means nothing, for comparison."),
)  # fmt: skip
TABLES = {"sizes": SIZES, "training": TRAINING, "choices": CHOICES, "text": TEXT}

"""The words that can be typed: a row for each, and the file of that name in this folder. Imports nothing heavy."""

import importlib
from keyword import iskeyword
from types import ModuleType
from typing import NamedTuple


class Verb(NamedTuple):
    """What ``--help`` says of a verb.

    A verb with a config has in its module the class of that config (``Train``) and ``run(config)``; `default` is its
    YAML when none is given, and a `bare` verb needs none: it starts from the defaults of its keys. A verb with `flags`
    has ``add_arguments(parser)`` and ``run(arguments) -> exit code``; one that several processes run as one is
    `together`. `notes` are printed as paragraphs.
    """

    summary: str
    reads: str
    writes: str
    example: str
    default: str | None = None
    bare: bool = False
    flags: bool = False
    together: bool = False
    notes: tuple[str, ...] = ()

    @property
    def config_word(self) -> str:
        """How a usage line names the config."""
        return "[CONFIG.yaml]" if self.default or self.bare else "CONFIG.yaml"


VERBS = {
    "quickstart": Verb(
        "run the whole pipeline on the language model that comes with the package",
        "the bundled language model and WordNet subset; no network, no GPU",
        "one folder with the store, the teacher, the trained SAEs, their results and the report",
        "jhsae quickstart out=runs/quickstart",
        "quickstart.yaml",
    ),
    "harvest": Verb(
        "write the residual-stream activations of a language model into a store",
        "a language model (a folder, a hub name, or 'embedded') and a source of text",
        "a store: activation rows, tokens and a manifest",
        "jhsae harvest harvest/gemma2_2b.yaml out=stores/gemma-2-2b-l20",
        together=True,
        notes=(
            "Models: GPT-2, Gemma-2, Gemma-3 (its language model), Llama, Mistral, Qwen 2 and 3, GPT-NeoX (Pythia), "
            "from a folder or the Hugging Face hub; each equals transformers to 1e-5 on random small checkpoints "
            "(tests/lm). Another family is one file (jhsae/lm/families/__init__.py).",
            "Text: one column of .jsonl, .json or .parquet, or the paragraphs of .txt. Rows without text (null, "
            "missing, empty, not Unicode) are skipped, counted and recorded in the manifest; a value of another "
            "kind is an error.",
            "Several layers, lm.layer=[6,13,20] out=stores/l{layer}, are harvested in one pass. An interrupted "
            "harvest resumes.",
            "dtype=int8 needs half the space of bfloat16; its error and its effect on training: "
            "experiments/int8/README.md.",
        ),
    ),
    "world": Verb(
        "make synthetic activations whose features and hierarchy are known",
        "a config: trees, firing rates, magnitudes, correlation, feature vectors",
        "a world: a folder that jhsae train reads in place of a store, and SAELens as a SyntheticModel",
        "jhsae world worlds/tree_336.yaml out=worlds/tree_336",
        notes=(
            "Train on it: jhsae train quickstart/scale.yaml data.store=null "
            "data.live._target_=jhsae.worlds.WorldActivations data.live.path=worlds/tree_336 sae.embed=64.",
            "SAELens has no place for noise and for a feature's second parent and loads the world without them.",
        ),
    ),
    "teach": Verb(
        "estimate concept directions from an ontology, to start an SAE from",
        "WordNet, and a language model's unembedding or its activations on prompts",
        "a teacher: concept and subspace vectors with their hierarchy",
        "jhsae teach teacher/gemma2_2b.yaml out=teachers/gemma-2-2b",
    ),
    "train": Verb(
        "train one SAE",
        "a store and, where the config names one, a teacher",
        "a run folder: config.yaml, run.json, metrics.jsonl, timing.jsonl, checkpoints/, sae/",
        "jhsae train scale.yaml data.store=stores/gemma-2-2b-l20 out=runs/scale",
        together=True,
        notes=(
            "An existing run is resumed, never overwritten. Checkpoints are saved asynchronously and restored onto "
            "any mesh and number of processes, bit for bit on the same mesh; a corrupt one is set aside with a "
            "warning, and the one before it is restored. SIGTERM saves and ends with exit code 143.",
            "mesh.data devices share the batch and the optimizer's moments (ZeRO), mesh.expert devices the experts "
            "or features. Several hosts: TPU pods, GKE, SLURM and Open MPI are recognised; else set "
            "JHSAE_COORDINATOR, JHSAE_PROCESSES and JHSAE_PROCESS. Scripts: experiments/launch/.",
            "Without a store: jhsae train live.yaml computes activations while it trains.",
        ),
    ),
    "evaluate": Verb(
        "measure a trained SAE on held-out activations and in its language model",
        "a run folder, a store of held-out text and the language model",
        "in the run folder: a row of results.jsonl (metrics, config hash, commit) and contexts.json",
        "jhsae evaluate evaluate/gemma2_2b.yaml run=runs/scale",
        bare=True,
        notes=(
            "Ratios whose denominator is 0 are null in results.jsonl. Definitions: jhsae.evals.fidelity, "
            "jhsae.evals.splice.",
        ),
    ),
    "ablate": Verb(
        "train and evaluate variants of one run, each with one part swapped",
        "a training config, or several as poles, lists of overrides by axis and variant, a held-out store",
        "one run folder per variant, and results.jsonl, table.md and, from poles, ablation.html over all of them",
        "jhsae ablate ablate/axes.yaml flips=[router,child_input] processes=2 out=runs/ablation",
        notes=(
            "From poles: one-factor flips, grid=[AXIS,...], search={count: 20}; rates=[...] searches every arm's "
            "learning rate on validation rows; match=l0, parameters, macs or tokens with solve=[KEY] gives every arm "
            "that budget of its pole. All axes of both originals: configs/ablate/axes.yaml.",
            "An interrupted study resumes; processes=N shares its runs.",
        ),
    ),
    "report": Verb(
        "draw the figures and tables of a set of results",
        "results.jsonl and the run folders it names",
        "one self-contained HTML page",
        "jhsae report report.yaml out=runs/report.html",
    ),
    "export": Verb(
        "write a trained SAE in the files of another library, or as a folder to share",
        "a run folder; for some formats a store of held-out text",
        "a new folder: a SAELens directory, a torch module, a Delphi cache, a Neuronpedia bundle, or our own files",
        "jhsae export run=runs/topk format=saelens out=exports/topk store=stores/heldout",
        bare=True,
        notes=(
            "BatchTopK and Matryoshka SAEs are written as JumpReLU SAEs with their running threshold.",
            "format=torch writes H-SAEs: hsae.py in the folder needs torch alone; SAEBench runs it as it is, and "
            "SAELens loads the folder after `import jhsae.interop.saelens.plugin`.",
        ),
    ),
    "browse": Verb(
        "show what every feature of an SAE does: contexts, logits, search; an expert opens to its atoms",
        "a run folder, a store of held-out text and the language model",
        "one self-contained HTML page that opens offline",
        "jhsae browse browse/embedded.yaml run=runs/quickstart/scale",
        bare=True,
    ),
    "import": Verb(
        "read an SAE that another library trained",
        "files of SAELens, dictionary_learning, sparsify, OpenAI, Gemma Scope or jhsae, local or on the hub",
        "a run folder that jhsae evaluate and jhsae.load_sae read",
        "jhsae import source=hf://org/name/subfolder out=runs/imported",
        bare=True,
        notes=(
            "Pickles are refused; unpickle=true reads a .pt file with torch's weights_only=True.",
            "Every tensor of a checkpoint is used, known to be unneeded, or refused by name.",
        ),
    ),
    "plan": Verb(
        "memory, traffic and time of a run on TPUs that are not here",
        "a config of jhsae train; no store, no teacher; the TPU compiler (pip install 'jhsae[tpu]')",
        "a page on the screen and, with --json, the same numbers as JSON",
        "jhsae plan scale.yaml --topology v5p:4x4x4 --tokens-per-chip 32512 --json plan.json",
        flags=True,
        notes=(
            "The training step is compiled for the slice; memory, FLOPs and collectives are read from the compiled "
            "program. Times are a roofline, not a measurement. Results for scale.yaml: experiments/plan/README.md.",
        ),
    ),
    "bench": Verb(
        "measure the speed of the step, the ops, the loader and a whole run",
        "nothing; `loader` a store, where one is given",
        "a table on the screen and, with --json, the same numbers as JSON",
        "jhsae bench step --embed 256 --experts 2048 --batch 4096 --json step.json",
        flags=True,
    ),
    "parity": Verb(
        "compare with golden numbers of the originals, row by row",
        "a golden file FILE.npz (inputs, parameters and the numbers the original computed)",
        "a table on the screen and, with --json, the same rows as JSON",
        "jhsae parity tests/golden/moe_v2.npz --json parity.json",
        flags=True,
    ),
}


def module(verb: str) -> ModuleType:
    """The module of a verb; that of ``import``, a keyword of Python, is ``import_``."""
    return importlib.import_module(f"jhsae.commands.{verb}_" if iskeyword(verb) else f"jhsae.commands.{verb}")

"""The command line: ``jhsae VERB CONFIG.yaml [key=value ...]``; each verb reads files and writes files.

A verb lives in the module of its name, which is imported only when that verb is asked for. Every failure that can be
expected is one line on stderr and an exit code of `EXIT_CODES`; a traceback is a bug.
"""

import argparse
import importlib
import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any, NamedTuple

from jhsae.bench import arguments as bench
from jhsae.errors import UserError
from jhsae.outcome import PIPE, outcome
from jhsae.plan import arguments as plan


class Verb(NamedTuple):
    """What ``--help`` says of a verb that takes a config; `default` is its YAML when none is given.

    A `bare` verb needs no YAML: it starts from the defaults of its keys.
    """

    summary: str
    reads: str
    writes: str
    example: str
    default: str | None = None
    bare: bool = False


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
    ),
    "evaluate": Verb(
        "measure a trained SAE on held-out activations and in its language model",
        "a run folder, a store of held-out text and the language model",
        "in the run folder: a row of results.jsonl (metrics, config hash, commit) and contexts.json",
        "jhsae evaluate evaluate/gemma2_2b.yaml run=runs/scale",
        bare=True,
    ),
    "ablate": Verb(
        "train and evaluate variants of one run, each with one part swapped",
        "a training config, lists of overrides by axis and variant, a held-out store",
        "one run folder per variant, and results.jsonl and table.md over all of them",
        "jhsae ablate ablations/scale_to_geometry.yaml out=runs/ablation",
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
    ),
}
EXIT_CODES = {
    0: "done",
    1: "a parity row failed, a benchmark's sides differ, no plan fits; with a traceback: a bug",
    2: "the input or a path was wrong: the line says what to write",
    3: "the run diverged: a loss or a parameter is not finite",
    4: "no room: a full disk, or memory that is used up",
    75: "another process of the run is gone",
    130: "interrupted",
    141: "the reader of the output is gone",
    143: "stopped by SIGTERM and saved",
}
TOGETHER = ("train", "harvest")  # the verbs that several processes run as one
BARE = Path(__file__).with_name("bare.yaml")
PARITY = (
    "Compares jhsae with golden numbers of the original implementations, row by row.\n\n"
    "reads    a golden file FILE.npz (inputs, parameters and the numbers the original computed)\n"
    "writes   a table on the screen and, with --json, the same rows as JSON\n"
    "example  jhsae parity tests/golden/moe_v2.npz --json parity.json"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's) and returns the exit code."""
    # transformers would say that PyTorch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without UTF-8 cannot show every name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _outcome(argv)
        finally:
            if sys.stdout is not None:  # closed by whoever started us
                sys.stdout.flush()
    except BrokenPipeError:  # such as `jhsae train --help | head -1`; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE


def _outcome(argv: Sequence[str] | None) -> int:
    try:
        _check_place()
        arguments = _arguments(argv)
        if arguments.verb in (words := {"bench": bench, "plan": plan}):
            return words[arguments.verb].run(arguments)
        return _parity(arguments) if arguments.verb == "parity" else _run(arguments.verb, arguments.words)
    except KeyboardInterrupt:
        print("jhsae: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        expected = outcome(error)
        if expected is None:
            raise
        print(f"jhsae: error: {expected[0]}", file=sys.stderr)
        return expected[1]


def _check_place() -> None:
    """Raises `UserError` where the working directory is gone, without which no import and no path works."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the working directory was removed; change into one that exists") from error


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """What the words mean; overrides of ``plan`` may stand behind its flags too."""
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)
    if more and (arguments.verb != "plan" or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        arguments.words += more
    return arguments


def _run(verb: str, words: list[str]) -> int:
    from jhsae import config

    named = bool(words) and ("=" not in words[0] or config.is_file(words[0]))
    path = words[0] if named else VERBS[verb].default or (str(BARE) if VERBS[verb].bare else None)
    if path is None:
        raise UserError(f"{verb} was given no config file, expected one: {VERBS[verb].example}")
    if verb in TOGETHER:
        importlib.import_module("jhsae.distributed").initialize()
    module = _module(verb)
    try:
        settings = config.load(getattr(module, verb.capitalize()), config.find(path), words[named:])
    except UserError as error:  # nobody wrote bare.yaml, so no message names it
        raise UserError(str(error).replace(str(BARE), f"jhsae {verb}")) from error
    module.run(settings)
    return 0


def _module(verb: str) -> Any:
    """The module of a verb; that of ``import``, a keyword of Python, is ``import_``."""
    return importlib.import_module(f"jhsae.{verb}_" if iskeyword(verb) else f"jhsae.{verb}")


def _parity(arguments: argparse.Namespace) -> int:
    parity = importlib.import_module("jhsae.interop.parity")
    return 0 if parity.run(arguments.file, arguments.json) else 1


def _parser() -> argparse.ArgumentParser:
    about = "Hierarchical sparse autoencoders on language-model activations."
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    epilog = f"jhsae VERB --help lists the keys of a verb.\n\nexit codes:\n{codes}"
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("jhsae", description=about, epilog=epilog, formatter_class=formatter)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)
    for name, verb in VERBS.items():
        usage = f"jhsae {name} {_config_word(verb)} [key=value ...]"
        one = verbs.add_parser(name, help=verb.summary, usage=usage, add_help=True)
        one.add_argument("words", nargs="*", metavar="CONFIG.yaml key=value", help="a config, then overrides a.b=c")
    parity = verbs.add_parser("parity", help="compare with golden numbers of the originals", description=PARITY)
    parity.add_argument("file", type=Path, metavar="FILE.npz", help="the golden file")
    parity.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as JSON")
    bench.add(verbs)
    plan.add(verbs)
    return top


class _VerbParser(argparse.ArgumentParser):
    """Looks up the keys of the verb's config only when help is printed: that imports the verb."""

    def __init__(self, prog: str, **options) -> None:
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, allow_abbrev=False, **options)

    def format_help(self) -> str:
        name = self.prog.split()[-1]
        return verb_help(name) if name in VERBS else super().format_help()


def verb_help(name: str) -> str:
    """The help of a verb: what it does, reads and writes, an example, and the keys of its config."""
    from jhsae.config import describe

    verb, module = VERBS[name], _module(name)
    width = max(60, shutil.get_terminal_size().columns)
    lines = [
        f"usage: jhsae {name} {_config_word(verb)} [key=value ...]",
        "",
        f"{verb.summary[0].upper()}{verb.summary[1:]}.",
        "",
        *_entry("reads", verb.reads, width, 10),
        *_entry("writes", verb.writes, width, 10),
        *_entry("example", verb.example, width, 10),
        "",
        "CONFIG.yaml is a path or a config of this package. key=value overrides one of its keys, a.b=c one inside a",
        "section, stages.0.steps=9 one inside a list." + (f" The default is {verb.default}." if verb.default else ""),
        "",
        "keys (type, default: meaning):",
    ]
    for key, kind, default, text in describe(getattr(module, name.capitalize())):
        words = ", ".join(word for word in (kind, default) if word) + (f": {text}" if text else "")
        lines += _entry(key, words, width, 30)
    return "\n".join(lines) + "\n"


def _config_word(verb: Verb) -> str:
    return "[CONFIG.yaml]" if verb.default or verb.bare else "CONFIG.yaml"


def _entry(head: str, text: str, width: int, indent: int) -> list[str]:
    """`head`, then `text` in a column of its own."""
    first = f"  {head} ".ljust(indent)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())

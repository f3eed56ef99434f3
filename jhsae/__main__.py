"""The command line: ``jhsae VERB CONFIG.yaml [key=value ...]``; each verb reads files and writes files.

A verb is a row of `jhsae.commands.table` and the file of its name beside it, which is imported when it is asked for.
Every failure that can be expected is one line on stderr and an exit code of `EXIT_CODES`; a traceback is a bug.
"""

import argparse
import io
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from jhsae import __version__
from jhsae.commands.console import console
from jhsae.commands.table import VERBS, Verb, module
from jhsae.errors import PIPE, UserError, outcome

EXIT_CODES = {
    0: "done",
    1: "a parity row failed, a benchmark's sides differ, no plan fits; with a traceback: a bug",
    2: "the input or a path was wrong: the line says what to write",
    3: "the run diverged: a loss or a parameter is not finite",
    4: "no room: a full disk, or memory that is used up",
    75: "another process of the run is gone",
    130: "interrupted",
    141: "the output pipe was closed",
    143: "stopped by SIGTERM and saved",
}
VARIABLES = {
    "JHSAE_PROGRESS_SECONDS": "seconds between two lines of progress where there is no terminal (30)",
    "JHSAE_COORDINATOR": "host:port of process 0 of several, with JHSAE_PROCESSES and JHSAE_PROCESS",
    "JHSAE_TIMEOUT": "seconds after which a silent process counts as lost (60)",
}
BARE = Path(__file__).with_name("bare.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's) and returns the exit code."""
    # transformers would say that PyTorch is missing, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without UTF-8 cannot show every name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with console():
                return _outcome(argv)
        finally:
            if sys.stdout is not None:  # closed by the parent process
                sys.stdout.flush()
    except BrokenPipeError:  # such as `jhsae train --help | head -1`; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE


def _outcome(argv: Sequence[str] | None) -> int:
    try:
        _check_place()
        arguments = _arguments(argv)
        if VERBS[arguments.verb].flags:
            return module(arguments.verb).run(arguments)
        return _run(arguments.verb, arguments.words)
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
    """What the words mean; overrides may stand behind flags too."""
    _refuse_flags(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)
    if more and ("words" not in arguments or any(word.startswith("-") for word in more)):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if more:
        arguments.words += more
    return arguments


def _refuse_flags(argv: Sequence[str]) -> None:
    """Raises `UserError` for ``--key value`` of a verb whose keys are written ``key=value``."""
    verb = argv[0] if argv else ""
    if verb not in VERBS or VERBS[verb].flags:
        return
    for word, after in zip(argv[1:], [*argv[2:], ""], strict=False):
        if word.startswith("-") and word not in ("-", "--", "-h", "--help"):
            key, equals, value = word.lstrip("-").partition("=")
            value = value if equals or not after or after.startswith("-") or "=" in after else after
            write = f"{key.replace('-', '_')}={value or '...'}"
            raise UserError(f"{word} is no flag of jhsae {verb}, whose keys are written key=value; write {write}")


def _run(verb: str, words: list[str]) -> int:
    from jhsae import config

    words = _with_key(VERBS[verb].first, words)
    named = bool(words) and ("=" not in words[0] or config.is_file(words[0]))
    path = words[0] if named else VERBS[verb].default or (str(BARE) if VERBS[verb].bare else None)
    if path is None:
        raise UserError(f"{verb} was given no config file, expected one: {VERBS[verb].example}")
    if VERBS[verb].together:
        _join()
    found = module(verb)
    try:
        settings = config.load(getattr(found, verb.capitalize()), config.find(path), words[named:])
    except UserError as error:  # bare.yaml is not the user's, so no message names it
        raise UserError(str(error).replace(str(BARE), f"jhsae {verb}")) from error
    found.run(settings)
    return 0


def _with_key(key: str | None, words: list[str]) -> list[str]:
    """`words` with the first as the value of `key`, where it is neither a config nor an override."""
    if not key or not words or words[0].endswith((".yaml", ".yml")):
        return words
    if "=" in words[0] and not os.path.exists(words[0]):
        return words
    return [f"{key}={json.dumps(words[0], ensure_ascii=False)}", *words[1:]]


def _join() -> None:
    """Joins the other processes of this run; of several, only process 0 prints messages and progress."""
    from jhsae.parallel import distributed

    distributed.initialize()
    if distributed.initialized() and not distributed.is_main():
        logging.getLogger("jhsae").setLevel(logging.WARNING)


def _parser() -> argparse.ArgumentParser:
    about = "Hierarchical sparse autoencoders on language-model activations."
    codes = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    variables = "\n".join(f"  {name:<24} {meaning}" for name, meaning in VARIABLES.items())
    epilog = f"jhsae VERB --help lists the keys of a verb.\n\nexit codes:\n{codes}\n\nenvironment:\n{variables}"
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("jhsae", description=about, epilog=epilog, formatter_class=formatter)
    top.add_argument("--version", action="version", version=f"jhsae {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_VerbParser)
    for name, verb in VERBS.items():
        if verb.flags:
            module(name).add_arguments(verbs.add_parser(name, help=verb.summary, description=_summary(verb)))
            continue
        one = verbs.add_parser(name, help=verb.summary, usage=_usage(name), add_help=True)
        one.add_argument("words", nargs="*", metavar="CONFIG.yaml key=value", help="a config, then overrides a.b=c")
    return top


class _VerbParser(argparse.ArgumentParser):
    """Looks up the keys of the verb's config only when help is printed: that imports the verb."""

    def __init__(self, prog: str, **options) -> None:
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, allow_abbrev=False, **options)

    def format_help(self) -> str:
        name = self.prog.split()[-1]
        return verb_help(name) if name in VERBS and not VERBS[name].flags else super().format_help()


def verb_help(name: str) -> str:
    """The help of a verb: what it does, reads and writes, an example, and the keys of its config."""
    from jhsae.config import describe_keys

    verb = VERBS[name]
    lines = [
        f"usage: {_usage(name)}",
        "",
        _summary(verb),
        "",
        *(
            [f"{verb.first.upper()} is the value of the key {verb.first}, or a CONFIG.yaml that has it.", ""]
            if verb.first
            else []
        ),
        "CONFIG.yaml is a path or a config of this package. key=value overrides one of its keys, a.b=c one inside a",
        "section, stages.0.steps=9 one inside a list." + (f" The default is {verb.default}." if verb.default else ""),
        "",
        "keys (type, default: meaning):",
    ]
    for key, kind, default, text in describe_keys(getattr(module(name), name.capitalize())):
        words = ", ".join(word for word in (kind, default) if word) + (f": {text}" if text else "")
        lines += _entry(key, words, 30)
    return "\n".join(lines) + "\n"


def _usage(name: str) -> str:
    return f"jhsae {name} {VERBS[name].config_word} [key=value ...]"


def _summary(verb: Verb) -> str:
    """What a verb does, reads and writes, an example, and its notes."""
    entries = [("reads", verb.reads), ("writes", verb.writes), ("example", verb.example)]
    lines = [line for head, text in entries for line in _entry(head, text, 10)]
    notes = [line for note in verb.notes for line in ["", *_wrapped(note, "  ", "  ")]]
    return "\n".join([f"{verb.summary[0].upper()}{verb.summary[1:]}.", "", *lines, *notes])


def _entry(head: str, text: str, indent: int) -> list[str]:
    """`head`, then `text` in a column of its own, as wide as the terminal."""
    return _wrapped(text, f"  {head} ".ljust(indent), " " * indent)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    width = max(60, shutil.get_terminal_size().columns)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


if __name__ == "__main__":
    sys.exit(main())

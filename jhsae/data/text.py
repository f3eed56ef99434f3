"""Text sources: the documents of a harvest.

A source is a part with two methods: `documents()` yields the documents, `describe()` returns their provenance for the
store's manifest. Local files and Hugging Face datasets are streamed; WordNet gives one line
per synset, ``lemma, lemma: gloss``, split by a hash of the synset so that held-out glosses stay unseen by
the bundled model. Rows without text (null, missing, empty, not Unicode) are skipped and counted; a value of another
kind is an error, and columns that are not read are not looked at. No code of a dataset is run.
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets

from jhsae.data.reading import (
    COMPRESSED,
    JSON,
    PARQUET,
    Skipped,
    beside,
    check_file,
    column_of,
    dataset_texts,
    file_sha256,
    file_texts,
    kind,
    paragraphs,
    reason,
)
from jhsae.data.wordnet import is_heldout, read_wndb
from jhsae.errors import UserError, nearest
from jhsae.files.bounded import read_object, regular_file

SPLITS = ("train", "heldout", "all")


class AbstractText(ABC):
    """A source of documents. Subclasses write `_open` and `describe`."""

    def documents(self, skipped: Counter[str] | None = None) -> Iterator[str]:
        """Every document with text in it, in the source's order.

        Args:
            skipped: counts the rows that are no documents, by the reason why.

        Raises:
            UserError: a file, column or split that is not there (at once), a row that cannot be read, or a source
                without any text (when it has been read to its end).
        """
        return self._nonempty(self._open(), Counter() if skipped is None else skipped)

    @abstractmethod
    def _open(self) -> Iterable[str | Skipped]:
        """The documents, empty ones included; everything that can be checked is checked by this call."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Provenance for the manifest: JSON values only."""

    def _nonempty(self, documents: Iterable[str | Skipped], skipped: Counter[str]) -> Iterator[str]:
        empty = True
        for document in documents:
            if isinstance(document, Skipped):
                skipped[document.value] += 1
            elif document.strip():
                empty = False
                yield document
            else:
                skipped[Skipped.EMPTY.value] += 1
        if empty:
            why = "".join(f"; {count:,} rows are {reason}" for reason, count in sorted(skipped.items()))
            raise UserError(f"an empty dataset: {self} holds no text{why}; name a source with at least one document")


@dataclass(frozen=True)
class TextFiles(AbstractText):
    """Local files: ``.txt``, ``.jsonl``, ``.json`` and ``.parquet``, all but Parquet optionally compressed.

    In a ``.txt`` a paragraph (blank line around it) is a document, in the others the string in `column` of a row.
    Compressed files end in ``.gz``, ``.bz2`` or ``.xz``.

    Args:
        paths: A file, or several.
        column: The column of the text.
    """

    paths: str | list[str]
    column: str = "text"

    def _open(self) -> Iterable[str | Skipped]:
        files = self._files()
        if self.column != "text" and all(kind(path) == ".txt" for path in files):
            raise UserError(f"column is '{self.column}', but {files[0]} is plain text without columns; leave it out")
        return chain.from_iterable([self._file(path) for path in files])

    def describe(self) -> dict[str, Any]:
        files = [{"path": str(p), "bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in self._files()]
        return {"source": "TextFiles", "column": self.column, "files": files}

    def _files(self) -> list[Path]:
        paths = [Path(p) for p in ([self.paths] if isinstance(self.paths, str) else self.paths)]
        if not paths:
            raise UserError("an empty dataset: paths names no file; write at least one path")
        for path in paths:
            if path.is_dir():
                raise UserError(f"{path} is a folder, a text file was expected; name the files in it")
            if not path.exists():
                raise UserError(f"the text file {path} does not exist{beside(path)}")
            regular_file(path)
        return paths

    def _file(self, path: Path) -> Iterable[str | Skipped]:
        suffix = kind(path)
        if suffix == ".txt":
            return paragraphs(path)
        if suffix not in JSON and path.suffix != PARQUET:
            raise UserError(
                f"the text file {path} is of an unknown kind; expected .txt, {', '.join(JSON)}, {PARQUET}, all but the "
                f"last also with {', '.join(COMPRESSED)}"
            )
        check_file(path, self.column)
        return file_texts(path, self.column)


@dataclass(frozen=True)
class HuggingFaceText(AbstractText):
    """A dataset of the Hugging Face hub by name, or a local folder of one (``save_to_disk``, or data files).

    `streaming` reads the hub as it goes instead of downloading the whole dataset first; `config` is the
    dataset's configuration name (``"20231101.en"`` of ``wikimedia/wikipedia``), `revision` a commit of its
    repository: name one to read the same text again later. Of a folder that was saved as one split, `split` is that
    one; an option that does not apply is an error.

    Args:
        name: a dataset of the hub or a local folder.
        split: of the dataset.
        column: that holds the text.
        config: of the dataset; None for its default.
        revision: a branch, tag or commit; None for the default.
        streaming: whether documents are read as they are needed, without a copy on disk.
    """

    name: str
    split: str = "train"
    column: str = "text"
    config: str | None = None
    revision: str | None = None
    streaming: bool = True

    def _open(self) -> Iterable[str | Skipped]:
        if not self.name.strip():
            raise UserError("name is empty, expected a dataset of the hub or a local folder, such as ./texts")
        folder = Path(self.name)
        if self.name.startswith((".", "/", "~")) and not folder.is_dir():
            raise UserError(f"the dataset folder {folder} does not exist{beside(folder)}")
        if folder.is_dir():
            self._check_folder(folder)
        if (folder / "dataset_dict.json").exists():
            splits = _saved(self.name)
            if self.split not in splits:
                raise UserError(f"the dataset {self.name} has no split '{self.split}'" + nearest(self.split, splits))
            return self._saved_texts(splits[self.split])
        if self._is_one_split():
            if self.split != (saved := self._saved_split()) and (saved or self.split != "train"):
                holds = f"was saved as the split '{saved}'" if saved else "was saved without splits"
                write = f"split: {saved}" if saved else "no split"
                raise UserError(f"the dataset {self.name} {holds}, but split is '{self.split}'; write {write}")
            return self._saved_texts(_saved(self.name))
        return dataset_texts(self.name, self.config, self.revision, self.split, self.column, self.streaming)

    def describe(self) -> dict[str, Any]:
        fields = ("name", "config", "revision", "split", "column")
        found = {"source": "HuggingFaceText"} | {f: getattr(self, f) for f in fields}
        return found | ({"split": self._saved_split()} if self._is_one_split() else {})

    def _check_folder(self, folder: Path) -> None:
        """Refuses options that say nothing about a local folder, and files whose reading may never end."""
        saved = (folder / "dataset_dict.json").exists() or self._is_one_split()
        for option in ("revision", "config") if saved else ("revision",):
            if (value := getattr(self, option)) is not None:
                raise UserError(f"{option} is '{value}', but {folder} is a local folder, which has none; leave it out")
        for place, _, names in os.walk(folder):
            for name in names:
                regular_file(Path(place, name))

    def _is_one_split(self) -> bool:
        return (Path(self.name) / "state.json").exists()

    def _saved_texts(self, dataset: Any) -> Iterable[str | Skipped]:
        """One column of a saved dataset; the others are not decoded."""
        names = dataset.column_names
        if self.column not in names:
            raise UserError(f"the dataset {self.name} has no column '{self.column}'" + nearest(self.column, names))
        return column_of(dataset.select_columns([self.column]), self.column, self.name)

    def _saved_split(self) -> str | None:
        """The name of the split that a folder was saved as; None where it had no name."""
        return read_object(Path(self.name) / "state.json").get("_split")


def _saved(folder: str) -> Any:
    """Opens a dataset written by ``save_to_disk``."""
    try:
        return datasets.load_from_disk(folder)
    except Exception as error:  # any exception of a third-party library on an invalid file
        raise UserError(f"the dataset {folder} cannot be opened: {reason(error)}; save or copy it again") from error


@dataclass(frozen=True)
class WordNetGlosses(AbstractText):
    """One document per WordNet synset, ``lemma, lemma: gloss``.

    `directory` holds a WordNet 3.x database, ``None`` means the bundled subset. `split`: ``"heldout"`` is
    the one synset in twenty that the bundled language model has not seen, ``"train"`` the rest, ``"all"``
    both.

    Args:
        directory: of a WordNet 3.x database; None for the bundled subset.
        split: "train", "heldout" or "all".
    """

    directory: str | None = None
    split: str = "train"

    def _open(self) -> Iterable[str]:
        if self.split not in SPLITS:
            raise UserError(f"WordNetGlosses has no split '{self.split}'" + nearest(self.split, SPLITS))
        synsets = read_wndb(self.directory).values()
        kept = [s for s in synsets if self.split in ("all", "heldout" if is_heldout(s.id) else "train")]
        return [f"{', '.join(s.lemmas)}: {s.gloss}" for s in kept]

    def describe(self) -> dict[str, Any]:
        return {"source": "WordNetGlosses", "directory": self.directory or "bundled", "split": self.split}

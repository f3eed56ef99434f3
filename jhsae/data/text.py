"""Text sources: where the documents of a harvest come from.

A source is a part with two methods: `documents()` gives the documents one by one, `describe()` says for the
store's manifest what was read. Local files and Hugging Face datasets are streamed; WordNet gives one line
per synset, ``lemma, lemma: gloss``, split by a hash of the synset so that held-out glosses stay unseen by
the bundled model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from jhsae.data.reading import beside, column_of, file_sha256, load, paragraphs
from jhsae.errors import UserError, nearest
from jhsae.wordnet import is_heldout, read_wndb

DATASET_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SPLITS = ("train", "heldout", "all")


class AbstractText(ABC):
    """A source of documents. Subclasses write `_open` and `describe`."""

    def documents(self) -> Iterator[str]:
        """Every document with text in it, in the source's order.

        Raises:
            UserError: a file, column or split that is not there (at once), or a source without any text
                (when it has been read to its end).
        """
        return self._nonempty(self._open())

    @abstractmethod
    def _open(self) -> Iterable[str]:
        """The documents, empty ones included; everything that can be checked is checked by this call."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What was read, for the manifest: JSON values only."""

    def _nonempty(self, documents: Iterable[str]) -> Iterator[str]:
        empty = True
        for document in documents:
            if document.strip():
                empty = False
                yield document
        if empty:
            raise UserError(f"an empty dataset: {self} holds no text; name a source with at least one document")


@dataclass(frozen=True)
class TextFiles(AbstractText):
    """Local files. ``.txt``: a paragraph (blank line around it) is a document; ``.jsonl``, ``.json`` and
    ``.parquet``: the string in `column` of a row is a document. Each may be gzipped (``.txt.gz``)."""

    paths: str | list[str]
    column: str = "text"

    def _open(self) -> Iterable[str]:
        readers = [self._open_file(path) for path in self._files()]
        return (document for reader in readers for document in reader)

    def describe(self) -> dict[str, Any]:
        files = [{"path": str(p), "bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in self._files()]
        return {"source": "TextFiles", "column": self.column, "files": files}

    def _files(self) -> list[Path]:
        paths = [Path(p) for p in ([self.paths] if isinstance(self.paths, str) else self.paths)]
        if not paths:
            raise UserError("an empty dataset: paths names no file; write at least one path")
        for path in paths:
            if not path.is_file():
                if path.is_dir():
                    raise UserError(f"{path} is a folder, a text file was expected; name the files in it")
                raise UserError(f"the text file {path} does not exist{beside(path)}")
        return paths

    def _open_file(self, path: Path) -> Iterable[str]:
        suffix = Path(path.name.removesuffix(".gz")).suffix
        if suffix == ".txt":
            return paragraphs(path)
        if suffix not in DATASET_FORMATS:
            raise UserError(
                f"the text file {path} is of an unknown kind; expected .txt, {', '.join(DATASET_FORMATS)}, "
                "each also with .gz"
            )
        rows = load(str(path), DATASET_FORMATS[suffix], data_files=[str(path)], split="train", streaming=True)
        return column_of(rows, self.column, str(path))


@dataclass(frozen=True)
class HuggingFaceText(AbstractText):
    """A dataset of the Hugging Face hub by name, or a local folder of one (``save_to_disk``, or data files).

    `streaming` reads the hub as it goes instead of downloading the whole dataset first; `config` is the
    dataset's configuration name (``"20231101.en"`` of ``wikimedia/wikipedia``), `revision` a commit of its
    repository: name one to read the same text again later.
    """

    name: str
    split: str = "train"
    column: str = "text"
    config: str | None = None
    revision: str | None = None
    streaming: bool = True

    def _open(self) -> Iterable[str]:
        return column_of(self._dataset(), self.column, self.name)

    def describe(self) -> dict[str, Any]:
        fields = ("name", "config", "revision", "split", "column")
        return {"source": "HuggingFaceText"} | {f: getattr(self, f) for f in fields}

    def _dataset(self) -> Iterable[dict[str, Any]]:
        folder = Path(self.name)
        if self.name.startswith((".", "/", "~")) and not folder.is_dir():
            raise UserError(f"the dataset folder {folder} does not exist{beside(folder)}")
        if (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(self.name)
            if self.split not in splits:
                raise UserError(f"the dataset {self.name} has no split '{self.split}'" + nearest(self.split, splits))
            return splits[self.split]
        if (folder / "state.json").exists():
            return datasets.load_from_disk(self.name)
        options = {"split": self.split, "revision": self.revision, "streaming": self.streaming}
        return load(self.name, self.name, self.config, **options)


@dataclass(frozen=True)
class WordNetGlosses(AbstractText):
    """One document per WordNet synset, ``lemma, lemma: gloss``.

    `directory` holds a WordNet 3.x database, ``None`` means the bundled subset. `split`: ``"heldout"`` is
    the one synset in twenty that the bundled language model has not seen, ``"train"`` the rest, ``"all"``
    both.
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

"""Text -> tokenizer -> token arrays, for the embedded language model.

Documents: one per WordNet synset ("lemma, lemma: gloss") and one per chapter of the King James Bible. Held out:
the synsets of `jhsae.data.wordnet.is_heldout` (5%) and 2% of the chapters, both by hash. Needs Debian's
wordnet-base and bible-kjv. The text itself is not kept; --out holds the tokenizer and, for each of {train, heldout} x
{glosses, kjv}, `<split>_<source>.npz` with `tokens` (uint16, documents end to end) and `lengths` (int32).
"""

import argparse
import re
import subprocess
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from jhsae.data.wordnet import is_heldout, read_wndb

VOCAB = 8192
SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
# A piece is letters, one digit or punctuation, each with at most the one space (▁) before it.
PIECE = Regex(r"▁?\p{L}+|▁?\p{N}|▁?[^▁\p{L}\p{N}]+|▁")

Documents = dict[tuple[str, str], list[str]]  # (split, source) -> texts


def glosses(directory: str) -> Documents:
    found: Documents = {("train", "glosses"): [], ("heldout", "glosses"): []}
    for synset in read_wndb(directory).values():
        split = "heldout" if is_heldout(synset.id) else "train"
        found[split, "glosses"].append(f"{', '.join(synset.lemmas)}: {synset.gloss}")
    return found


def chapters() -> Documents:
    lines = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    verses = [re.match(r"(\d?[A-Za-z]+\d+):\d+ (.*)", line) for line in lines.splitlines()]
    found: Documents = {("train", "kjv"): [], ("heldout", "kjv"): []}
    for chapter, group in groupby((v for v in verses if v), key=lambda v: v[1]):
        heldout = int(sha256(chapter.encode()).hexdigest(), 16) % 50 == 0
        found["heldout" if heldout else "train", "kjv"].append(" ".join(v[2].strip() for v in group))
    return found


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding with Gemma's word boundary (▁), special ids and leading <bos>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, pre_tokenizers.Split(PIECE, "isolated")])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    alphabet = [chr(i) for i in range(33, 127)] + ["▁"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", default="/usr/share/wordnet")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_lm/data"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    documents = glosses(args.wordnet) | chapters()
    tokenizer = train_tokenizer(documents["train", "glosses"] + documents["train", "kjv"])
    tokenizer.save_pretrained(args.out / "tokenizer")
    for (split, source), texts in documents.items():
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokens = np.concatenate([np.asarray(i, np.uint16) for i in ids])
        np.savez(args.out / f"{split}_{source}.npz", tokens=tokens, lengths=np.asarray([len(i) for i in ids]))
        unknown = float(np.mean(tokens == tokenizer.unk_token_id))
        print(f"{split} {source}: {len(texts)} documents, {len(tokens)} tokens, {unknown:.1e} unknown")


if __name__ == "__main__":
    main()

"""A small trained tokenizer of each family, made offline with the `tokenizers` library."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "the water is cold and the river water runs to the sea",
    "naïve café 日本語 😀 and Water",
    "water near a house, running",
    "don't stop. ok?",
]
SPECIAL = ["<unk>", "<s>"]


def _trained(tokenizer, trainer, text=TEXT):
    tokenizer.train_from_iterator(text * 30, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=SPECIAL[0], bos_token=SPECIAL[1])


def byte_level(size=330):
    """GPT-2, Pythia, Llama 3, Qwen: a space is Ġ, and other bytes have letters of their own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )
    return _trained(made, trainer)


def sentencepiece(prefix=True):
    """Llama 2 (`prefix`: decoding drops the space in front) and Gemma: ▁, and <0xE6> for bytes of unknown letters."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token=SPECIAL[0]))
    before = [normalizers.Prepend("▁")] if prefix else []
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL + fallback, show_progress=False)
    made.train_from_iterator([t for t in TEXT if t.isascii()] * 30, trainer)
    state = json.loads(made.to_str())
    state["added_tokens"] = state["added_tokens"][: len(SPECIAL)]  # the trainer made the bytes special
    made = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=SPECIAL[0], bos_token=SPECIAL[1])


def wordpiece():
    """BERT: ## marks what goes on with a word."""
    made = Tokenizer(models.WordPiece(unk_token=SPECIAL[0]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    return _trained(made, trainers.WordPieceTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False))


def unigram():
    """T5."""
    pieces = [*SPECIAL, *(f"▁{word}" for text in TEXT for word in text.split()), "▁", *sorted(set("".join(TEXT)))]
    made = Tokenizer(models.Unigram([(p, -(len(p) ** 0.5)) for p in dict.fromkeys(pieces)], unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token=SPECIAL[0], bos_token=SPECIAL[1])


def end_of_word():
    """CLIP, OpenAI GPT: </w> marks the end of a word."""
    made = Tokenizer(models.BPE(unk_token=SPECIAL[0], end_of_word_suffix="</w>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    return _trained(made, trainer)


FAMILIES = {
    "byte level": byte_level,
    "Llama 2": sentencepiece,
    "Gemma": lambda: sentencepiece(prefix=False),
    "WordPiece": wordpiece,
    "Unigram": unigram,
    "end of word": end_of_word,
}

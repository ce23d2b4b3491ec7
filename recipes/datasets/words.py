"""Texts to word ids: a small word-level vocabulary of the training texts, kept as a `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

PADDING, UNKNOWN = "[PAD]", "[UNK]"
"""Ids 0 and 1."""


def fit_words(texts: Sequence[str], size: int) -> str:
    """Returns a `tokenizer.json` with the `size` most frequent words of `texts`, equal for equal texts.

    Letters become lower case without accents; a word is a run of letters, and punctuation is dropped but for
    `!` and `?`. Read it with `tokenizers.Tokenizer.from_str`.

    Args:
        texts: Training texts only: what the evaluation says must not shape the vocabulary.
        size: Words with their ids, the two special ones included.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(_pattern(r"<[^>]*>|https?://\S+|@\w+"), " "),
            normalizers.Replace("'", ""),
            normalizers.Replace(_pattern(r"[^a-z!?]+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=[PADDING, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def _pattern(regex: str) -> object:
    from tokenizers import Regex

    return Regex(regex)


def word_ids(tokenizer: str, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns ids `[N,length]` int64: the last `length` words of each text, zeros after a shorter one.

    A review's verdict stands at its end, so that is what is kept.

    Args:
        tokenizer: From `fit_words`.
        texts: One per row.
        length: Words per row.
    """
    encoder = Tokenizer.from_str(tokenizer)
    encoder.enable_truncation(length, direction="left")
    encoder.enable_padding(length=length, pad_id=0, pad_token=PADDING)
    return np.array([e.ids for e in encoder.encode_batch(list(texts))], np.int64).reshape(-1, length)

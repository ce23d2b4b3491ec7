"""Steps for text, `[batch]` of strings: always on the host, no engine computes them.

Inputs that are made of one text (`input_ids`, `attention_mask`) each list their own steps with `tokenize` at the
end, and read the same raw array; the text is tokenized once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgemm._optional import require
from edgemm.errors import DataError
from edgemm.preprocess.step import Step, expect, refuse
from edgemm.tensors import Dim, TensorSpec

EXTRA = "text"
Side = Literal["right", "left"]

_ENGLISH = """
i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves what which who whom this that these those am is are was were be
been being have has had having do does did doing a an the and but if or because as until while of at by for with
about against between into through during before after above below to from up down in out on off over under
again further then once here there when where why how all any both each few more most other some such no nor not
only own same so than too very s t can will just don should now
"""
STOP_WORDS = frozenset(_ENGLISH.split())
"""English stop words: the 127 of Porter's Snowball project (BSD licence), as PostgreSQL and NLTK have them."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Lowercase:
    """Text in lower case, by Unicode's rules; a tokenizer for lower case does it by itself."""

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns strings `[batch]`."""
        return _strings([str(text).lower() for text in batch])

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what came in.

        Raises:
            DataError: It is no text.
        """
        return _text(self, spec)


@dataclass(frozen=True, slots=True)
class RemoveStopWords:
    """Text without the English words that say little by themselves (`STOP_WORDS`), whatever their case.

    For models that were trained on such text, as bags of words are; one that reads sentences needs every word. The
    list has `no`, `nor` and `not` in it, and `don` and `t` for don't: keep them for moods. A word with an
    apostrophe goes if all of its parts do.

    Attributes:
        keep: Words of the list that stay: `[no, nor, not, don, t]`.
        more: Other words that go, in lower case.
    """

    keep: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that the words are words of the list, and single ones."""
        strange = [w for w in self.keep if w not in STOP_WORDS]
        expect(not strange, self, "keep", f"words of the list, which has no '{''.join(strange[:1])}'")
        expect(all(_WORD.fullmatch(w) and w == w.lower() for w in self.more), self, "more", "words in lower case")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns strings `[batch]`; what is left of a text is joined by single spaces."""
        gone = (STOP_WORDS - set(self.keep)) | set(self.more)

        def kept(word: re.Match[str]) -> str:
            return "" if gone.issuperset(re.split("['’]", word[0].lower())) else word[0]

        return _strings([" ".join(_WORD.sub(kept, str(text)).split()) for text in batch])

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns what came in.

        Raises:
            DataError: It is no text.
        """
        return _text(self, spec)


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Tokens of texts by the library `tokenizers` and a `tokenizer.json`: strings to `[batch, length]`.

    What the file says of truncation and padding is not used; the token for padding is the file's. Needs
    `edgemm[text]` on the device; it is imported when a bundle with this step opens.

    Attributes:
        file: `tokenizer.json`, as `save_pretrained` writes it; it ships with the bundle.
        length: Tokens per text, special ones with them; longer texts are cut.
        give: What becomes the input: `input_ids`, `attention_mask` (1 for tokens, 0 for padding) or
            `token_type_ids`.
        pad: Fill every text up to `length`; otherwise up to the longest of the call, for models that take any
            length.
        pad_side: Where texts are filled.
        cut_side: Where longer texts lose tokens.
        dtype: Of what comes out.
    """

    file: Path
    length: int
    give: Literal["input_ids", "attention_mask", "token_type_ids"] = "input_ids"
    pad: bool = True
    pad_side: Side = "right"
    cut_side: Side = "right"
    dtype: Literal["int64", "int32"] = "int64"

    def __post_init__(self) -> None:
        """Checks the length."""
        expect(self.length > 0, self, "length", "at least 1 token")

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns `[batch, length]`."""
        made = _encoded(self._settings, tuple(str(text) for text in batch))
        return made[self.give].astype(self.dtype)

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns `[batch, length]`.

        Raises:
            DataError: It is no text, or the file is no tokenizer.
            MissingExtraError: The package `tokenizers` is not installed.
        """
        _text(self, spec)
        _tokenizer(self._settings)
        length: Dim = self.length if self.pad else f"{spec.name}_tokens"
        return TensorSpec(spec.name, self.dtype, (spec.shape[0], length))

    @property
    def _settings(self) -> _Settings:
        """What inputs that are made of one text share."""
        written = self.file.stat().st_mtime_ns if self.file.is_file() else 0
        return _Settings(str(self.file), written, self.length, self.pad, self.pad_side, self.cut_side)


@dataclass(frozen=True, slots=True)
class _Settings:
    file: str
    written: int
    length: int
    pad: bool
    pad_side: Side
    cut_side: Side


@lru_cache(maxsize=8)
def _tokenizer(settings: _Settings) -> Any:
    """Returns the tokenizer, set up to cut and fill.

    Raises:
        DataError: The file is not there, is no tokenizer, or has no token for padding.
        MissingExtraError: The package is not installed.
    """
    tokenizers = require("tokenizers", extra=EXTRA, why="turn text into tokens")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(settings.file)
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
    except Exception as error:  # the library raises Exception itself
        raise DataError(
            f"{settings.file}: no tokenizer that `tokenizers` can read: {error}.",
            hint="give the `tokenizer.json` of the model, as `save_pretrained` writes it",
        ) from error
    if settings.length <= special:
        raise DataError(
            f"{settings.file}: length is {settings.length}, and {special} of these tokens are special.",
            hint="raise `length` of the step 'tokenize'",
        )
    filled = tokenizer.padding or {}
    token = filled.get("pad_token") or _pad_token(tokenizer)
    if token is None:
        raise DataError(
            f"{settings.file}: the vocabulary has no token for padding ({', '.join(_PADS)}).",
            hint="set its padding with `Tokenizer.enable_padding(pad_id=..., pad_token=...)`, and save it again",
        )
    tokenizer.enable_truncation(settings.length, direction=settings.cut_side)
    tokenizer.enable_padding(
        direction=settings.pad_side,
        pad_id=filled.get("pad_id", tokenizer.token_to_id(token)),
        pad_type_id=filled.get("pad_type_id", 0),
        pad_token=token,
        length=settings.length if settings.pad else None,
    )
    return tokenizer


_PADS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
"""What models call the token for padding; those without one fill with their end of text."""


def _pad_token(tokenizer: Any) -> str | None:
    return next((token for token in _PADS if tokenizer.token_to_id(token) is not None), None)


@lru_cache(maxsize=16)
def _encoded(settings: _Settings, texts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns what the library makes of texts; kept, since several inputs are made of the same ones."""
    found = _tokenizer(settings).encode_batch(list(texts))
    arrays = {
        "input_ids": np.array([e.ids for e in found], np.int64),
        "attention_mask": np.array([e.attention_mask for e in found], np.int64),
        "token_type_ids": np.array([e.type_ids for e in found], np.int64),
    }
    return {
        name: array.reshape(len(texts), -1) if len(texts) else array.reshape(0, 0)
        for name, array in arrays.items()
    }


def _strings(texts: Sequence[str]) -> np.ndarray:
    return np.array(texts, dtype=np.str_) if texts else np.zeros(0, dtype=np.str_)


def _text(step: Step, spec: TensorSpec) -> TensorSpec:
    if spec.dtype != "str" or len(spec.shape) != 1:
        raise refuse(step, spec, "text, str [batch]", "say `dtype: str` and `shape: [batch]` in `raw`")
    return spec

"""The steps for text against the library `tokenizers` itself, with small tokenizers that are made here."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from edgemm.bake.front import refusal
from edgemm.errors import DataError, MissingExtraError, RecipeError
from edgemm.preprocess import output_of, parse, run, to_json
from edgemm.preprocess.front import InputSteps
from edgemm.preprocess.registry import files_of
from edgemm.preprocess.text import STOP_WORDS, Lowercase, RemoveStopWords, Tokenize
from edgemm.tensors import TensorSpec

TEXTS = np.array(["Take the red cup, please!", "", "cup " * 40, "a b c ünïcode 茶", "The cup is on the table"])
RAW = TensorSpec("text", "str", ("batch",))


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like BERT's: lower case, pieces of words, [CLS] and [SEP]."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "take",
        "the",
        "red",
        "cup",
        "please",
        "##s",
        "on",
        "table",
        ",",
        "!",
    ]
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrtuvwxyz")]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words + letters)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)  # what the file says of lengths is not what the step is told
    path = tmp_path_factory.mktemp("wordpiece") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def bytelevel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like GPT-2's: bytes, no special tokens but the end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("bytelevel") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("pad_side", ["right", "left"])
@pytest.mark.parametrize("cut_side", ["right", "left"])
@pytest.mark.parametrize("kind", ["wordpiece", "bytelevel"])
def test_tokens_are_those_of_the_library(
    kind: str, pad_side: str, cut_side: str, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(kind)
    library = Tokenizer.from_file(str(file))
    library.enable_truncation(12, direction=cut_side)
    pad_id = 0 if kind == "wordpiece" else library.token_to_id("<|endoftext|>")
    library.enable_padding(length=12, direction=pad_side, pad_id=pad_id)
    wanted = library.encode_batch(TEXTS.tolist())
    for give, field in (
        ("input_ids", "ids"),
        ("attention_mask", "attention_mask"),
        ("token_type_ids", "type_ids"),
    ):
        step = Tokenize(file, 12, give, pad_side=pad_side, cut_side=cut_side)
        made = step.apply(TEXTS)
        assert made.dtype == np.int64
        assert made.tolist() == [getattr(e, field) for e in wanted]
        assert output_of([step], RAW) == TensorSpec("text", "int64", ("batch", 12))


def test_without_padding_the_length_is_that_of_the_longest(wordpiece: Path) -> None:
    step = Tokenize(wordpiece, 12, "attention_mask", pad=False, dtype="int32")
    made = step.apply(TEXTS[[0, 1]])
    assert made.dtype == np.int32
    assert made.tolist() == [[1] * 9, [1, 1, 0, 0, 0, 0, 0, 0, 0]]
    assert step.apply(TEXTS[:1]).shape == (1, 9)
    assert output_of([step], RAW).shape == ("batch", "text_tokens")


def test_the_result_is_the_callers_own(wordpiece: Path) -> None:
    step = Tokenize(wordpiece, 12)
    first = step.apply(TEXTS)
    wanted = first.copy()
    first[:] = -1
    assert np.array_equal(step.apply(TEXTS), wanted)


def test_a_file_that_is_written_anew_is_read_anew(wordpiece: Path, bytelevel: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(wordpiece.read_bytes())
    before = Tokenize(file, 12).apply(TEXTS)
    file.write_bytes(bytelevel.read_bytes())
    assert not np.array_equal(Tokenize(file, 12).apply(TEXTS), before)


def test_stop_words_go_whatever_their_case() -> None:
    texts = np.array(["The cup is NOT on the table.", "It's what we don't want", "", "Ana's cup\tand the kettle"])
    assert RemoveStopWords().apply(texts).tolist() == ["cup table.", "want", "", "Ana's cup kettle"]
    kept = RemoveStopWords(keep=("no", "nor", "not", "don", "t"), more=("cup",)).apply(texts)
    assert kept.tolist() == ["NOT table.", "don't want", "", "Ana's kettle"]


def test_the_list_is_the_one_of_snowball() -> None:
    assert len(STOP_WORDS) == 127
    assert {"i", "ourselves", "because", "should", "now", "not"} <= STOP_WORDS
    assert not {"cup", "good", "would"} & STOP_WORDS


def test_steps_for_text_follow_one_another(bytelevel: Path) -> None:
    steps = parse(["lowercase", "remove_stop_words", {"tokenize": {"file": str(bytelevel), "length": 8}}])
    library = Tokenizer.from_file(str(bytelevel))
    assert run(steps, np.array(["The CUP"])).tolist() == [library.encode("cup").ids + [256] * 5]
    assert Lowercase().apply(np.array(["ÄÖ", "İx"])).tolist() == ["äö", "i̇x"]
    assert Lowercase().apply(np.zeros(0, np.str_)).shape == (0,)


def test_the_file_ships_and_is_found_again(wordpiece: Path) -> None:
    (step,) = parse([{"tokenize": {"file": "tokenizer.json", "length": 8}}], wordpiece.parent)
    assert files_of(step) == {"file": wordpiece}
    assert parse(to_json([step])) == (step,)


def test_no_graph_tokenizes(wordpiece: Path) -> None:
    error = refusal(InputSteps("input_ids", RAW, (Tokenize(wordpiece, 8),)))
    assert "the step 'tokenize' cannot be computed by a graph" in str(error)
    assert error is not None
    assert "bake" in error.hint


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "no tokenizer that `tokenizers` can read"),
        (None, "no tokenizer that `tokenizers` can read"),
        (Tokenizer(models.WordLevel({"cup": 0, "?": 1}, unk_token="?")).to_str(), "no token for padding"),
    ],
)
def test_a_file_that_will_not_do_is_refused_at_once(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=said):
        output_of([Tokenize(file, 8)], RAW)


def test_a_length_with_no_room_for_words_is_refused(wordpiece: Path) -> None:
    with pytest.raises(DataError, match="length is 2, and 2 of these tokens are special"):
        output_of([Tokenize(wordpiece, 2)], RAW)
    with pytest.raises(RecipeError, match="at least 1 token"):
        parse([{"tokenize": {"file": "tokenizer.json", "length": 0}}])


@pytest.mark.parametrize("step", [Lowercase(), RemoveStopWords(), Tokenize(Path("tokenizer.json"), 8)])
def test_what_is_no_text_is_refused(step: object) -> None:
    with pytest.raises(DataError, match=r"expected text, str \[batch\]"):
        output_of([step], TensorSpec("text", "int64", ("batch", 8)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": ["kettle"]}, "words of the list, which has no 'kettle'"),
        ({"more": ["Cup"]}, "words in lower case"),
    ],
)
def test_stop_words_are_checked(options: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse([{"remove_stop_words": options}])


def test_a_missing_library_is_named_with_its_extra(wordpiece: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match="'tokenizers' is needed to turn text into tokens") as caught:
        output_of([Tokenize(wordpiece, 31)], RAW)
    assert caught.value.hint == "pip install 'edgemm[text]'"


def test_the_library_is_imported_when_a_tokenizer_is_opened() -> None:
    code = (
        "import sys; from edgemm.preprocess import parse;"
        "parse(['lowercase', {'tokenize': {'file': 'x.json', 'length': 8}}]);"
        "sys.exit('tokenizers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

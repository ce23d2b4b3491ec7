"""Images and reviews: the user's own copies in the formats they are published in, splits that share nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recipes.datasets import colour_images, image_text, movies, words


def write_cifar(folder: Path, per_file: int = 12) -> np.ndarray:
    """Writes six files of CIFAR-10's binary version; returns the pixels of the test batch."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (per_file, 3, 32, 32), np.uint8)
        classes = (np.arange(per_file) % 10).astype(np.uint8)
        np.concatenate([classes[:, None], pixels.reshape(per_file, -1)], axis=1).tofile(folder / f"{name}.bin")
    return pixels


def write_imdb(folder: Path, per_verdict: int) -> None:
    """Writes reviews as aclImdb has them; film numbers, and a word that tells the part and the verdict."""
    for part in ("train", "test"):
        for verdict, rating in (("neg", 2), ("pos", 9)):
            (folder / part / verdict).mkdir(parents=True)
            for number in range(per_verdict):
                text = f"Film {chr(97 + number % 26) * (1 + number // 26)}.<br />A {verdict} one, {part}!"
                (folder / part / verdict / f"{number}_{rating}.txt").write_text(text, encoding="utf-8")


def test_own_cifar_is_read_channel_by_channel_and_its_test_batch_is_for_evaluation(tmp_path: Path) -> None:
    test = write_cifar(tmp_path / "cifar-10-batches-bin")
    counts = {"train": 40, "calib": 20, "eval": 12}
    splits = colour_images.load_images(counts, 0, tmp_path / "cifar-10-batches-bin")
    images, classes = splits["eval"]
    assert images.shape == (12, 3, 32, 32)
    assert images.dtype == np.float32
    pixels = np.round((images + 1) * 127.5).astype(np.uint8)
    order = np.array([int(np.argmax([(p == t).all() for t in test])) for p in pixels])
    assert sorted(order) == list(range(12))
    np.testing.assert_array_equal(classes, order % 10)
    seen = [image.tobytes() for part in splits.values() for image in part[0]]
    assert len(seen) == len(set(seen)) == 72


def test_a_cut_cifar_file_is_named(tmp_path: Path) -> None:
    tmp_path.joinpath("data_batch_1.bin").write_bytes(b"\0" * 3000)
    with pytest.raises(RuntimeError, match=r"data_batch_1\.bin: got 3000 bytes, expected a multiple of 3073"):
        colour_images.load_images({"train": 1, "eval": 1}, 0, tmp_path)


def test_own_imdb_keeps_its_parts_apart(tmp_path: Path) -> None:
    write_imdb(tmp_path / "aclImdb", 60)
    splits = movies.load_reviews({"train": 20, "calib": 8, "eval": 20}, tmp_path / "aclImdb")
    for split, (texts, verdicts) in splits.items():
        assert all(("test!" in text) == (split == "eval") for text in texts)
        assert [("pos one" in text) for text in texts] == verdicts.astype(bool).tolist()
    trained = {t.split("<")[0] for t in splits["train"][0]}
    assert not trained & {t.split("<")[0] for t in splits["calib"][0]}


def test_missing_reviews_are_counted(tmp_path: Path) -> None:
    write_imdb(tmp_path, 30)
    with pytest.raises(RuntimeError, match="too few reviews for 'train': got 30, expected 100"):
        movies.load_reviews({"train": 100, "eval": 2}, tmp_path)
    with pytest.raises(RuntimeError, match="no reviews in"):
        movies.load_reviews({"train": 2}, tmp_path / "nowhere")


def test_data_root_with_both_gives_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "own" / image_text.CIFAR)
    write_imdb(tmp_path / "own" / image_text.IMDB, 80)
    sizes = image_text.Sizes((30, 10, 12), (40, 10, 20))
    splits = image_text.load(tmp_path / "own", sizes)
    assert splits["train"]["image"].shape == (30, 3, 32, 32)
    assert splits["train"]["text"].shape == (40, 128)
    assert splits["eval"]["label"].shape == (12, 2)
    assert len({len(array) for array in splits["eval"].values()}) == 1
    assert splits["eval"]["text"].dtype == np.int64
    decoded = words.Tokenizer.from_str(image_text.tokenizer(tmp_path / "own", sizes)).decode(
        splits["eval"]["text"][0].tolist()
    )
    assert ("pos" in decoded.split()) == bool(splits["eval"]["label"][0, 1])


def test_words_keep_the_end_and_pad_behind() -> None:
    tokenizer = words.fit_words(["The film was GOOD!", "the film was bad", "the film"], 6)
    ids = words.word_ids(tokenizer, ["the film was bad", "film", "Thé <br/>film's"], 3)
    assert ids.shape == (3, 3)
    film, was = ids[1, 0], ids[0, 1]
    assert ids[1].tolist() == [film, 0, 0]
    assert ids[0].tolist()[:2] == [film, was]
    assert ids[2, 0] == words.word_ids(tokenizer, ["the"], 3)[0, 0] > 1  # accents and tags are dropped
    assert words.fit_words(["The film was GOOD!", "the film was bad", "the film"], 6) == tokenizer

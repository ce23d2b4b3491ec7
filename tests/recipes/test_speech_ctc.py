"""Speech of any length, with the speaker's voice: the data, the conditioning, and dynamic time in the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from quick_recipe import Converted, convert_quick

from edgemm.runtime import open_session
from recipes.datasets import spoken_phrases as dataset
from recipes.models import speech_ctc


def test_a_phrase_is_classes_from_one_with_no_blank() -> None:
    classes = dataset.encode("go left")
    assert classes.shape == (dataset.LONGEST,)
    assert classes[:4].tolist() == [8, 16, 1, 13]
    assert (classes[7:] == -1).all()
    assert max(len(word) for word in dataset.WORDS) * 3 + 2 <= dataset.LONGEST


def test_any_length_goes_in_and_the_speaker_counts() -> None:
    model = speech_ctc.build()
    with torch.no_grad():
        for frames in (32, 49):
            audio, speaker = torch.randn(2, 40, frames), torch.randn(2, 80)
            logits, other = (model(audio, s)["logits"] for s in (speaker, speaker.flip(0)))
            assert logits.shape == (2, (frames + 1) // 2, len(dataset.ALPHABET) + 1)
            assert not torch.allclose(logits, other, atol=1e-4)


def test_the_loss_is_that_of_the_right_text() -> None:
    text = torch.from_numpy(dataset.encode("go"))[None]
    right = torch.zeros(1, 6, speech_ctc.CLASSES)
    right[0, torch.arange(6), torch.tensor([0, 8, 8, 0, 16, 0])] = 20
    assert speech_ctc.ctc_loss(right, text) < 0.01 < speech_ctc.ctc_loss(right.flip(1), text)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return convert_quick("speech_ctc", tmp_path_factory.mktemp("speech_ctc"))


def shards(place: Path) -> list[dict[str, np.ndarray]]:
    loaded = []
    for path in sorted((place / "eval").glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            loaded.append({name: data[name] for name in data.files})
    return loaded


@pytest.mark.slow
def test_time_stays_dynamic_and_the_speaker_is_a_modality(converted: Converted) -> None:
    assert converted.modalities == {"audio": "audio", "speaker": "speaker"}
    audio = next(i for i in converted.result["inputs"] if i["name"] == "audio")
    assert audio["shape"][1] == 40
    assert isinstance(audio["shape"][2], str)
    assert converted.accuracy["metric"].endswith("character_accuracy")


@pytest.mark.slow
def test_every_length_gives_what_the_model_gives(converted: Converted) -> None:
    model = speech_ctc.build()
    model.load_state_dict(torch.load(converted.place / "model.pt", weights_only=True))
    lengths = set()
    with open_session(converted.bundle) as session:
        for shard in shards(converted.place):
            feed = {name: shard[name] for name in ("audio", "speaker")}
            with torch.no_grad():
                expected = model(*map(torch.from_numpy, feed.values()))["logits"].numpy()
            given = session.run(feed)["logits"]
            assert given.shape == expected.shape
            assert np.corrcoef(given.ravel(), expected.ravel())[0, 1] > 0.98
            lengths.add(given.shape[1])
    assert len(lengths) > 2

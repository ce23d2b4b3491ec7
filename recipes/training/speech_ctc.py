"""Trains speech to characters for a known speaker, with CTC."""

from __future__ import annotations

from pathlib import Path

from recipes.datasets import spoken_phrases as dataset
from recipes.datasets.cache import save_arrays
from recipes.models import speech_ctc
from recipes.models.saving import save_weights
from recipes.training.writing import note, tensors

QUICK = dataset.Options(phrases=(200, 24, 40), snr_db=(20.0, 25.0))


def make(place: Path, *, quick: bool = False) -> None:
    """Writes `model.pt`, and folders `calib` and `eval` with a shard per length of time, to `place`.

    A .pt2 would fix the number of frames: torch.export unrolls an LSTM. edgemm exports the model with it whole.
    """
    splits = dataset.load(QUICK) if quick else dataset.load()
    model = speech_ctc.build()
    speech_ctc.train(model, [tensors(s) for s in splits["train"]], epochs=3 if quick else 14, report=note)
    for split in ("calib", "eval"):
        for shard in splits[split]:
            save_arrays(place / split / f"{shard['audio'].shape[2]:03}.npz", shard)
    save_weights(model, place / "model.pt")

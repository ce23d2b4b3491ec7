"""Speech to characters for a known speaker: CNN and LSTM, the voice by FiLM, CTC. Plain torch, no edgemm.

    audio [B,40,T] ─▶ 2 convolutions ─▶ scale and shift per channel ─▶ LSTM ─▶ logits [B,T/2,28]
                                              ▲
    speaker [B,80] ─▶ 2 layers ───────────────┘

FiLM: Perez et al. 2018. CTC: Graves et al. 2006. The time axis is dynamic; class 0 is the blank. The LSTM
looks back only, the convolutions look a few frames ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

BANDS, SPEAKER, CHANNELS, HIDDEN, CLASSES = 40, 80, 128, 128, 28
MISSING_RATE = 0.1
"""Share of training phrases whose speaker is not known: zeros."""


class SpeechCTC(nn.Module):
    """Convolutions over time, modulated by the speaker, then an LSTM and a layer per step."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_encoder = nn.Sequential(
            nn.Conv1d(BANDS, CHANNELS, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(CHANNELS),
            nn.ReLU(),
            nn.Conv1d(CHANNELS, CHANNELS, 5, padding=2, bias=False),
            nn.BatchNorm1d(CHANNELS),
        )
        self.speaker_encoder = nn.Sequential(nn.Linear(SPEAKER, 64), nn.ReLU(), nn.Linear(64, 2 * CHANNELS))
        self.lstm = nn.LSTM(CHANNELS, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, audio: torch.Tensor, speaker: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,(T+1)//2,28]`."""
        heard = self.audio_encoder(audio)
        scale, shift = self.speaker_encoder(speaker).unsqueeze(2).chunk(2, dim=1)
        heard = torch.relu(heard * (1 + scale) + shift)
        steps, _ = self.lstm(heard.transpose(1, 2))
        return {"logits": self.head(steps)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return SpeechCTC().eval()


def ctc_loss(logits: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Returns the mean CTC loss per character of logits `[B,T,28]` for classes `[B,L]` padded with -1."""
    steps = torch.full((len(logits),), logits.shape[1], dtype=torch.long)
    return F.ctc_loss(
        F.log_softmax(logits, dim=2).transpose(0, 1),
        text.clamp(min=0),
        steps,
        (text >= 0).sum(1),
        zero_infinity=True,
    )


def train(
    model: nn.Module,
    shards: Sequence[Mapping[str, torch.Tensor]],
    *,
    epochs: int = 14,
    batch: int = 32,
    rate: float = 4e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place; every batch is of one length, with a band and a moment masked (SpecAugment).

    Args:
        model: From `build`.
        shards: Each with `audio`, `speaker` and `text`, one row per phrase, all of one length.
        epochs: Passes over the data.
        batch: Phrases per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    generator = torch.Generator().manual_seed(0)
    count = sum(-(-len(shard["text"]) // batch) for shard in shards)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * count, pct_start=0.15)
    model.train()
    for epoch in range(epochs):
        parts = [(s, r) for s in shards for r in torch.randperm(len(s["text"]), generator=generator).split(batch)]
        total = 0.0
        for at in torch.randperm(len(parts), generator=generator).tolist():
            shard, rows = parts[at]
            audio = shard["audio"][rows].clone()
            band, moment = (int(torch.randint(0, n - 4, (1,), generator=generator)) for n in audio.shape[1:])
            audio[:, band : band + 4], audio[:, :, moment : moment + 4] = 0.0, 0.0
            known = torch.rand(len(rows), 1, generator=generator) >= MISSING_RATE
            loss = ctc_loss(model(audio, shard["speaker"][rows] * known)["logits"], shard["text"][rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        report(f"epoch {epoch + 1} of {epochs}: loss {total / count:.3f}")
    model.eval()

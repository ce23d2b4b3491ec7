"""The mood of a message from its words and from the voice beside it: each decides, the decisions are added.

    text [B,32] ids ─▶ mean of word vectors ─▶ text_logits [B,3] ───────▶ × weight ─┐
                                                                                     + ─▶ logits [B,3]
    prosody [B,4,96] ─▶ convolutions over time ─▶ prosody_logits [B,3] ─▶ × weight ─┘

Late fusion: the sum of weighted log-probabilities is a product of experts (Hinton, 2002), with a learned weight
per expert and class. Both decisions are outputs: either can be used alone. Plain torch, no edgemm; `build` is the
factory for `edgemm convert --factory recipes/models/sentiment.py:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

MOODS, WORDS, WIDTH = 3, 4000, 64


class TextExpert(nn.Module):
    """The mean of the vectors of the words that are there (Joulin et al., 2016), and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.1 * torch.randn(WORDS, WIDTH), freeze=False)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Sequential(
            nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.3), nn.Linear(WIDTH, MOODS)
        )

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Returns word ids `[B,32]` int64, 0 for none, as logits `[B,3]`."""
        there = (text != 0).unsqueeze(2).to(torch.float32)
        words = self.dropout(self.embedding(text)) * there
        return self.head(words.sum(1) / there.sum(1).clamp(min=1))


class ProsodyExpert(nn.Module):
    """Three convolutions over time, the mean, one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.BatchNorm1d(4),
            nn.Conv1d(4, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv1d(32, 64, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Conv1d(64, 64, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, MOODS))

    def forward(self, prosody: torch.Tensor) -> torch.Tensor:
        """Returns prosody `[B,4,96]` as logits `[B,3]`."""
        return self.head(self.convolutions(prosody).mean(2))


class Sentiment(nn.Module):
    """Both experts, and the weighted sum of what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.text_expert, self.prosody_expert = TextExpert(), ProsodyExpert()
        self.text_weight, self.prosody_weight = nn.Parameter(torch.ones(MOODS)), nn.Parameter(torch.ones(MOODS))

    def forward(self, text: torch.Tensor, prosody: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits`, `text_logits` and `prosody_logits`, `[B,3]` each: negative, neutral, positive."""
        read, heard = self.text_expert(text), self.prosody_expert(prosody)
        joined = self.text_weight * read.log_softmax(1) + self.prosody_weight * heard.log_softmax(1)
        return {"logits": joined, "text_logits": read, "prosody_logits": heard}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return Sentiment().eval()


def train(
    model: nn.Module,
    arrays: Mapping[str, torch.Tensor],
    *,
    epochs: int = 6,
    rate: float = 4e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place, each expert on its own and both together; equal data and threads, equal weights.

    Every epoch reads each text once, beside another recording in the same mood than before.

    Args:
        model: From `build`.
        arrays: `text` and `text_label`, one row per text; `prosody` and `prosody_label`, one row per recording.
        epochs: Passes over the texts.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    by_mood = [torch.nonzero(arrays["prosody_label"] == mood)[:, 0] for mood in range(MOODS)]
    texts = len(arrays["text"])
    steps = epochs * -(-texts // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(texts, generator=generator).split(64):
            label = arrays["text_label"][rows]
            dice = torch.rand(len(rows), generator=generator).tolist()
            clips = torch.stack(
                [by_mood[m][int(d * len(by_mood[m]))] for m, d in zip(label.tolist(), dice, strict=True)]
            )
            answers = model(arrays["text"][rows], arrays["prosody"][clips])
            loss = sum(F.cross_entropy(logits, label, label_smoothing=0.05) for logits in answers.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        report(f"epoch {epoch + 1} of {epochs}: loss {total / texts:.3f}")
    model.eval()

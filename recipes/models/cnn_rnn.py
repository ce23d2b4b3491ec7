"""What a picture shows and how a review judges, two answers: CNN and RNN, joined by concatenation.

    image [B,3,32,32] ─▶ convolutions ─▶ 96 ─┐                   ┌─▶ image_logits [B,10]
                                              concat ─▶ 128 ─────┤
    text [B,128] ids ─▶ embedding ─▶ RNN ─▶ 96 ┘                 └─▶ sentiment_logits [B,2]

The RNN is Elman's, with tanh (Elman, "Finding Structure in Time", 1990). It reads the mean vectors of four words
at a time, so a review of 128 words takes it 32 steps. Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/cnn_rnn.py:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, MOODS, WORDS, WIDTH, PHRASE = 10, 2, 8000, 96, 4
MISSING_RATE = 0.1
"""Share of training samples whose image, and share whose text, is blank: fusion must survive a silent sensor."""


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU, pooling by 2."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def image_encoder() -> nn.Sequential:
    """Returns image `[B,3,32,32]` to features `[B,96]`."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(stem, block(16, 32), block(32, 64), nn.Flatten(), nn.Linear(64 * 16, WIDTH), nn.ReLU())


class TextEncoder(nn.Module):
    """Word vectors, a recurrent layer over phrases of four words, the mean of its states."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.1 * torch.randn(WORDS, 64), freeze=False)
        self.dropout = nn.Dropout(0.5)
        self.pool = nn.AvgPool1d(PHRASE)
        self.norm = nn.BatchNorm1d(64)
        self.recurrent = recurrent

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Returns word ids `[B,128]` int64, 0 for none, as features `[B,96]`."""
        there = (text != 0).unsqueeze(2).to(torch.float32)
        words = (self.dropout(self.embedding(text)) * there).transpose(1, 2)
        states, _ = self.recurrent(self.norm(self.pool(words)).transpose(1, 2))
        return states.mean(1)


class TwoHeads(nn.Module):
    """Both encoders, one hidden layer on both, and a head per answer."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder(), TextEncoder(recurrent)
        self.join = nn.Sequential(nn.Linear(2 * WIDTH, 128), nn.ReLU())
        self.image_head, self.sentiment_head = nn.Linear(128, CLASSES), nn.Linear(128, MOODS)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `image_logits` `[B,10]` and `sentiment_logits` `[B,2]` (0 negative, 1 positive)."""
        joined = self.join(torch.cat([self.image_encoder(image), self.text_encoder(text)], dim=1))
        return {"image_logits": self.image_head(joined), "sentiment_logits": self.sentiment_head(joined)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return TwoHeads(nn.RNN(64, WIDTH, batch_first=True)).eval()


def blank(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the batch with some samples set to zero."""
    keep = torch.rand(len(batch), generator=generator) >= MISSING_RATE
    return batch * keep.view(-1, *[1] * (batch.ndim - 1)).to(batch.dtype)


def train(
    model: nn.Module,
    arrays: Mapping[str, torch.Tensor],
    *,
    epochs: int = 3,
    rate: float = 4e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place on the sum of both answers' losses; equal data and threads give equal weights.

    Every epoch reads each text once, beside another image than before, shifted a little, and blanks some.

    Args:
        model: Takes `(image, text)`, gives `image_logits` and `sentiment_logits`.
        arrays: `image` and `image_label`, one row per image; `text` and `text_label`, one row per text.
        epochs: Passes over the texts.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, texts = len(arrays["image"]), len(arrays["text"])
    steps = epochs * -(-texts // 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(texts, generator=generator).split(128):
            seen = torch.randint(images, (len(rows),), generator=generator)
            step = torch.randint(-2, 3, (2,), generator=generator).tolist()
            image = blank(torch.roll(arrays["image"][seen], step, dims=(-2, -1)), generator)
            answers = model(image, blank(arrays["text"][rows], generator))
            loss = F.cross_entropy(answers["image_logits"], arrays["image_label"][seen], label_smoothing=0.05)
            moods = answers["sentiment_logits"]
            loss = loss + F.cross_entropy(moods, arrays["text_label"][rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        report(f"epoch {epoch + 1} of {epochs}: loss {total / texts:.3f}")
    model.eval()

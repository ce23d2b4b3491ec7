"""What a picture shows and how a review judges: CNN and word vectors, joined by a low-rank bilinear product.

    image [B,3,32,32] ─▶ convolutions ─▶ 128 ─▶ U ─▶ tanh ─┐
                                                            × ─▶ 96 ─▶ logits [B,20]
    text [B,128] ids ─▶ mean of word vectors ─▶ 128 ─▶ V ─▶ tanh ─┘

Every logit is a bilinear form of both feature vectors whose matrix has rank 96 at most (Kim et al., "Hadamard
Product for Low-rank Bilinear Pooling", 2017). Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/bilinear.py:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, MOODS, WORDS, RANK = 10, 2, 8000, 96
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
    """Returns image `[B,3,32,32]` to features `[B,128]`."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(stem, block(16, 32), block(32, 64), nn.Flatten(), nn.Linear(64 * 16, 128), nn.ReLU())


class TextEncoder(nn.Module):
    """The mean of the vectors of the words that are there (Joulin et al., 2016), and one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.1 * torch.randn(WORDS, 64), freeze=False)
        self.dropout = nn.Dropout(0.5)
        self.project = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 128), nn.ReLU())

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Returns word ids `[B,T]` int64, 0 for none, as features `[B,128]`."""
        there = (text != 0).unsqueeze(2).to(torch.float32)
        words = self.dropout(self.embedding(text)) * there
        return self.project(words.sum(1) / there.sum(1).clamp(min=1))


class Bilinear(nn.Module):
    """Both encoders, and the element-wise product of their projections."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder(), TextEncoder()
        self.image_projection, self.text_projection = nn.Linear(128, RANK), nn.Linear(128, RANK)
        self.head = nn.Linear(RANK, CLASSES * MOODS)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,20]`; class = class of the image × 2 + mood (0 negative, 1 positive)."""
        seen = torch.tanh(self.image_projection(self.image_encoder(image)))
        read = torch.tanh(self.text_projection(self.text_encoder(text)))
        return {"logits": self.head(seen * read)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return Bilinear().eval()


def blank(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the batch with some samples set to zero."""
    keep = torch.rand(len(batch), generator=generator) >= MISSING_RATE
    return batch * keep.view(-1, *[1] * (batch.ndim - 1)).to(batch.dtype)


def train(
    model: nn.Module,
    arrays: Mapping[str, torch.Tensor],
    *,
    epochs: int = 3,
    rate: float = 5e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place; the same data and threads give the same weights.

    Every epoch reads each text once, beside another image than before, shifted a little, and blanks some.

    Args:
        model: Takes `(image, text)`, gives `{"logits": [B,20]}`.
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
            label = arrays["image_label"][seen] * MOODS + arrays["text_label"][rows]
            logits = model(image, blank(arrays["text"][rows], generator))["logits"]
            loss = F.cross_entropy(logits, label, label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        report(f"epoch {epoch + 1} of {epochs}: loss {total / texts:.3f}")
    model.eval()

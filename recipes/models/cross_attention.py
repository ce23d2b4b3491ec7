"""A question about one of four pictures: its words look at the image, and where they look is an output.

    text [B,16] ids ─▶ words ─▶ queries ──────────────┐
                                                       cross-attention ─▶ mean ─▶ logits [B,10]
    image [B,3,64,64] ─▶ convolutions ─▶ 64 tokens ────┘ ─▶ weights [B,16,64]

Multi-head attention whose queries are of one modality and whose keys and values are of the other (Vaswani et al.,
"Attention Is All You Need", 2017; Lu et al., "ViLBERT", 2019). Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/cross_attention.py:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

CLASSES, WORDS, WIDTH, HEADS = 10, 64, 64, 4


def strided(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns convolution 3×3 with stride 2, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class ImageTokens(nn.Module):
    """Convolutions to 8×8 tokens that see 31 pixels around, and a learned position each."""

    def __init__(self) -> None:
        super().__init__()
        last = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.convolutions = nn.Sequential(strided(3, 16), strided(16, 32), strided(32, WIDTH), last)
        self.position = nn.Parameter(0.5 * torch.randn(1, 64, WIDTH))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image `[B,3,64,64]` as tokens `[B,64,64]`, with and without their positions."""
        tokens = self.convolutions(image).flatten(2).transpose(1, 2)
        return tokens + self.position, tokens


class TextTokens(nn.Module):
    """Word vectors, each with what the whole question says."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.question = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, text: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Returns word ids `[B,16]` as tokens `[B,16,64]`; `there` `[B,16,1]` is 1 for words, 0 for none."""
        words = self.embedding(text)
        mean = (words * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        return words + self.question(2 * mean)


class CrossAttention(nn.Module):
    """Words ask, image tokens answer."""

    def __init__(self) -> None:
        super().__init__()
        self.image_tokens, self.text_tokens = ImageTokens(), TextTokens()
        self.norm_text, self.norm_image = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, CLASSES))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,10]` and `weights` `[B,16,64]`: where each word looks, row by row of 8×8."""
        there = (text != 0).unsqueeze(2).to(torch.float32)
        words = self.norm_text(self.text_tokens(text, there))
        keys, values = self.image_tokens(image)
        seen, weights = self.attention(words, self.norm_image(keys), values)
        mean = (seen * there).sum(1) / there.sum(1).clamp(min=1)
        return {"logits": self.head(mean), "weights": weights}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return CrossAttention().eval()


def square(four: torch.Tensor) -> torch.Tensor:
    """Returns `[N,4,3,32,32]` as `[N,3,64,64]`: upper left, upper right, lower left, lower right."""
    upper, lower = (torch.cat([four[:, i], four[:, i + 1]], dim=-1) for i in (0, 2))
    return torch.cat([upper, lower], dim=-2)


def train(
    model: nn.Module,
    arrays: Mapping[str, torch.Tensor],
    *,
    epochs: int = 5,
    rate: float = 2e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place; the same data and threads give the same weights.

    Every epoch makes other squares of the small images, and asks one question about each.

    Args:
        model: Takes `(image, text)`, gives `{"logits": [B,10]}`.
        arrays: `image` `[M,3,32,32]` and `image_label` `[M]`; `text` and `place`, one row per question.
        epochs: Each of twice as many squares as there are images.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images, asked = len(arrays["image"]), len(arrays["text"])
    steps = epochs * -(-images * 2 // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randint(images, (images * 2, 4), generator=generator).split(64):
            question = torch.randint(asked, (len(rows),), generator=generator)
            place = arrays["place"][question]
            label = arrays["image_label"][rows[torch.arange(len(rows)), place]]
            logits = model(square(arrays["image"][rows]), arrays["text"][question])["logits"]
            loss = F.cross_entropy(logits, label)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        report(f"epoch {epoch + 1} of {epochs}: loss {total / (2 * images):.3f}")
    model.eval()

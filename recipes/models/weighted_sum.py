"""What a picture shows and how a review judges: CNN and word embedding, joined by a weighted sum. Plain torch.

    image [B,3,32,32] ─▶ convolutions ─▶ Xi [B,128] ─┐
                                                      w1 · Xt + w2 · Xi ─▶ ReLU ─▶ logits [B,20]
    text [B,128] ids ─▶ embedding ─▶ mean ─▶ Xt [B,128] ─┘

w1 and w2 are two numbers, learned with the rest: a joint representation as in Baltrušaitis, Ahuja & Morency,
"Multimodal Machine Learning: A Survey and Taxonomy", 2019. `build` is the factory for
`edgemm convert --factory recipes/models/weighted_sum.py:build`; train it with `bilinear.train`.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES, MOODS, WORDS, WIDTH = 10, 2, 8000, 128


def block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


def image_encoder() -> nn.Sequential:
    """Returns image `[B,3,32,32]` to Xi `[B,128]`."""
    return nn.Sequential(
        block(3, 16, 2),
        block(16, 32, 1),
        nn.MaxPool2d(2),
        block(32, 64, 1),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 16, WIDTH),
        nn.Tanh(),
    )


class WordEmbedding(nn.Module):
    """The mean of the word vectors, projected: the order of the words is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.1 * torch.randn(WORDS, 64), freeze=False)
        self.dropout = nn.Dropout(0.5)
        self.project = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, WIDTH), nn.Tanh())

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Returns word ids `[B,T]` int64, 0 for none, as Xt `[B,128]`."""
        there = (text != 0).unsqueeze(-1).to(torch.float32)
        words = self.dropout(self.embedding(text)) * there
        return self.project(words.sum(1) / there.sum(1).clamp(min=1))


class WeightedSum(nn.Module):
    """Both encoders, the sum of what they give in learned proportions, one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder(), WordEmbedding()
        self.weights = nn.Parameter(torch.ones(2))
        self.head = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, CLASSES * MOODS)
        )

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,20]`; class = class of the image × 2 + mood (0 negative, 1 positive)."""
        joined = self.weights[0] * self.text_encoder(text) + self.weights[1] * self.image_encoder(image)
        return {"logits": self.head(joined)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed; both weights start at 1."""
    torch.manual_seed(0)
    return WeightedSum().eval()

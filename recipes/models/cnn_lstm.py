"""What a picture shows and how a review judges, two answers: CNN and LSTM, joined by concatenation.

    image [B,3,32,32] ─▶ convolutions ─▶ 96 ─────┐               ┌─▶ image_logits [B,10]
                                                  concat ─▶ 128 ─┤
    text [B,128] ids ─▶ embedding ─▶ LSTM ─▶ 96 ─┘               └─▶ sentiment_logits [B,2]

As `cnn_rnn`, with long short-term memory (Hochreiter & Schmidhuber, 1997) in place of its RNN; train it with
`cnn_rnn.train`. Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/cnn_lstm.py:build`.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES, MOODS, WORDS, WIDTH, PHRASE = 10, 2, 8000, 96, 4


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
    """Word vectors, an LSTM over phrases of four words, the mean of its states."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.1 * torch.randn(WORDS, 64), freeze=False)
        self.dropout = nn.Dropout(0.5)
        self.pool = nn.AvgPool1d(PHRASE)
        self.norm = nn.BatchNorm1d(64)
        self.lstm = nn.LSTM(64, WIDTH, batch_first=True)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Returns word ids `[B,128]` int64, 0 for none, as features `[B,96]`."""
        there = (text != 0).unsqueeze(2).to(torch.float32)
        words = (self.dropout(self.embedding(text)) * there).transpose(1, 2)
        states, _ = self.lstm(self.norm(self.pool(words)).transpose(1, 2))
        return states.mean(1)


class CNNLSTM(nn.Module):
    """Both encoders, one hidden layer on both, and a head per answer."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder(), TextEncoder()
        self.join = nn.Sequential(nn.Linear(2 * WIDTH, 128), nn.ReLU())
        self.image_head, self.sentiment_head = nn.Linear(128, CLASSES), nn.Linear(128, MOODS)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `image_logits` `[B,10]` and `sentiment_logits` `[B,2]` (0 negative, 1 positive)."""
        joined = self.join(torch.cat([self.image_encoder(image), self.text_encoder(text)], dim=1))
        return {"image_logits": self.image_head(joined), "sentiment_logits": self.sentiment_head(joined)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return CNNLSTM().eval()

"""What a picture shows and how a review judges: patches and words, one Transformer from the first layer on.

    image [B,3,32,32] ─▶ 16 patches ──────────┐
                                               class token, 32 tokens ─▶ 2 Transformer layers ─▶ logits [B,20]
    text [B,128] ids ─▶ 16 phrases of 8 words ─┘

Early fusion: every layer sees both modalities (Kim et al., "ViLT: Vision-and-Language Transformer Without
Convolution or Region Supervision", 2021), told apart by a learned vector each. Patches come from three strided
convolutions, which train faster than one (Xiao et al., 2021). Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/transformer_fusion.py:build`; train it with `bilinear.train`.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES, MOODS, WORDS, WIDTH, HEADS, PHRASE = 10, 2, 8000, 64, 4, 8


def strided(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns convolution 3×3 with stride 2, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class PatchEmbedding(nn.Module):
    """Patches of 8×8 pixels as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            strided(3, 24), strided(24, 48), strided(48, 96), nn.Conv2d(96, WIDTH, 1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns image `[B,3,32,32]` as tokens `[B,16,64]`."""
        return self.convolutions(image).flatten(2).transpose(1, 2)


class WordEmbedding(nn.Module):
    """Mean word vectors of eight words as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.1 * torch.randn(WORDS, WIDTH), freeze=False)
        self.dropout = nn.Dropout(0.5)
        self.pool = nn.AvgPool1d(PHRASE)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Returns word ids `[B,128]` int64, 0 for none, as tokens `[B,16,64]`."""
        there = (text != 0).unsqueeze(2).to(torch.float32)
        words = (self.dropout(self.embedding(text)) * there).transpose(1, 2)
        return self.norm(self.pool(words)).transpose(1, 2)


class Layer(nn.Module):
    """A pre-norm Transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns tokens `[B,T,64]` that have looked at each other."""
        normed = self.norm_attention(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.feed_forward(self.norm(tokens))


class TransformerFusion(nn.Module):
    """Tokens of both modalities in one sequence; the class token answers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.words = PatchEmbedding(), WordEmbedding()
        self.image_position = nn.Parameter(0.1 * torch.randn(1, 16, WIDTH))
        self.text_position = nn.Parameter(0.1 * torch.randn(1, 16, WIDTH))
        self.class_token = nn.Parameter(0.1 * torch.randn(1, 1, WIDTH))
        self.layers = nn.Sequential(Layer(), Layer())
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES * MOODS))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,20]`; class = class of the image × 2 + mood (0 negative, 1 positive)."""
        seen, read = self.patches(image) + self.image_position, self.words(text) + self.text_position
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), seen, read], dim=1)
        return {"logits": self.head(self.layers(tokens)[:, 0])}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return TransformerFusion().eval()

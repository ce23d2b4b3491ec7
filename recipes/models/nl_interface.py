"""A command to a screen: the words look at what is on the screen, by cross-attention. Plain torch, no edgemm.

    tokens [B,12] ─▶ embedding ─▶ self-attention ────────┐
                                                          cross-attention ─▶ self-attention ─▶ slot_logits [B,12,7]
    names [B,8,3], layout [B,8,3] ─▶ elements [B,8,64] ──┘                        └─▶ mean ─▶ intent_logits [B,7]

Joint intent and slots as Chen et al. 2019 (BERT for joint intent classification and slot filling); words that look
at elements as in Seq2Act (Li et al. 2020). Words of commands and of names are one vocabulary, each with a table of
its own, so that the encoders stay apart. `build` is the factory for
`edgemm convert --factory recipes/models/nl_interface.py:build`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, LENGTH, TYPES, INTENTS, TAGS, WIDTH, HEADS = 96, 12, 5, 7, 7, 64, 4
INPUTS = ("tokens", "names", "layout")


class Layer(nn.Module):
    """A pre-norm transformer layer whose keys and values may come from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_inside = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.inside = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, words: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        """Returns words `[B,T,64]` that have looked at `other` `[B,S,64]`, or at each other."""
        query = self.norm(words)
        keys = query if other is None else other
        words = words + self.attention(query, keys, keys, need_weights=False)[0]
        return words + self.inside(self.norm_inside(words))


class Screen(nn.Module):
    """A vector per element: its type, its two words, where it is and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.types = nn.Embedding(TYPES, WIDTH)
        self.first, self.second = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.layout = nn.Linear(3, WIDTH)
        self.mix = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))

    def forward(self, names: torch.Tensor, layout: torch.Tensor) -> torch.Tensor:
        """Returns `[B,8,64]`."""
        words = self.first(names[:, :, 1]) + self.second(names[:, :, 2])
        elements = self.types(names[:, :, 0]) + words + self.layout(layout)
        return F.layer_norm(elements + self.mix(elements), (WIDTH,))


class NLInterface(nn.Module):
    """Words among themselves, words to the screen twice, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(1, LENGTH, WIDTH))
        self.words, self.look, self.again, self.after = Layer(), Layer(), Layer(), Layer()
        self.screen = Screen()
        self.norm = nn.LayerNorm(WIDTH)
        self.intent, self.slots = nn.Linear(WIDTH, INTENTS), nn.Linear(WIDTH, TAGS)

    def forward(self, tokens: torch.Tensor, names: torch.Tensor, layout: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `intent_logits` `[B,7]` and `slot_logits` `[B,12,7]`."""
        words = self.words(self.embedding(tokens) + self.position)
        elements = self.screen(names, layout)
        words = self.norm(self.after(self.again(self.look(words, elements), elements)))
        return {"intent_logits": self.intent(words.mean(1)), "slot_logits": self.slots(words)}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    model = NLInterface()
    for table in (model.embedding, model.screen.first, model.screen.second):
        nn.init.normal_(table.weight, std=0.3)
    model.screen.first.weight.data.copy_(model.embedding.weight)
    model.screen.second.weight.data.copy_(model.embedding.weight)
    return model.eval()


def train(
    model: nn.Module,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 20,
    batch: int = 128,
    rate: float = 3e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place on the three inputs and `label`; elements change places in every step.

    Args:
        model: Takes tokens, names and layout, gives both logits.
        data: Tensors with one row per command; `label` has the intent, then a tag per word, -1 after the end.
        epochs: Passes over the data.
        batch: Commands per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    steps = len(data["label"]) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(data["label"]))[: steps * batch].split(batch):
            tokens, names, layout = (data[name][rows] for name in INPUTS)
            order, label = torch.randperm(names.shape[1]), data["label"][rows]
            given = model(tokens, names[:, order], layout[:, order])
            loss = F.cross_entropy(given["intent_logits"], label[:, 0])
            loss = loss + F.cross_entropy(
                given["slot_logits"].flatten(0, 1), label[:, 1:].flatten(), ignore_index=-1
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        report(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f} ({time.perf_counter() - start:.0f} s)")
    model.eval()

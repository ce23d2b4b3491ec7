"""A picture and a dialogue about it, word by word: a decoder whose cache of keys and values is a state.

    image [B,1,64,64] ─▶ convolutions ─▶ 64 vectors ─▶ keys and values ───────────────┐
                                                                                       cross-attention ─▶ logits
    token [B,1], cache [B,4,64,64], position [B,1] ─▶ self-attention over the cache ──┘                   [B,64]

One call is one word, the user's or the model's own. The cache has a fixed size and a position that counts; the
word `<start>` sets that to zero, so a new dialogue needs no reset. Encoder and decoder as Vaswani et al. 2017,
dialogues as Das et al. 2017 (Visual Dialog). What the decoder reads of the image depends on it alone, so a runtime
that keeps what encoders gave computes it once per picture. Plain torch, no edgemm; `build` is the factory for
`edgemm convert --factory recipes/models/caption_dialogue.py:build`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 64, 64, 64, 4, 2
START = 1
STATES = {"cache": "next_cache", "position": "next_position"}
"""State input -> the output that feeds it."""


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns convolution 3×3 with stride 2, batch norm, ReLU."""
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Returns what `query` `[B,T,64]` finds in `keys` and `values` `[B,S,64]`; `mask` is added to the scores."""
    query, keys, values = (x.unflatten(2, (HEADS, -1)).transpose(1, 2) for x in (query, keys, values))
    scores = query @ keys.transpose(2, 3) * (WIDTH // HEADS) ** -0.5
    found = torch.softmax(scores if mask is None else scores + mask, dim=3) @ values
    return found.transpose(1, 2).flatten(2)


class Layer(nn.Module):
    """Pre-norm decoder layer: the words so far, then the picture, then a dense part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_self, self.norm_image, self.norm_inside = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.query, self.key, self.value, self.join = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.look, self.image_key, self.image_value, self.see = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.inside = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def remember(self, words: torch.Tensor) -> torch.Tensor:
        """Returns keys and values `[B,2,T,64]` of words `[B,T,64]`."""
        normed = self.norm_self(words)
        return torch.stack([self.key(normed), self.value(normed)], dim=1)

    def forward(
        self, words: torch.Tensor, memory: torch.Tensor, mask: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        """Returns words `[B,T,64]` after looking at `memory` `[B,2,S,64]`, as `mask` allows, and at the image."""
        found = attend(self.query(self.norm_self(words)), memory[:, 0], memory[:, 1], mask)
        words = words + self.join(found)
        query = self.look(self.norm_image(words))
        words = words + self.see(attend(query, self.image_key(image), self.image_value(image), None))
        return words + self.inside(self.norm_inside(words))


class CaptionDialogue(nn.Module):
    """An image encoder and a decoder of two layers; `forward` is one word, `teach` a whole dialogue."""

    slots: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(block(1, 24), block(24, 48), block(48, WIDTH))
        self.place = nn.Parameter(0.1 * torch.randn(1, 64, WIDTH))
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.turn = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.register_buffer("slots", torch.arange(LENGTH, dtype=torch.float32).view(1, -1))

    def look(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the picture `[B,1,64,64]` as vectors `[B,64,64]`, eight rows of eight."""
        return self.encoder(image).flatten(2).transpose(1, 2) + self.place

    def forward(
        self, image: torch.Tensor, token: torch.Tensor, cache: torch.Tensor, position: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,64]` of the next word, `next_cache` `[B,4,64,64]` and `next_position` `[B,1]`.

        Args:
            image: `[B,1,64,64]`.
            token: `[B,1]` int64.
            cache: `[B,4,64,64]`: keys and values of both layers, by position.
            position: `[B,1]` float, words so far.
        """
        seen = self.look(image)
        position = position * (token != START).to(position.dtype)
        here = (self.slots == position).to(position.dtype)
        mask = ((self.slots > position).to(position.dtype) * -1e4)[:, None, None]
        words = self.embedding(token) + (here @ self.turn)[:, None]
        kept = []
        for layer, memory in zip(self.layers, cache.chunk(LAYERS, dim=1), strict=True):
            memory = memory + here[:, None, :, None] * (layer.remember(words) - memory)
            words = layer(words, memory, mask, seen)
            kept.append(memory)
        following = (position + 1).clamp(max=LENGTH - 1)
        return {
            "logits": self.head(self.norm(words))[:, 0],
            "next_cache": torch.cat(kept, dim=1),
            "next_position": following,
        }

    def teach(self, seen: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[B,T,64]` after every word of `tokens` `[B,T]`, all at once; `seen` as of `look`."""
        length = tokens.shape[1]
        mask = torch.full((length, length), -1e4).triu(1)
        words = self.embedding(tokens) + self.turn[:length]
        for layer in self.layers:
            words = layer(words, layer.remember(words), mask, seen)
        return self.head(self.norm(words))


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return CaptionDialogue().eval()


def train(
    model: CaptionDialogue,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 9,
    batch: int = 32,
    rate: float = 3e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place on `image`, `tokens`, `said` and `quarters`.

    Only the answers' words count. A linear layer that is thrown away reads the digits from the picture's quarters:
    without it the decoder has to find out by its few words what there is to see.

    Args:
        model: Of `build`.
        data: Tensors with one row per dialogue.
        epochs: Passes over the data.
        batch: Dialogues per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    steps = len(data["tokens"]) // batch
    reader = nn.Linear(WIDTH, 11)
    parameters = [*model.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(data["tokens"]))[: steps * batch].split(batch):
            tokens, said = data["tokens"][rows], data["said"][rows]
            seen = model.look(data["image"][rows])
            quarters = seen.view(-1, 2, 4, 2, 4, WIDTH).mean((2, 4)).flatten(1, 2)
            logits = model.teach(seen, tokens[:, :-1])
            loss = F.cross_entropy(logits[said[:, 1:]], tokens[:, 1:][said[:, 1:]])
            loss = loss + 0.5 * F.cross_entropy(reader(quarters).flatten(0, 1), data["quarters"][rows].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        report(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f} ({time.perf_counter() - start:.0f} s)")
    model.eval()

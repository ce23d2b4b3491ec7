"""Small torch models for the export tests, and one call that saves, loads and exports them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgemm.export.model import ModelSource, load_model
from edgemm.export.torch_onnx import ExportRequest, ExportResult, export_model


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(array(*shape, seed=seed))


class TwoBranch(nn.Module):
    """Image and audio, joined by a concat; two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 8))
        self.audio = nn.Linear(5, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        joined = torch.cat([self.image(image), self.audio(audio)], 1)
        return {"logits": self.head(joined), "embedding": joined}


@dataclass
class Result:
    """As a transformers ModelOutput: fields, some of them None, some nested."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] = ()


class Nested(nn.Module):
    """Takes one dict of tensors, gives a dataclass; an optional argument nobody feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, batch: dict[str, torch.Tensor], scale: torch.Tensor | None = None) -> Result:
        hidden = self.linear(batch["image"]) + self.linear(batch["audio"])
        return Result(hidden.sigmoid(), None, (hidden, hidden * 2))


class Cached(nn.Module):
    """One decoding step with a key-value cache, and lengths that are not features."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16)

    def forward(self, input_ids: torch.Tensor, past_key_values: Any) -> dict[str, Any]:
        token = self.embed(input_ids)
        key, value = past_key_values[0]
        key, value = torch.cat([key, token], 1), torch.cat([value, token * 2], 1)
        seen = torch.softmax(token @ key.transpose(1, 2), -1) @ value
        return {"logits": self.head(seen), "past_key_values": ((key, value),)}


class StatefulGru(nn.Module):
    """One time step of a GRU whose hidden state goes in and comes out, with batch on axis 1 of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, num_layers=2, batch_first=True)
        self.image = nn.Linear(4, 8)

    def forward(
        self, imu: torch.Tensor, image: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps, h = self.gru(imu, h)
        return steps[:, -1] + self.image(image), h


class LstmOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(6, 8, batch_first=True, bidirectional=True)
        self.image = nn.Linear(4, 8)

    def forward(self, audio: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        steps, _ = self.encoder(audio)
        return torch.cat([steps.mean(1), self.image(image)], -1)


class FlattensByHand(nn.Module):
    """`view(x.size(0), -1)`: torch.export writes the example's batch into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(12, 8)
        self.gru = nn.GRU(3, 8, batch_first=True)

    def forward(self, image: torch.Tensor, imu: torch.Tensor) -> torch.Tensor:
        steps, _ = self.gru(imu)
        return self.image(image.view(image.size(0), -1)) + steps[:, -1]


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(6, 16)
        self.image = nn.Linear(4, 16)
        self.cls = nn.Parameter(torch.full((1, 1, 16), 0.1))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor, image: torch.Tensor, tokens_mask: torch.Tensor) -> torch.Tensor:
        keys = torch.cat([self.cls.expand(tokens.size(0), -1, -1), self.tokens(tokens)], 1)
        blind = torch.cat([torch.zeros_like(tokens_mask[:, :1]), tokens_mask], 1)
        joined, _ = self.attention(self.image(image).unsqueeze(1), keys, keys, key_padding_mask=blind)
        return self.head(joined.squeeze(1))


class OneAtATime(nn.Module):
    """Hard-codes a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return (self.linear(image) + self.linear(audio)).view(1, 2, 4).sum(1)


class SeesNeighbours(nn.Module):
    """Normalises by the statistics of the batch, as BatchNorm does in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"score": self.linear(image) - audio.mean(0), "clean": self.linear(audio)}


class LoopsOverTime(nn.Module):
    """A Python loop over time: any export fixes the number of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Loop()

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.encoder(audio)


class _Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.5))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        state = torch.zeros_like(audio[:, 0])
        for step in range(audio.shape[1]):
            state = state * self.decay + audio[:, step]
        return state


def save(module: nn.Module, args: tuple[Any, ...], folder: Path, how: str, dynamic: Any = None) -> ModelSource:
    """Saves `module` as "pt2", "torchscript" or "pickle"; returns where to load it from."""
    module.eval()
    path = folder / f"{type(module).__name__}.bin"
    with torch.no_grad(), warnings.catch_warnings():  # tracing warns about itself
        warnings.simplefilter("ignore")
        if how == "pt2":
            path = path.with_suffix(".pt2")
            torch.export.save(torch.export.export(module, args, dynamic_shapes=dynamic), path)
        elif how == "torchscript":
            torch.jit.save(torch.jit.trace(module, args, strict=False, check_trace=False), path)
        else:
            torch.save(module, path)
    return ModelSource(path, allow_pickle=how == "pickle")


def export(source: ModelSource, samples: Any = None, **request: Any) -> ExportResult:
    return export_model(load_model(source), ExportRequest(**request), samples, lambda _: None)

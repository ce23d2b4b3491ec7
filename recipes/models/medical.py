"""Malignant or benign from an image and a table with gaps: gated late fusion. Plain torch, no edgemm.

    image [B,1,48,48] ─▶ 4 convolutions ─▶ 64 ─▶ risk of the image ─┐
                                             └──┬─▶ gate ───────────┼─▶ logit [B,1]
                                             ┌──┘                   │
    table, given [B,10] ─▶ 2 layers ─▶ 32 ───┴─▶ risk of the table ─┘

Each modality decides on its own and a gate that sees both weighs the two decisions, as in a gated multimodal unit
(Arevalo et al. 2017) that joins decisions instead of features. `given` says which fields of the table are there: a
field that is not has a learned value instead, so an empty table is an input like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

FIELDS = 10
MISSING_RATE = 0.1
"""Share of training samples whose table is empty, and share whose image is blank."""


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Returns convolution 3×3 with stride 2, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class TableEncoder(nn.Module):
    """Two layers over the fields, a learned value where there is none, and the mask itself."""

    def __init__(self) -> None:
        super().__init__()
        self.default = nn.Parameter(torch.zeros(FIELDS))
        self.layers = nn.Sequential(nn.Linear(2 * FIELDS, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())

    def forward(self, table: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """Returns fields and mask `[B,10]` as features `[B,32]`; a field whose mask is 0 is not looked at."""
        return self.layers(torch.cat([table * given + self.default * (1 - given), given], dim=1))


class Medical(nn.Module):
    """Two encoders with a decision each, and the gate between the decisions."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(
            block(1, 16), block(16, 32), block(32, 64), block(64, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.table_encoder = TableEncoder()
        self.image_risk, self.table_risk = nn.Linear(64, 1), nn.Linear(32, 1)
        self.gate = nn.Sequential(nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, image: torch.Tensor, table: torch.Tensor, given: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logit` `[B,1]`, above 0 for malignant, and `weights` `[B,2]` of the image and the table."""
        seen, read = self.image_encoder(image), self.table_encoder(table, given)
        weights = torch.softmax(self.gate(torch.cat([seen, read], dim=1)), dim=1)
        risks = torch.cat([self.image_risk(seen), self.table_risk(read)], dim=1)
        return {"logit": (weights * risks).sum(1, keepdim=True), "weights": weights}


def build() -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return Medical().eval()


def train(
    model: nn.Module,
    data: Mapping[str, torch.Tensor],
    *,
    epochs: int = 40,
    batch: int = 64,
    rate: float = 3e-3,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place; images are turned, mirrored and blanked, more fields go missing.

    Args:
        model: From `build`.
        data: `image`, `table`, `given` and `label`, one row per sample.
        epochs: Passes over the data.
        batch: Samples per step.
        rate: Highest learning rate of the one-cycle schedule.
        report: Called with a line per epoch.
    """
    generator = torch.Generator().manual_seed(0)
    steps = max(1, len(data["label"]) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(len(data["label"]), generator=generator)[: steps * batch].split(batch):
            turns = int(torch.randint(0, 4, (1,), generator=generator))
            image = torch.rot90(data["image"][rows], turns, (2, 3))
            image = image.flip(3) if torch.rand(1, generator=generator) < 0.5 else image
            kept = torch.rand(len(rows), FIELDS, generator=generator) >= 0.1
            there = torch.rand(2, len(rows), 1, generator=generator) >= MISSING_RATE
            given, image = data["given"][rows] * kept * there[0], image * there[1].view(-1, 1, 1, 1)
            logit = model(image, data["table"][rows] * given, given)["logit"][:, 0]
            target = 0.02 + 0.96 * data["label"][rows].to(logit.dtype)
            loss = F.binary_cross_entropy_with_logits(logit, target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        report(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")
    model.eval()

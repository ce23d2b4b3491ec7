"""Does a text belong to an image? Given features side by side, then dense layers. Plain torch.

    text [B,768] ───┐
                     concat ─▶ 256 ─▶ dense(1) ─▶ sigmoid ─▶ match [B,1]
    image [B,2048] ─┘

Fusion of features as in Ngiam et al., "Multimodal Deep Learning", 2011. The hidden layer is what compares: with
`hidden=0`, one dense(1) on the concatenation adds a number of the text to a number of the image, and no such sum
says whether the two agree. `build` is the factory for
`edgemm convert --factory recipes/models/feature_concat.py:build`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional as F

TEXT, IMAGE = 768, 2048
MISSING_RATE = 0.05
"""Share of training features that are dropped, of either modality."""


class FeatureConcat(nn.Module):
    """Concatenation, dense layers, a probability."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.head: nn.Module = nn.Linear(TEXT + IMAGE, 1)
        if hidden:
            self.head = nn.Sequential(nn.Linear(TEXT + IMAGE, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def logit(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Returns what the sigmoid takes, `[B,1]`."""
        return self.head(torch.cat([text, image], dim=1))

    def forward(self, text: torch.Tensor, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `match` `[B,1]`, the probability that text and image belong together."""
        return {"match": torch.sigmoid(self.logit(text, image))}


def build(hidden: int = 256) -> nn.Module:
    """Returns the model, untrained, with the seed fixed."""
    torch.manual_seed(0)
    return FeatureConcat(hidden).eval()


def train(
    model: FeatureConcat,
    arrays: Mapping[str, torch.Tensor],
    *,
    epochs: int = 8,
    batch: int = 128,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Trains `model` in place with Adam on the binary cross-entropy; equal data and threads give equal weights.

    Every batch has texts with images of their own number, and texts with images of any number.

    Args:
        model: From `build`.
        arrays: `text` and `text_number`, one row per text; `image` and `image_number`, one row per image.
        epochs: Each shows as many pairs as there are images, four times.
        batch: Pairs per step.
        report: Called with a line per epoch.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    by_number, counts = arrays["text_number"].argsort(stable=True), arrays["text_number"].bincount(minlength=10)
    starts = counts.cumsum(0) - counts
    images = len(arrays["image"])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for epoch in range(epochs):
        total, steps = 0.0, -(-4 * images // batch)
        for _ in range(steps):
            rows = torch.randint(images, (batch,), generator=generator)
            shown = arrays["image_number"][rows]
            same = torch.rand(batch, generator=generator) < 0.5
            named = torch.where(same, shown, (shown + torch.randint(1, 10, (batch,), generator=generator)) % 10)
            chance = torch.rand(batch, generator=generator)
            text = by_number[starts[named] + (chance * counts[named]).long()]
            pair = (F.dropout(part, MISSING_RATE) for part in (arrays["text"][text], arrays["image"][rows]))
            loss = F.binary_cross_entropy_with_logits(model.logit(*pair)[:, 0], same.float())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
        schedule.step()
        report(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.3f}")
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Mapping[str, torch.Tensor]) -> float:
    """Returns the share of pairs that are judged rightly, 0 to 1."""
    said = model(data["text"], data["image"])["match"][:, 0] > 0.5
    return float((said == (data["label"] == 1)).float().mean())

"""Small trained fusion models and their data, for tests that need a whole conversion.

The task is synthetic and labelled: four classes, of which the image tells one bit and the audio, badly, all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES = 4


class ImageAudio(nn.Module):
    """CNN over image [B,1,16,16] and CNN over audio [B,24,32], concat, 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.audio = nn.Sequential(
            nn.Conv1d(24, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(32, 32, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(2),
            nn.Flatten(),
        )
        self.head = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(torch.cat([self.image(image), self.audio(audio)], 1))}


class Recurrent(nn.Module):
    """GRU cell over motion [B,6] with state h [B,16], added to a linear view of image [B,8]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 16)
        self.view = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, motion: torch.Tensor, image: torch.Tensor, h: torch.Tensor) -> dict[str, torch.Tensor]:
        h_out = self.cell(motion, h)
        return {"pose": self.head(h_out + self.view(image)), "h_out": h_out}


def samples(count: int, seed: int) -> dict[str, np.ndarray]:
    """Returns `count` samples of the synthetic task: image, audio, label."""
    random = np.random.default_rng(seed)
    label = random.integers(0, CLASSES, count)
    image = random.standard_normal((count, 1, 16, 16)).astype(np.float32)
    audio = random.standard_normal((count, 24, 32)).astype(np.float32)
    for at, value in enumerate(label):
        image[at, 0, : 8 + 8 * (value % 2), :8] += 0.5
        audio[at, 6 * value : 6 * value + 6] += 0.2
    return {"image": image, "audio": audio, "label": label.astype(np.int64)}


def trained() -> ImageAudio:
    """Returns the trained model: deterministic, a second or two on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train()
    finally:
        torch.set_num_threads(threads)


def _train() -> ImageAudio:
    torch.manual_seed(0)
    model, data = ImageAudio(), samples(600, 1)
    tensors = {name: torch.from_numpy(array) for name, array in data.items()}
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(5):
        for start in range(0, 600, 60):
            part = {name: tensor[start : start + 60] for name, tensor in tensors.items()}
            loss = nn.functional.cross_entropy(model(part["image"], part["audio"])["logits"], part["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def export(model: nn.Module, example: tuple[torch.Tensor, ...], *names: str) -> torch.export.ExportedProgram:
    """Returns `model` with a dynamic batch on axis 0 of every input."""
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(model.eval(), example, dynamic_shapes=dict.fromkeys(names, batch))


def save(folder: Path) -> Path:
    """Writes model.pt2, model.pt (a state_dict), net.py, calib.npz and eval.npz to `folder` and returns it."""
    model = trained()
    program = export(model, (torch.zeros(2, 1, 16, 16), torch.zeros(2, 24, 32)), "image", "audio")
    torch.export.save(program, folder / "model.pt2")
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "net.py").write_text(Path(__file__).read_text())
    np.savez(folder / "calib.npz", **samples(120, 2))
    np.savez(folder / "eval.npz", **samples(200, 3))
    return folder

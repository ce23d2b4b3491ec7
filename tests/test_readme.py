"""The README is true: its blocks run as written, its words are the command line's, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import yaml

from edgemm.cli import VERBS, cli
from edgemm.recipe import build_recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = "\n".join([README, *(page.read_text() for page in sorted((ROOT / "docs").glob("*.md")))])
"""The README and the guides: what they name exists."""

ARRAYS = """
import numpy as np
random = np.random.default_rng(0)
image = random.standard_normal((3, 1, 28, 28)).astype(np.float32)
audio = random.standard_normal((3, 1, 40, 50)).astype(np.float32)
"""
"""What the README's app has before it runs the model."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt2, calib.npz and eval.npz as the README describes them."""
    import torch
    from fusion_nets import export
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Sequential(nn.Conv2d(1, 4, 5, 3), nn.ReLU(), nn.Flatten())
            self.audio = nn.Sequential(nn.Conv2d(1, 4, 5, 3), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(4 * 8 * 8 + 4 * 12 * 16, 10)

        def forward(self, image: torch.Tensor, audio: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(torch.cat([self.image(image), self.audio(audio)], 1))}

    torch.manual_seed(0)
    path, random = tmp_path_factory.mktemp("readme"), np.random.default_rng(0)
    program = export(Net(), (torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 40, 50)), "image", "audio")
    torch.export.save(program, path / "model.pt2")
    for name, count in (("calib", 60), ("eval", 40)):
        np.savez(
            path / f"{name}.npz",
            image=random.standard_normal((count, 1, 28, 28)).astype(np.float32),
            audio=random.standard_normal((count, 1, 40, 50)).astype(np.float32),
            label=random.integers(0, 10, count),
        )
    return path


def run(folder: Path, command: list[str]) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_quickstart_runs_from_top_to_bottom(folder: Path) -> None:
    told = {command.split()[1]: run(folder, ["bash", "-ec", command]) for command in commands()}
    assert set(told) == set(VERBS) - {"build"}  # which needs TensorRT: make test-rtx runs it
    assert all(told.values())
    with np.load(folder / "outputs.npz") as outputs:
        assert outputs["logits"].shape == (40, 10)
    first, second, third, fourth, *_ = blocks("python")
    accuracy = run(folder, [sys.executable, "-c", first])
    assert "'metric': 'accuracy'" in accuracy
    assert "'samples': 40" in accuracy
    assert re.fullmatch(r"\[\d \d \d\]\n", run(folder, [sys.executable, "-c", ARRAYS + second]))
    reused = run(folder, [sys.executable, "-c", ARRAYS + third])
    assert re.search(r"^CacheInfo\(.*\)\n\[\d\] \{'image': 0.0, 'audio': ", reused)
    assert re.fullmatch(r"\{.*\}\n", run(folder, [sys.executable, "-c", ARRAYS + fourth]))
    (service,) = [block for block in blocks("python") if ".swap(" in block]
    assert re.fullmatch(r"cpu-fp32 \[\d \d \d\]\n", run(folder, [sys.executable, "-c", ARRAYS + service]))
    (measured,) = [block for block in blocks("python") if "prometheus_text(" in block]
    told_by_itself = run(folder, [sys.executable, "-c", ARRAYS + measured])
    assert told_by_itself.startswith("<LiveLatency: 1 calls, p50 ")
    assert "# TYPE edgemm_run_duration_seconds histogram" in told_by_itself
    assert (folder / "profile.html").stat().st_size > 10_000
    entries = re.findall(r"^      (\S+)  ", README, re.MULTILINE)
    assert {"manifest.json", "recipe.json"} <= set(entries)
    shown = {entry.split("/")[0] for entry in entries}
    assert {p.name for p in (folder / "digits.edgemm").iterdir()} <= shown


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z0-9-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def words(pattern: str) -> set[str]:
    return set(re.findall(pattern, PAGES))


def test_verbs_exist() -> None:
    assert words(r"(?:`|\$ )edgemm ([a-z]+)") <= set(VERBS)


def test_options_exist() -> None:
    known = set()
    context = click.Context(cli)
    commands = [cli.get_command(context, verb) for verb in VERBS]
    for command in commands:
        assert command is not None
        known |= {option for parameter in command.params for option in parameter.opts}
        if isinstance(command, click.Group):
            commands += [command.get_command(context, verb) for verb in command.list_commands(context)]
    other_tools = r"^```bash\n.*?^```$|`(?:trtexec|compute-sanitizer|python docs/)[^`]*`"
    own = re.sub(other_tools, "", PAGES, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", own))
    assert named
    assert named <= known


def test_extras_exist() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    extras = set(re.findall(r"^([a-z]+) = \[", text.split("[project.optional-dependencies]")[1], re.MULTILINE))
    named = {extra for group in words(r"pip install '\.\[([a-z,]+)\]'") for extra in group.split(",")}
    assert named
    assert named <= extras


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(file: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / file).read_text()):
        if not target.startswith(("https://", "mailto:")):
            assert (ROOT / target).exists(), f"{file}: {target}"


def test_recipe_is_valid() -> None:
    (recipe,) = blocks("yaml")
    assert build_recipe(yaml.safe_load(recipe), where="README").evaluate.metric == "f1_macro"

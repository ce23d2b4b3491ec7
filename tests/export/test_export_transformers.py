"""Real multimodal architectures, tiny and untrained, through every way in."""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from export_nets import export

from edgemm.export.model import ModelSource
from edgemm.tensors import BATCH

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TINY = Path(__file__).parents[2] / "recipes" / "models" / "hf_tiny.py"
MODALITIES = {
    "clip": {"pixel_values": "image", "input_ids": "text", "attention_mask": "text"},
    "siglip": {"pixel_values": "image", "input_ids": "text"},
    "blip": {"pixel_values": "image", "input_ids": "text", "attention_mask": "text"},
    "clap": {"input_features": "audio", "input_ids": "text", "attention_mask": "text"},
    "lxmert": {"visual_feats": "image", "visual_pos": "image", "input_ids": "text", "attention_mask": "text"},
    "whisper": {"input_features": "audio", "decoder_input_ids": "text"},
}


@pytest.fixture(scope="module")
def tiny() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hf_tiny_for_export", TINY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows(tiny: ModuleType, name: str) -> list[dict[str, np.ndarray]]:
    arrays = tiny.sample_inputs(name, 6)
    return [{key: value[i] for key, value in arrays.items()} for i in range(6)]


@pytest.mark.parametrize("name", list(MODALITIES))
def test_a_state_dict_with_its_factory(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(getattr(tiny, name)().state_dict(), path)
    result = export(ModelSource(path, f"{TINY}:{name}"), rows(tiny, name))
    assert dict(result.graph.io.modalities) == MODALITIES[name]
    assert result.graph.io.batch == BATCH
    assert result.parity.max_abs < 1e-4


@pytest.mark.parametrize("name", ["clip", "whisper"])
def test_saved_by_torch_export_with_one_example(name: str, tiny: ModuleType, tmp_path: Path) -> None:
    samples = rows(tiny, name)
    args = tuple(torch.from_numpy(samples[0][key][None]) for key in MODALITIES[name])
    path = tmp_path / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(getattr(tiny, name)(), args), path)
    result = export(ModelSource(path), samples)
    assert result.graph.io.batch == BATCH
    assert list(result.graph.io.modalities) == list(MODALITIES[name])


def test_clip_as_the_library_gives_it_is_named_as_mixing_its_batch(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.save(tiny.clip().model, path)
    result = export(ModelSource(path, allow_pickle=True), rows(tiny, "clip"))
    assert result.graph.io.batch == 1
    assert re.search(r"logits_per_image' has shape \((\d), \1\) for \1 samples", result.dynamic.fixed[0].reason)
    assert {"logits_per_image", "image_embeds", "vision_model_output_pooler_output"} <= {
        o.name for o in result.graph.io.outputs
    }


def test_whisper_as_the_library_gives_it_keeps_its_words_open(tiny: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "whisper.pt"
    torch.save(tiny.whisper().model, path)
    samples: list[dict[str, Any]] = rows(tiny, "whisper")
    for i, sample in enumerate(samples):
        sample["decoder_input_ids"] = sample["decoder_input_ids"][: 4 + i % 3]
    result = export(ModelSource(path, allow_pickle=True), samples)
    assert result.graph.io.input("decoder_input_ids").shape == (BATCH, "decoder_input_ids_dim1")
    assert {"logits", "past_0_key", "past_0_cross_value"} <= {o.name for o in result.graph.io.outputs}


def test_a_program_that_returns_a_library_class_loads_in_a_fresh_process(tiny: ModuleType, tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "clip.pt2"
    sample = rows(tiny, "clip")[0]
    kwargs = {key: torch.from_numpy(value[None]) for key, value in sample.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(tiny.clip().model, (), kwargs=kwargs), path)
    code = (
        "import sys, pathlib; from edgemm.export.model import ModelSource, load_model; "
        f"print(load_model(ModelSource(pathlib.Path({str(path)!r}))).kind)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.stdout.strip() == "exported-program", done.stderr

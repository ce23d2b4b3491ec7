"""Models whose answer for a sample depends on the others in its batch are found and kept at batch 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_models import Convert, edgemm

pytestmark = pytest.mark.slow


def test_image_by_text_matrix_is_fixed_at_one_pair(tmp_path: Path) -> None:
    from recipes.datasets.cache import save_arrays
    from recipes.models import hf_tiny
    from recipes.models.saving import save_weights

    save_weights(hf_tiny.clip_matrix(), tmp_path / "clip.pt")
    save_arrays(tmp_path / "data.npz", hf_tiny.sample_inputs("clip_matrix", 40))
    factory = f"{Path(hf_tiny.__file__)}:clip_matrix"
    data = ("--calib", str(tmp_path / "data.npz"), "-o", str(tmp_path / "clip.edgemm"), "--json")
    done = edgemm("convert", str(tmp_path / "clip.pt"), "--factory", factory, *data)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [i["shape"][0] for i in result["inputs"]] == [1, 1, 1]
    reasons = {f["reason"] for f in result["dynamic"]["fixed"] if f["axis"] == 0}
    assert any("logits_per_image" in reason for reason in reasons), reasons


def test_mel_that_cuts_below_the_loudest_of_the_batch_is_fixed_at_one(convert: Convert) -> None:
    """The mel front end cuts below the loudest frame of the whole batch, so only batch 1 is right."""
    made = convert("wake_mel", "fp32")
    reasons = [f["reason"] for f in made.result["dynamic"]["fixed"]]
    assert any("depends on the others in its batch" in reason for reason in reasons), reasons
    with pytest.raises(AssertionError, match="fixed batch of 1"):
        made.run("--batch", "64")
    assert all(len(array) for array in made.run().values())


@pytest.mark.parametrize("name", ["voice_filter"])
def test_dynamic_quantization_over_the_batch_is_named(convert: Convert, name: str) -> None:
    fixed = convert(name, "fp32").result["dynamic"]["fixed"]
    assert any("depends on the others in its batch" in f["reason"] for f in fixed), fixed

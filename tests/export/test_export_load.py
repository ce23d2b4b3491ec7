"""Opening models: what fits, what does not, and that nothing in a file runs without leave."""

from __future__ import annotations

import io
import json
import pickle  # noqa: TID251
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
import torch
from export_nets import TwoBranch, save, tensor
from safetensors.torch import save_file
from torch import nn

from edgemm.errors import ModelError
from edgemm.export.model import ModelSource, load_model

ARGS = (tensor(1, 1, 8, 8), tensor(1, 5))
FACTORY = """
from parts import Net

def build():
    return Net()

def broken():
    raise ValueError("no such size")

def nothing():
    return None
"""
PARTS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = nn.Linear(4, width)

    def forward(self, x):
        return self.linear(x)
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model.py").write_text(FACTORY)
    (tmp_path / "code" / "parts.py").write_text(PARTS)
    return str(tmp_path / "code" / "model.py")


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {"linear.weight": tensor(3, 4), "linear.bias": tensor(3)}


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda s: s, None),
        (lambda s: {"state_dict": s, "epoch": 3}, "checkpoint key 'state_dict'"),
        (lambda s: {"model_state_dict": s, "optimizer": {}}, "checkpoint key 'model_state_dict'"),
        (lambda s: {"model": OrderedDict(s)}, "checkpoint key 'model'"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "prefix 'module.'"),
        (lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}, "prefix 'module.'"),
        (lambda s: {k: v.double() for k, v in s.items()}, None),
    ],
)
def test_checkpoints_are_unwrapped_and_it_is_said(
    wrap: Callable[[Any], Any], note: str | None, factory: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(wrap(weights), tmp_path / "w.pt")
    loaded = load_model(ModelSource(tmp_path / "w.pt", f"{factory}:build"))
    assert isinstance(loaded.program, nn.Module)
    assert loaded.kind == "module"
    assert loaded.parameters == 15
    assert loaded.program.linear.weight.dtype == torch.float32
    assert not loaded.program.training
    assert torch.equal(loaded.program.linear.weight, weights["linear.weight"])
    assert (note is None and not loaded.notes) or any(note in n for n in loaded.notes if note)


def test_safetensors_and_old_style_files_load(
    factory: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(weights, tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.pth"):
        loaded = load_model(ModelSource(tmp_path / name, f"{factory}:build"))
        assert isinstance(loaded.program, nn.Module)
        assert torch.equal(loaded.program.linear.bias, weights["linear.bias"])


def test_a_state_dict_without_factory_names_the_option(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="is a state_dict: 2 tensors") as caught:
        load_model(ModelSource(tmp_path / "w.pt"))
    assert "--factory" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"linear.extra": tensor(1)}, r"1 unexpected \(linear.extra\)"),
        (lambda s: {"linear.weight": s["linear.weight"]}, r"1 missing \(linear.bias\)"),
        (lambda s: s | {"linear.bias": tensor(5)}, r"'linear.bias' has shape \(5,\), the module expects \(3,\)"),
        (lambda s: {"epoch": 3, "lr": 0.1}, "neither a module nor a state_dict"),
    ],
)
def test_a_state_dict_that_does_not_fit(
    change: Callable[[Any], Any], message: str, factory: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(change(weights), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        load_model(ModelSource(tmp_path / "w.pt", f"{factory}:build"))


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("{file}:biuld", "no function 'biuld'", "'build'"),
        ("{file}:broken", r"ValueError: no such size \(model.py:8\)", "without arguments"),
        ("{file}:nothing", "returned None", "return"),
        ("{file}", "expected FILE.py:FUNC", "models.py:build"),
        ("/nowhere/m.py:build", "does not exist", "path"),
        ("no.such.module:build", "importing the module 'no.such.module' failed", "install"),
    ],
)
def test_a_factory_that_fails(
    name: str, message: str, hint: str, factory: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelSource(tmp_path / "w.pt", name.format(file=factory)))
    assert hint in caught.value.hint


def test_a_pickled_module_needs_the_flag(tmp_path: Path) -> None:
    source = save(TwoBranch(), ARGS, tmp_path, "pickle")
    with pytest.raises(ModelError, match="pickled module") as caught:
        load_model(ModelSource(source.path))
    assert "--allow-pickle" in caught.value.hint
    assert load_model(source).kind == "module"


def test_loading_never_writes_to_the_file(tmp_path: Path) -> None:
    for how in ("pt2", "torchscript", "pickle"):
        source = save(TwoBranch(), ARGS, tmp_path, how)
        source.path.chmod(0o444)
        before = source.path.read_bytes()
        loaded = load_model(source)
        assert source.path.read_bytes() == before
        assert len(loaded.sha256) == 64
        source.path.unlink()


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def _replace(path: Path, change: Callable[[str, bytes], bytes], add: dict[str, bytes] | None = None) -> None:
    """Rewrites the entries of a zip archive, aligned as torch wants them: stored, not compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = [(n, archive.read(n)) for n in archive.namelist()]
    root = entries[0][0].split("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries:
            archive.writestr(name, change(name, data))
        for name, data in (add or {}).items():
            archive.writestr(f"{root}/{name}", data)


def _dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("factory_given", [True, False])
def test_a_malicious_pickle_does_not_run(zipped: bool, factory_given: bool, factory: str, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    path = tmp_path / "model.pt"
    torch.save({"state_dict": Bomb(target)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError) as caught:
        load_model(ModelSource(path, f"{factory}:build" if factory_given else None))
    assert "--allow-pickle" in caught.value.hint
    assert not target.exists()


def test_a_bare_pickle_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    for suffix in ("pt2", "onnx", "safetensors", "pt"):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(pickle.dumps(Bomb(target)))
        with pytest.raises(ModelError):
            load_model(ModelSource(path))
    assert not target.exists()


def _weights_as_pickle(name: str, data: bytes, bomb: bytes) -> bytes:
    if name.endswith("model_weights_config.json"):
        config = json.loads(data)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()
    return bomb if name.endswith("weight_0") else data


def _operator(name: str, data: bytes, target: str) -> bytes:
    if not name.endswith("models/model.json"):
        return data
    program = json.loads(data)
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.system"
    node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {target}"}, "kind": 1}]
    return json.dumps(program).encode()


def _expression(name: str, data: bytes, target: str) -> bytes:
    if not name.endswith("models/model.json"):
        return data
    program = json.loads(data)
    sizes = program["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
    sizes[0] = {"as_expr": {"expr_str": f"__import__('pathlib').Path('{target}').touch()", "hint": {"as_int": 1}}}
    return json.dumps(program).encode()


@pytest.mark.parametrize("attack", ["sample inputs", "weights", "constants", "opaque", "operator", "expression"])
def test_a_malicious_exported_program_does_not_run(attack: str, tmp_path: Path) -> None:
    source = save(TwoBranch(), ARGS, tmp_path, "pt2")
    target = tmp_path / "ran"
    bomb = _dump((Bomb(target), {}))
    opaque = json.dumps({"config": {"c": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
                                          "tensor_meta": None}}}).encode()  # fmt: skip
    changes: dict[str, Callable[[str, bytes], bytes]] = {
        "sample inputs": lambda n, d: bomb if n.endswith("sample_inputs/model.pt") else d,
        "weights": lambda n, d: _weights_as_pickle(n, d, bomb),
        "constants": lambda n, d: d,
        "opaque": lambda n, d: opaque if n.endswith("model_constants_config.json") else d,
        "operator": lambda n, d: _operator(n, d, str(target)),
        "expression": lambda n, d: _expression(n, d, str(target)),
    }
    add = {
        "constants": {"data/constants/model.pt": bomb},
        "opaque": {"data/constants/opaque_obj_0": pickle.dumps(Bomb(target))},
    }
    _replace(source.path, changes[attack], add.get(attack))
    with pytest.raises(ModelError) as caught:
        load_model(source)
    assert not target.exists()
    assert "--allow-pickle" in caught.value.hint


def test_the_attacks_above_do_work_on_torch_itself(tmp_path: Path) -> None:
    """Guards the test above: if torch no longer runs the payload, the check is not what protects."""
    source = save(TwoBranch(), ARGS, tmp_path, "pt2")
    target = tmp_path / "ran"
    bomb = _dump((Bomb(target), {}))
    _replace(source.path, lambda n, d: bomb if n.endswith("sample_inputs/model.pt") else d)
    with pytest.raises(Exception):  # noqa: B017, PT011
        torch.export.load(source.path)
    assert target.exists()


def test_compiled_code_and_file_access_are_refused(tmp_path: Path) -> None:
    source = save(TwoBranch(), ARGS, tmp_path, "pt2")
    _replace(source.path, lambda n, d: d, {"data/aotinductor/model/model.so": b"\x7fELF"})
    with pytest.raises(ModelError, match="compiled library"):
        load_model(source)

    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, "/tmp/edgemm-never-written")
            return x

    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(Writes()), path)
    with pytest.raises(ModelError, match=r"its code calls torch.save\(\)"):
        load_model(ModelSource(path))


@pytest.mark.parametrize("how", ["pt2", "torchscript"])
def test_a_damaged_archive_is_an_error_of_ours(how: str, tmp_path: Path) -> None:
    source = save(TwoBranch(), ARGS, tmp_path, how)
    _replace(source.path, lambda n, d: d[: len(d) // 2] if n.endswith((".json", ".py", ".pkl")) else d)
    with pytest.raises(ModelError):
        load_model(source)


def test_an_invalid_onnx_graph_is_an_error_of_ours(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[N,4] a) => (float[N,4] y) { y = Relu(missing) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="no valid ONNX model"):
        load_model(ModelSource(tmp_path / "net.onnx"))


def test_a_factory_with_a_whole_model_is_refused(tmp_path: Path) -> None:
    source = save(TwoBranch(), ARGS, tmp_path, "pt2")
    with pytest.raises(ModelError, match="--factory does not apply"):
        load_model(ModelSource(source.path, "x.py:build"))

"""Opens a trained model, whatever it was saved as. First step of `convert`: file in, `LoadedModel` out.

`.pt2`, TorchScript, `.safetensors`, `weights_only` state dicts and `.onnx` are data. A pickled module runs code
when it is loaded, so it needs `allow_pickle`; a factory runs code because the user names it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemm import _optional
from edgemm.errors import ModelError
from edgemm.export import sniff as kinds
from edgemm.export.archive import check_exported_program, check_torchscript, first_line
from edgemm.export.factory import call_factory, importable

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

MODULE = "module"
"""`LoadedModel.kind` of a plain `nn.Module`: a pickled one, or a factory with a state_dict."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params", "ema_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        path: The model file.
        factory: `FILE.py:FUNC` or `pkg.mod:FUNC` that builds the `nn.Module` for a state_dict.
        allow_pickle: True lets loading run code from the file.
    """

    path: Path
    factory: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, in eval mode, on the CPU, its floating-point weights in float32.

    Attributes:
        kind: `"exported-program"`, `"torchscript"`, `"module"` or `"onnx"`.
        program: An ExportedProgram, a ScriptModule or nn.Module, or an ONNX model.
        path: The file it came from.
        sha256: Digest of that file.
        parameters: Number of weights.
        notes: What was done to read it, for the user.
    """

    kind: str
    program: torch.export.ExportedProgram | nn.Module | ir.Model
    path: Path
    sha256: str
    parameters: int
    notes: tuple[str, ...] = ()


def load_model(source: ModelSource) -> LoadedModel:
    """Returns the model of `source`, told from the file's content. The file is only read.

    Raises:
        ModelError: The file is missing, damaged or of no known kind; it would run code and `allow_pickle` is
            not set; a state_dict lacks its factory or does not fit it.
        MissingExtraError: torch or onnx is not installed.
    """
    kind = kinds.sniff(source.path)
    if kind == kinds.RECIPE:
        raise ModelError(
            f"{source.path} is a recipe, not a model.",
            hint="pass it to `edgemm convert` as MODEL, not inside a recipe",
        )
    if source.factory and kind in (kinds.EXPORTED_PROGRAM, kinds.TORCHSCRIPT, kinds.ONNX):
        raise ModelError(
            f"{source.path} is {_ARTICLE[kind]}, which holds the whole model; --factory does not apply.",
            hint="leave --factory out, or pass a state_dict",
        )
    if kind == kinds.ONNX:
        from edgemm.export.onnx_file import load_onnx

        model, parameters, notes = load_onnx(source.path)
        return LoadedModel(kind, model, source.path, _sha256(source.path), parameters, notes)
    _optional.require("torch", extra="convert", why=f"read {source.path.name}")
    program, name, notes = _load_torch(source, kind)
    parameters = sum(p.numel() for p in program.parameters())
    return LoadedModel(name, program, source.path, _sha256(source.path), parameters, notes)


_ARTICLE = {
    kinds.EXPORTED_PROGRAM: "an exported program",
    kinds.TORCHSCRIPT: "a TorchScript archive",
    kinds.ONNX: "an ONNX model",
}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_torch(
    source: ModelSource, kind: str
) -> tuple[torch.export.ExportedProgram | nn.Module, str, tuple[str, ...]]:
    if kind == kinds.EXPORTED_PROGRAM:
        return _load_exported_program(source), kind, ()
    if kind == kinds.TORCHSCRIPT:
        return _load_torchscript(source), kind, ()
    content = _load_safetensors(source.path) if kind == kinds.SAFETENSORS else _load_pickle(source)
    module, notes = _as_module(source, content)
    return _settle(module), MODULE, notes


def _load_exported_program(source: ModelSource) -> torch.export.ExportedProgram:
    import torch

    if not source.allow_pickle:
        check_exported_program(source.path)
    _register_output_types(source.path)
    try:
        with _restricted_unpickling(not source.allow_pickle), source.path.open("rb") as file:
            from edgemm.export.quiet import quiet

            with quiet():
                program: torch.export.ExportedProgram = torch.export.load(file)
                return program
    except Exception as error:
        cause = error.__context__ if "deserializing the saved file" in str(error) and error.__context__ else error
        raise ModelError(
            f"{source.path} is an exported program that torch {torch.__version__} cannot load: "
            f"{type(cause).__name__}: {first_line(cause)}.",
            hint="load and save it again with torch.export in an environment where it loads, or copy it again",
        ) from error


def _register_output_types(path: Path) -> None:
    """Imports the modules of `transformers` that register output classes which the program returns."""
    import importlib

    from torch._C import PyTorchFileReader

    try:
        reader = PyTorchFileReader(str(path))
        program = reader.get_record("models/model.json").decode()
    except RuntimeError:
        return
    for module in sorted(set(re.findall(r"\"type\\?\": \\?\"(transformers(?:\.\w+)+)\.\w+\\?\"", program))):
        _optional.require(module, extra="convert", why=f"read {path.name}, which returns one of its classes")
        importlib.import_module(module)


@contextmanager
def _restricted_unpickling(active: bool) -> Iterator[None]:
    """Makes every torch.load inside the block refuse code, also those that ask for the opposite."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    if active:
        os.environ[name] = "1"
    try:
        yield
    finally:
        if active and before is None:
            os.environ.pop(name, None)
        elif before is not None:
            os.environ[name] = before


def _load_torchscript(source: ModelSource) -> nn.Module:
    import torch

    if not source.allow_pickle:
        check_torchscript(source.path)
    try:
        from edgemm.export.quiet import quiet

        with quiet():
            module: nn.Module = torch.jit.load(  # type: ignore[no-untyped-call]
                str(source.path), map_location="cpu"
            )
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{source.path} is a TorchScript archive that does not load: {first_line(error)}.",
            hint="save it again with torch.jit.save()",
        ) from error
    return _settle(module)


def _load_safetensors(path: Path) -> Mapping[str, Any]:
    safetensors = _optional.require("safetensors.torch", extra="convert", why=f"read {path.name}")
    try:
        tensors: dict[str, Any] = safetensors.load_file(str(path), device="cpu")
    except Exception as error:
        raise ModelError(
            f"{path} is a safetensors file that does not load: {first_line(error)}.", hint="copy it again"
        ) from error
    return tensors


def _load_pickle(source: ModelSource) -> Any:
    """Loads with torch's restricted unpickler; with pickle only if that refuses and `allow_pickle` is set."""
    import pickle  # noqa: TID251

    import torch

    try:
        return torch.load(source.path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not source.allow_pickle:
            raise _pickle_refusal(source.path, error) from error
    except Exception as error:
        raise _unreadable(source.path, error) from error
    try:
        with importable(Path.cwd()):
            return torch.load(source.path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{source.path} is a pickle of a class that cannot be imported here: {first_line(error)}.",
            hint="run from the folder of the model's code (or add it to PYTHONPATH), "
            "or save with torch.export.save(), which needs no code",
        ) from error
    except Exception as error:
        raise _unreadable(source.path, error) from error


def _pickle_refusal(path: Path, error: BaseException) -> ModelError:
    found = re.search(r"(?:GLOBAL|global:?|type)\s+(?:GLOBAL\s+)?`?'?([\w.]+)", str(error))
    if found is None and "nsupported" not in str(error) and "WeightsUnpickler" not in str(error):
        return _unreadable(path, error)
    names = f" (it names {found.group(1)})" if found else ""
    return ModelError(
        f"{path} is a pickled module or object{names}. Loading it runs code from the file.",
        hint="if you trust it, repeat with --allow-pickle; better, save it with torch.export.save(), "
        "or its state_dict() for --factory",
    )


def _unreadable(path: Path, error: BaseException) -> ModelError:
    return ModelError(
        f"{path} was written by torch.save but does not load ({path.stat().st_size:,} bytes; cut off?): "
        f"{type(error).__name__}: {first_line(error)}.",
        hint="copy or save the file again",
    )


def _as_module(source: ModelSource, content: Any) -> tuple[nn.Module, tuple[str, ...]]:
    from torch import nn

    notes: list[str] = []
    if isinstance(content, Mapping):
        content, key = _unwrap_module(content)
        if key:
            notes.append(f"the model was found under the checkpoint key '{key}'")
    if isinstance(content, nn.Module):
        if source.factory:
            raise ModelError(
                f"{source.path} holds a whole module; --factory does not apply.", hint="leave --factory out"
            )
        return content, (*notes, "loaded by unpickling, which ran code from the file")
    state, unwrapped = _find_state_dict(source.path, content)
    notes += unwrapped
    if source.factory is None:
        names = ", ".join(list(state)[:3])
        raise ModelError(
            f"{source.path} is a state_dict: {len(state)} tensors ({names}, ...) without the model's code.",
            hint="name a function that builds the module: --factory FILE.py:FUNC (or pkg.mod:FUNC); "
            "or save the whole model with torch.export.save()",
        )
    module = call_factory(source.factory)
    notes += _load_state(module, state, source)
    return module, tuple(notes)


def _unwrap_module(content: Mapping[str, Any]) -> tuple[Any, str | None]:
    from torch import nn

    for key in _WRAPPERS:
        if isinstance(content.get(key), nn.Module):
            return content[key], key
    return content, None


def _find_state_dict(path: Path, content: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the tensors of a state_dict or of a training checkpoint around one, and notes on the unwrapping."""
    import torch

    notes: list[str] = []
    while isinstance(content, Mapping):
        if content and all(isinstance(v, torch.Tensor) for v in content.values()):
            return {str(k): v for k, v in content.items()}, notes
        key = next((k for k in _WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if key is None:
            tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
            if tensors and len(tensors) * 2 > len(content):
                extra = [str(k) for k in content if k not in tensors]
                return tensors, [*notes, f"entries without tensors were left out: {', '.join(extra[:5])}"]
            break
        others = [str(k) for k in content if k != key]
        left = f" (left out: {', '.join(others[:5])})" if others else ""
        notes.append(f"the state_dict was found under the checkpoint key '{key}'{left}")
        content = content[key]
    keys = f" with the keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else ""
    raise ModelError(
        f"{path} holds a {type(content).__name__}{keys}, neither a module nor a state_dict.",
        hint="save model.state_dict() or use torch.export.save()",
    )


def _load_state(module: nn.Module, state: dict[str, torch.Tensor], source: ModelSource) -> list[str]:
    notes = []
    wanted = set(module.state_dict())
    for prefix in _PREFIXES:
        if wanted.isdisjoint(state) and all(k.startswith(prefix) for k in state):
            state = {k[len(prefix) :]: v for k, v in state.items()}
            notes.append(f"the prefix '{prefix}' was taken off every key")
    missing, unexpected = sorted(wanted - set(state)), sorted(set(state) - wanted)
    if missing or unexpected:
        parts = [
            f"{len(keys)} {word} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})"
            for keys, word in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        ]
        raise ModelError(
            f"{source.path} does not fit the module of --factory {source.factory}: keys {', '.join(parts)}.",
            hint="the factory must build the model as it was when it was saved, with the same options",
        )
    own = module.state_dict()
    wrong = [k for k, v in state.items() if own[k].shape != v.shape]
    if wrong:
        key = wrong[0]
        raise ModelError(
            f"{source.path} does not fit the module of --factory {source.factory}: '{key}' has shape "
            f"{tuple(state[key].shape)}, the module expects {tuple(own[key].shape)} "
            f"({len(wrong)} of {len(own)} tensors differ).",
            hint="build the model with the sizes that it was trained with",
        )
    try:
        module.load_state_dict(state, strict=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"{source.path} cannot be loaded into the module of --factory {source.factory}: {first_line(error)}.",
            hint="the factory must build the model as it was when it was saved",
        ) from error
    return notes


def _settle(module: nn.Module) -> nn.Module:
    """Puts a module into the one state that is converted: eval, CPU, float32, no gradients."""
    module = module.cpu().float().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module

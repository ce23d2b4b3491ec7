"""Decides whether a `.pt2` or TorchScript archive is data, before torch opens it.

`torch.export.load` unpickles some payloads, evaluates shape expressions as Python, imports modules named in tree
specs, looks operators up by attribute (so `torch.os.system` would resolve) and opens compiled libraries. An
archive that needs none of that is data; any other is refused unless the user allows code.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgemm.errors import ModelError

_OPERATOR_NAMESPACES = {"aten", "prims", "torchvision", "quantized_decomposed", "torchaudio"}
_HIGHER_ORDER = {
    "cond",
    "while_loop",
    "scan",
    "map_impl",
    "associative_scan",
    "wrap_with_set_grad_enabled",
    "wrap_with_autocast",
    "strict_mode",
    "flex_attention",
    "invoke_subgraph",
}
_UNSAFE_ATEN = {"from_file", "_print", "save"}
_TARGET = re.compile(r"(_operator|math)\.\w+|torch\.(sym_\w+|_sym_\w+)")
_SYMPY = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Abs", "Mod", "floor", "ceiling",
    "Eq", "Ne", "Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan", "Ge",
    "Gt", "Le", "Lt", "And", "Or", "Not", "Piecewise", "ITE", "true", "false", "oo", "int_oo", "Infinity",
    "NegativeInfinity", "IntInfinity", "NegativeIntInfinity", "FloorDiv", "ModularIndexing", "Where", "PythonMod",
    "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow",
    "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
    "RoundDecimal", "ToFloat", "Identity", "OpaqueUnaryFn_sqrt", "OpaqueUnaryFn_log2",
}  # fmt: skip
_TAKES_TEXT = {"Symbol", "Float", "Integer", "Rational"}
_WORD = re.compile(r"[\w.+-]{1,64}")
_SYMBOL = re.compile(r"[a-z]{1,3}\d{1,9}")
_TORCHSCRIPT_IO = re.compile(r"(?<![\w.])(torch|ops\.aten)\.(save|from_file|_print)\(")


def check_exported_program(path: Path) -> None:
    """Refuses a `.pt2` archive whose loading would run code from it. Reads it as torch does, executes nothing.

    Raises:
        ModelError: The archive is damaged, or holds compiled libraries, pickled objects, operators outside
            torch's own, or anything else that loading would execute; the message names it.
    """
    from torch._C import PyTorchFileReader

    try:
        reader = PyTorchFileReader(str(path))
        names = [str(name) for name in reader.get_all_records()]
        read: Callable[[str], bytes] = reader.get_record
        _check_entries(path, names, read)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{path} is a damaged torch.export archive: {first_line(error)}.",
            hint="save it again with torch.export.save()",
        ) from error


def check_torchscript(path: Path) -> None:
    """Refuses a TorchScript archive whose code reads or writes files.

    TorchScript is interpreted without Python, so files are all that its operators can reach.

    Raises:
        ModelError: The archive is damaged or its code calls such an operator.
    """
    from torch._C import PyTorchFileReader

    try:
        reader = PyTorchFileReader(str(path))
        for name in reader.get_all_records():
            if name.startswith("code/") and name.endswith(".py"):
                found = _TORCHSCRIPT_IO.search(reader.get_record(name).decode())
                if found:
                    raise _refusal(path, f"its code calls {found.group(1)}.{found.group(2)}()")
    except RuntimeError as error:
        raise ModelError(
            f"{path} is a damaged TorchScript archive: {first_line(error)}.",
            hint="save it again with torch.jit.save()",
        ) from error


def first_line(error: BaseException) -> str:
    """Returns the first non-empty line of an error's text, without a closing full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def _check_entries(path: Path, names: list[str], read: Callable[[str], bytes]) -> None:
    programs = 0
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise _refusal(path, f"it holds a compiled library ({name})")
        if name.startswith("models/") or name == "serialized_exported_program.json":
            _check_program(path, json.loads(read(name)))
            programs += 1
        elif name.endswith("_config.json"):
            _check_payloads(path, json.loads(read(name))["config"], name.rsplit("/", 1)[0], read)
        elif name.endswith(".pt"):
            _check_pickle(path, name, read(name))
    if not programs:
        raise ModelError(
            f"{path} is a torch.export archive without a program.",
            hint="save it again with torch.export.save()",
        )


def _check_payloads(path: Path, config: dict[str, Any], folder: str, read: Callable[[str], bytes]) -> None:
    for tensor, payload in config.items():
        file = str(payload["path_name"])
        if file.startswith(("custom_obj", "opaque_obj")):
            raise _refusal(path, f"it holds a pickled object ('{tensor}')")
        if payload.get("use_pickle"):
            _check_pickle(path, tensor, read(f"{folder}/{file}"))


def _check_pickle(path: Path, name: str, data: bytes) -> None:
    """Loads one pickled payload with torch's restricted unpickler, which builds tensors and containers only."""
    import torch

    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # the restricted unpickler's refusal, or a damaged payload
        raise _refusal(path, f"the pickle '{name}' in it holds more than tensors") from error


def _check_program(path: Path, program: Any) -> None:
    for key, text in _strings(program):
        if key == "target" and not _safe_target(text):
            raise _refusal(path, f"it calls '{text}', which is no operator of torch")
        if key == "expr_str" and not _safe_expression(text):
            raise _refusal(path, f"it holds the expression {text[:60]!r}, which is no tensor size")
        if "__enum__" in text or "default_factory_module" in text:
            raise _refusal(path, "it names a Python module to import")


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """Yields every string of a JSON value with the key that it stands under. Metadata texts are left out."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        key, item = stack.pop()
        if isinstance(item, dict):
            stack.extend((str(k), v) for k, v in item.items() if k != "metadata")
        elif isinstance(item, list):
            stack.extend((key, v) for v in item)
        elif isinstance(item, str):
            yield key, item


def _safe_target(target: str) -> bool:
    parts = target.split(".")
    if parts[:2] == ["torch", "ops"] and len(parts) in (4, 5):
        namespace, operator = parts[2], parts[3]
        if namespace == "higher_order":
            return operator in _HIGHER_ORDER
        return namespace in _OPERATOR_NAMESPACES and operator not in _UNSAFE_ATEN
    # Signature entries use the same key for weight names, which nothing looks up in torch.
    if not target.startswith(("torch", "_operator", "math", "#")):
        return True
    return bool(_TARGET.fullmatch(target)) and "__" not in target


def _safe_expression(text: str) -> bool:
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    numerals: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if node.id not in _SYMPY and not _SYMBOL.fullmatch(node.id):
                return False
        elif isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name):
                return False
            if node.func.id in _TAKES_TEXT:
                numerals.update(id(argument) for argument in node.args)
        elif isinstance(node, ast.Constant):
            # Any other sympy function would evaluate a string as Python.
            if isinstance(node.value, str) and not (id(node) in numerals and _WORD.fullmatch(node.value)):
                return False
        elif not isinstance(node, _EXPRESSION_NODES):
            return False
    return True


_EXPRESSION_NODES = (
    ast.Expression,
    ast.keyword,
    ast.Load,
    ast.UnaryOp,
    ast.BinOp,
    ast.Compare,
    ast.BoolOp,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
    ast.Tuple,
)


def _refusal(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path}: {why}. Loading it could run code from the file.",
        hint="if you trust the file, repeat with --allow-pickle",
    )

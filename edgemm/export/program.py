"""What a loaded torch model takes: one flat callable with named inputs, from the file, the data and the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from edgemm.data import Sample
from edgemm.errors import ExportError, RecipeError, did_you_mean
from edgemm.export.batching import batch_axis, run_or_explain
from edgemm.export.evalmode import set_evaluation_mode
from edgemm.export.feeds import UNKNOWN_SIZES, cast_row, synthetic_row, whole_input
from edgemm.export.flatten import FlatModule, FlatProgram, name_leaves
from edgemm.export.model import LoadedModel
from edgemm.export.signature import check_dtype, find_states
from edgemm.export.sniff import EXPORTED_PROGRAM, TORCHSCRIPT
from edgemm.tensors import BATCH, Dim, Feed, StateSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class TorchProgram:
    """A model as a flat callable.

    Attributes:
        module: `forward(*tensors) -> tuple of tensors`; what is traced.
        inputs: Names, dtypes and shapes. A word in a shape is a size that the file, the data or the user leaves
            open.
        examples: Whole inputs that came with the file.
        script: The TorchScript module behind `module`, if it is one.
        notes: What was done to it, for the user.
    """

    module: FlatModule | FlatProgram
    inputs: tuple[TensorSpec, ...]
    examples: Feed
    script: nn.Module | None = None
    notes: tuple[str, ...] = ()

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Returns the model's outputs for one call, computed by torch in float32 on the CPU."""
        tensors = [torch.from_numpy(np.array(feed[spec.name])) for spec in self.inputs]
        with torch.no_grad():
            results = self.module(*tensors)
        return {n: r.detach().cpu().numpy() for n, r in zip(self.module.names, results, strict=True)}


def build_program(loaded: LoadedModel, declared: Sequence[TensorSpec], row: Sample | None) -> TorchProgram:
    """Returns `loaded` as a flat callable.

    Names come from the exported program's signature or from the parameters of `forward()`; dtypes and shapes from
    the program, else from a data row, else from `declared`.

    Raises:
        RecipeError: A declared input does not exist or contradicts the program.
        ExportError: A required argument of `forward()` has neither data nor a declaration.
    """
    if loaded.kind == EXPORTED_PROGRAM:
        assert isinstance(loaded.program, torch.export.ExportedProgram)
        program = from_exported_program(loaded.program)
        _check_names(declared, [i.name for i in program.inputs])
        by_name = {d.name: d for d in declared}
        inputs = tuple(_merge(spec, by_name.get(spec.name)) for spec in program.inputs)
        program = TorchProgram(program.module, inputs, program.examples, notes=program.notes)
    else:
        assert isinstance(loaded.program, nn.Module)
        program = _from_module(loaded.program, declared, row, script=loaded.kind == TORCHSCRIPT)
    program.module.reserved = frozenset(spec.name for spec in program.inputs)
    return program


def states_of(
    program: TorchProgram, rows: Sequence[Sample], declared: Sequence[StateSpec]
) -> tuple[tuple[StateSpec, ...], tuple[StateSpec, ...]]:
    """Returns the inputs that come back as outputs, after one run of the model to see its outputs.

    An input that the data holds is taken for an ordinary one unless it is declared; the second tuple has those
    that look like states all the same.

    Raises:
        RecipeError: A declared state does not exist or does not fit.
        ExportError: The model fails on one sample.
    """
    for unknown in UNKNOWN_SIZES:
        feed = _first_feed(program, rows, unknown)
        try:
            outputs = _run_without_memory(program, feed)
            break
        except ExportError:
            if unknown == UNKNOWN_SIZES[-1] or not _has_open_size(program, rows):
                raise
    seen = [
        TensorSpec(
            s.name,
            s.dtype,
            tuple(d if isinstance(d, str) else n for d, n in zip(s.shape, feed[s.name].shape, strict=True)),
        )
        for s in program.inputs
    ]
    returned = [TensorSpec(name, value.dtype.name, value.shape) for name, value in outputs.items()]
    with_data = {name for row in rows for name in row}
    candidates = [s for s in seen if s.name not in with_data or any(d.input == s.name for d in declared)]
    found = find_states(candidates if rows else seen, returned, declared)
    return found, tuple(s for s in find_states(seen, returned, declared) if s not in found)


def _run_without_memory(program: TorchProgram, feed: Feed) -> dict[str, np.ndarray]:
    """Returns one run's outputs, after checking that the model keeps nothing of it in its buffers."""
    before = {name: buffer.clone() for name, buffer in program.module.named_buffers()}
    outputs = run_or_explain(program.run, feed)
    for name, buffer in program.module.named_buffers():
        statistics = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        if not statistics and name in before and not torch.equal(before[name].nan_to_num(), buffer.nan_to_num()):
            raise ExportError(
                f"the model keeps a state in its buffer '{name.removeprefix('model.')}' from call to call; "
                "a graph has no memory.",
                hint="take the state as an input of forward() and return the new one; edgemm keeps it (--state)",
            )
    return outputs


def _has_open_size(program: TorchProgram, rows: Sequence[Sample]) -> bool:
    return not rows and any(isinstance(d, str) and d != BATCH for spec in program.inputs for d in spec.shape)


def _first_feed(program: TorchProgram, rows: Sequence[Sample], unknown: int) -> Feed:
    if all(spec.name in program.examples for spec in program.inputs):
        return program.examples
    feed = {}
    for spec in program.inputs:
        row = np.asarray(rows[0][spec.name]) if rows and spec.name in rows[0] else None
        axis = batch_axis(spec, row)
        if row is not None:
            feed[spec.name] = whole_input(spec, row, axis)
        else:
            feed[spec.name] = program.examples.get(spec.name, synthetic_row(spec, axis, 0, unknown))
    return feed


def from_exported_program(program: torch.export.ExportedProgram) -> TorchProgram:
    """Returns an exported program as a flat callable without the guards of its first export."""
    from edgemm.export.quiet import quiet

    spec = program.call_spec.in_spec
    out_spec = program.call_spec.out_spec
    if spec is None or out_spec is None:
        raise ExportError("the exported program has no call signature.", hint="export it again with torch.export")
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    leaves = _argument_names(program)
    names = name_leaves(spec, leaves)
    inputs, constants, examples = [], {}, {}
    given = _flat_examples(program)
    symbols: dict[str, str] = {}
    users = [s.arg for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    for index, (argument, name) in enumerate(zip(users, names, strict=True)):
        value = placeholders[argument.name].meta.get("val") if argument.name in placeholders else None
        if not isinstance(value, torch.Tensor):
            constants[index] = getattr(argument, "value", None)
            continue
        shape = tuple(_dim(size, f"{name}_dim{axis}", symbols) for axis, size in enumerate(value.shape))
        inputs.append(TensorSpec(name, check_dtype(name, str(value.dtype).removeprefix("torch.")), shape))
        if given is not None and isinstance(given[index], torch.Tensor):
            examples[name] = given[index].detach().cpu().numpy()
    with quiet():
        module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    changed = set_evaluation_mode(module)
    notes = (
        (f"saved in training mode: {changed} dropout or batch norm layers were set to eval mode",)
        if changed
        else ()
    )
    return TorchProgram(FlatProgram(module, out_spec, constants), _name_batch(inputs), examples, notes=notes)


def _argument_names(program: torch.export.ExportedProgram) -> list[str]:
    signature = program.module_call_graph[0].signature
    names = list(getattr(signature, "forward_arg_names", None) or [])
    spec = program.call_spec.in_spec
    count = spec.child(0).num_children if spec is not None else 0
    if len(names) >= count > 0:
        return [str(name) for name in names[:count]]
    # Older files: a positional tensor's placeholder has its name.
    found, index = [], 0
    users = program.graph_signature.user_inputs
    for child in spec.child(0).children() if spec is not None else ():
        found.append(
            str(users[index]) if child.num_leaves == 1 and isinstance(users[index], str) else f"arg{index}"
        )
        index += child.num_leaves
    return found


def _flat_examples(program: torch.export.ExportedProgram) -> list[Any] | None:
    from torch.utils import _pytree as pytree

    if program.example_inputs is None:
        return None
    return list(pytree.tree_leaves(program.example_inputs, is_leaf=lambda x: x is None))


def _dim(size: Any, fresh: str, symbols: dict[str, str]) -> Dim:
    return int(size) if isinstance(size, int) else symbols.setdefault(str(size), fresh)


def _name_batch(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Calls the symbol on axis 0 of the first input the batch, when it is there."""
    first = next((i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], str)), None)
    return tuple(
        TensorSpec(i.name, i.dtype, tuple(BATCH if d == first and first is not None else d for d in i.shape))
        for i in inputs
    )


def _merge(spec: TensorSpec, declared: TensorSpec | None) -> TensorSpec:
    """Returns the file's input with the user's symbols.

    Raises:
        RecipeError: The user's dtype, number of axes or a size is another one than the file's.
    """
    if declared is None:
        return spec
    sizes = zip(declared.shape, spec.shape, strict=False)
    other = any(isinstance(d, int) and isinstance(s, int) and d != s for d, s in sizes)
    if other or declared.dtype != spec.dtype or len(declared.shape) != len(spec.shape):
        raise RecipeError(
            f"input '{spec.name}' is declared as {declared}; the model's own signature says {spec}.",
            hint="leave its shape and dtype out, or match the file",
        )
    shape = tuple(d if isinstance(d, str) else s for d, s in zip(declared.shape, spec.shape, strict=True))
    return TensorSpec(spec.name, spec.dtype, shape)


def _check_names(declared: Sequence[TensorSpec], names: Sequence[str]) -> None:
    for spec in declared:
        if spec.name not in names:
            raise RecipeError(
                f"--input {spec.name}: no input '{spec.name}' in this model (inputs: {', '.join(names)}).",
                hint=did_you_mean(spec.name, names, "name one of the model's inputs"),
            )


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    required: bool
    keyword: bool


def _parameters(module: nn.Module, script: bool) -> tuple[list[_Parameter], bool, bool]:
    """Returns forward()'s parameters, and whether it takes `*args` and `**kwargs`."""
    if script:
        schema: Any = cast(Any, module.forward).schema
        return [_Parameter(a.name, not a.has_default_value(), False) for a in schema.arguments[1:]], False, False
    found, positional, keywords = [], False, False
    for parameter in inspect.signature(module.forward).parameters.values():
        positional |= parameter.kind is parameter.VAR_POSITIONAL
        keywords |= parameter.kind is parameter.VAR_KEYWORD
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        found.append(_Parameter(parameter.name, required, parameter.kind is parameter.KEYWORD_ONLY))
    return found, positional, keywords


def _from_module(
    module: nn.Module, declared: Sequence[TensorSpec], row: Sample | None, *, script: bool
) -> TorchProgram:
    parameters, positional, keywords = _parameters(module, script)
    by_name = {d.name: d for d in declared}
    names = [p.name for p in parameters]
    known = set(names)
    free = [d.name for d in declared if d.name not in known]
    script_module = module if script else None
    required = [p.name for p in parameters if p.required]
    if free and len(required) == 1 and not keywords and required[0] not in {**by_name, **dict(row or {})}:
        # One argument that holds them all: forward(batch) with a dict.
        flat = FlatModule(module, lambda tensors: (({n: t for n, t in zip(free, tensors, strict=True)},), {}))
        return TorchProgram(flat, tuple(_spec(n, by_name, row) for n in free), {}, script_module)
    if free and not (keywords or positional):
        _check_names(declared, names)
    used, left_out = [], False
    order: list[tuple[str, bool]] = []
    for parameter in parameters:
        if parameter.name in by_name or parameter.name in (row or {}):
            used.append(_spec(parameter.name, by_name, row))
            # After an argument that was left out, the rest must go by keyword.
            order.append((parameter.name, parameter.keyword or left_out))
        elif parameter.required:
            raise _no_data(parameter.name, names, row)
        else:
            left_out = True
    for name in free:
        used.append(_spec(name, by_name, row))
        order.append((name, keywords))
    if not used:
        raise _no_data(names[0] if names else "input", names, row)
    return TorchProgram(FlatModule(module, _binder(order)), tuple(used), {}, script_module)


def _binder(
    order: Sequence[tuple[str, bool]],
) -> Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    def bind(tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pairs = list(zip(order, tensors, strict=True))
        return (
            tuple(tensor for (_, keyword), tensor in pairs if not keyword),
            {name: tensor for (name, keyword), tensor in pairs if keyword},
        )

    return bind


def _spec(name: str, declared: Mapping[str, TensorSpec], row: Sample | None) -> TensorSpec:
    """Returns the input's spec: as declared, with open sizes, or the batch axis and the data row's own shape."""
    if name in declared:
        return declared[name]
    assert row is not None
    array = np.asarray(row[name])
    array = cast_row("float32", array)
    return TensorSpec(name, array.dtype.name, (BATCH, *array.shape))


def _no_data(name: str, names: Sequence[str], row: Sample | None) -> ExportError:
    arrays = f"the data has {', '.join(row)}" if row else "there is no data"
    close = did_you_mean(name, row or (), "")
    return ExportError(
        f"forward() takes {', '.join(names)}; nothing says what '{name}' is ({arrays}, no --input declares it).",
        hint=(f"is the array for '{name}' the one called {close.removeprefix('did you mean ')} " if close else "")
        + f"name an array of --calib '{name}', or declare it: --input {name}=1x3x224x224:float32",
    )

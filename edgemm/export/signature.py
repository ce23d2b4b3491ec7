"""The words of a model's signature: declared inputs, modalities of inputs, inputs that are states.

Guesses live here, each with its reason, so that `inspect` can show why an input has its modality.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from edgemm.errors import RecipeError, did_you_mean
from edgemm.tensors import BATCH, Dim, StateSpec, TensorSpec

_BATCH_WORDS = {"batch", "b", "n", "batch_size", "bs"}
_DTYPES = {
    "float": "float32", "float16": "float16", "half": "float16", "fp16": "float16", "float32": "float32",
    "fp32": "float32", "float64": "float64", "double": "float64", "bool": "bool", "int": "int64", "long": "int64",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64", "uint8": "uint8", "uint16": "uint16",
    "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip
_DIM = re.compile(r"[A-Za-z_]\w*|\d+")

# Input names with a meaning that everybody shares -> the modality's name.
_KNOWN_NAMES: tuple[tuple[str, str], ...] = (
    (r"pixel_values", "image"),
    (r"pixel_values_videos", "video"),
    (r"visual_feats|visual_features", "image"),
    (r"input_features|input_values|audio_values", "audio"),
    (r"(encoder_)?input_ids", "text"),
    (r"decoder_input_ids", "text"),
    (r"(encoder_)?inputs_embeds", "text"),
)
_COMPANION = re.compile(
    r"(^|_|\.)(mask|masks|ids|lengths|length|len|lens|positions?|pos|segments?|is_longer)(_|$|\.)|mask|_?pad(ding)?$"
)
# A companion whose name says which input it belongs to -> candidates in order.
_PARTNERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(attention_mask|token_type_ids|position_ids|segment_ids)", ("input_ids", "inputs_embeds", "input_values")),
    (r"decoder_(attention_mask|position_ids)", ("decoder_input_ids",)),
    (r"pixel_mask|image_sizes|pixel_attention_mask|image_grid_thw|interpolate_pos_encoding", ("pixel_values",)),
    (r"is_longer", ("input_features",)),
    (r"visual_(pos|attention_mask|token_type_ids|position_ids)", ("visual_feats", "visual_features")),
    (r"bool_masked_pos", ("pixel_values",)),
)
_MODALITY_STOPS = {"mask", "masks", "ids", "id", "lengths", "length", "len", "lens", "attention", "padding", "pad",
                   "key", "position", "positions", "pos", "token", "type", "valid", "input", "is"}  # fmt: skip

_STATE_NAME = re.compile(r"^(h|c|s|hx|cx|h_?\d|c_?\d|h_in|c_in)$|hidden|state|cell|cache|memory|carry|^past")
_UNNAMED = re.compile(r"output(_\d+)*|\d+|getitem(_\d+)*")


def parse_input(text: str) -> TensorSpec:
    """Returns the TensorSpec of `NAME=SHAPE:DTYPE`, for example `image=1x3x224x224:float32`.

    Sizes are separated by `x` or commas; a word is a symbolic size (`ids=batchxseq:int64`, `x=batch,3,32,32`).
    `batch`, `b`, `n`, `bs` and `batch_size` all mean the batch. Without `:DTYPE` the dtype is float32.

    Raises:
        RecipeError: The text does not follow that form; the message says where.
    """
    name, equals, rest = text.partition("=")
    shape_text, _, dtype_text = rest.partition(":")
    name, dtype_text = name.strip(), dtype_text.strip().lower() or "float32"
    example = "write NAME=SHAPE:DTYPE, for example image=1x3x224x224:float32 or ids=batchxseq:int64"
    if not equals or not name:
        raise RecipeError(f"--input {text}: expected NAME=SHAPE:DTYPE.", hint=example)
    if dtype_text not in _DTYPES:
        raise RecipeError(
            f"--input {name}: '{dtype_text}' is no dtype.",
            hint=did_you_mean(dtype_text, _DTYPES, "use float32, int64, bool, ..."),
        )
    shape: list[Dim] = []
    for part in _split_shape(shape_text):
        if not _DIM.fullmatch(part):
            raise RecipeError(f"--input {name}: '{part}' in the shape '{shape_text}' is no size.", hint=example)
        size: Dim = int(part) if part.isdigit() else part
        shape.append(BATCH if isinstance(size, str) and size.lower() in _BATCH_WORDS else size)
    if 0 in shape:
        raise RecipeError(f"--input {name}: a size of 0 in the shape '{shape_text}'.", hint=example)
    return TensorSpec(name, _DTYPES[dtype_text], tuple(shape))


def _split_shape(text: str) -> list[str]:
    text = text.strip().strip("[]()")
    if not text:
        return []
    if "," in text:
        return [part.strip() for part in text.split(",") if part.strip()]
    parts: list[str] = []
    for piece in re.split(r"(?<=\d)x|x(?=\d)", text):
        found = re.fullmatch(r"(batch_size|batch|bs|b|n)x(\w+)", piece, re.IGNORECASE)
        parts.extend([found.group(1), *_split_words(found.group(2))] if found else _split_words(piece))
    return parts


def _split_words(text: str) -> list[str]:
    """Splits `timexmels`, keeps `text`, `boxes` and `max_len`: an x between two words of three letters or more."""
    words = text.split("x")
    return words if all(len(word) >= 3 for word in words) else [text]


def check_dtype(name: str, dtype: str) -> str:
    """Returns `dtype` when numpy has it.

    Raises:
        RecipeError: numpy has no such dtype.
    """
    try:
        return np.dtype(dtype).name
    except TypeError as error:
        raise RecipeError(
            f"input '{name}': '{dtype}' is no dtype.", hint="use float32, int64, bool, ..."
        ) from error


def group_modalities(
    inputs: Sequence[TensorSpec], declared: Mapping[str, str], states: Sequence[StateSpec] = ()
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns input -> modality and input -> reason, for every input that is no state.

    A feature input is its own modality. An id, mask or length input that belongs to another one, told by name or
    by a shared shape, has that one's modality.

    Args:
        inputs: The model's inputs.
        declared: Input -> modality from the user; wins over every guess.
        states: The inputs that the session feeds itself.

    Raises:
        RecipeError: `declared` names an input that does not exist or is a state, or an empty modality.
    """
    kept = {state.input for state in states}
    fed = [spec for spec in inputs if spec.name not in kept]
    names = [spec.name for spec in fed]
    for name, modality in declared.items():
        if name not in names:
            known = f"no input '{name}' in this model (inputs: {', '.join(names)})."
            state = f"input '{name}' is a state: it has no modality."
            raise RecipeError(
                state if name in kept else f"--modality {name}={modality}: {known}",
                hint=did_you_mean(name, names, "name one of the inputs"),
            )
        if not modality.strip():
            raise RecipeError(f"--modality {name}=: the modality is empty.", hint="write INPUT=NAME")
    found = dict(declared)
    reason = dict.fromkeys(declared, "declared")
    companions = [spec for spec in fed if spec.name not in found and is_companion(spec)]
    leaders = [spec for spec in fed if spec not in companions]
    for spec in leaders:
        if spec.name not in found:
            found[spec.name], reason[spec.name] = _own_modality(spec.name)
    for spec in companions:
        partner, why = _partner(spec, leaders)
        if partner is None:
            found[spec.name], reason[spec.name] = _own_modality(spec.name)
        else:
            found[spec.name], reason[spec.name] = found[partner], why
    order = {name: index for index, name in enumerate(names)}
    return (
        dict(sorted(found.items(), key=lambda item: order[item[0]])),
        dict(sorted(reason.items(), key=lambda item: order[item[0]])),
    )


def is_companion(spec: TensorSpec) -> bool:
    """True when an input describes another one (mask, positions, lengths) rather than being features itself."""
    name = spec.name.lower()
    if re.fullmatch(r"(encoder_|decoder_)?input_ids|ids|tokens?|text(_ids)?", name):
        return False
    if any(re.fullmatch(pattern, name) for pattern, _ in _PARTNERS):
        return True
    return bool(_COMPANION.search(name)) and not _is_lone_ids(spec)


def _is_lone_ids(spec: TensorSpec) -> bool:
    """`text_ids`, `word_ids`: integer sequences that are features themselves."""
    return bool(re.search(r"(^|_)ids$", spec.name)) and not re.search(
        r"position|segment|token_type|pos|type", spec.name
    )


def _own_modality(name: str) -> tuple[str, str]:
    for pattern, modality in _KNOWN_NAMES:
        if re.fullmatch(pattern, name):
            return modality, f"'{name}' is the usual name of a model's {modality} input"
    clean = re.sub(r"^(input|x|in)_(?=\w{3,})|_(ids|input|in|features?|feats?|values?|tensor|data)$", "", name)
    if clean and clean != name:
        return clean, f"its own modality, named after the input '{name}'"
    return name, "its own modality"


def _partner(spec: TensorSpec, leaders: Sequence[TensorSpec]) -> tuple[str | None, str]:
    by_name = {leader.name: leader for leader in leaders}
    for pattern, candidates in _PARTNERS:
        if re.fullmatch(pattern, spec.name):
            for candidate in candidates:
                if candidate in by_name:
                    return candidate, f"goes with '{candidate}' (by name)"
    words = [w for w in re.split(r"[_.\d]+", spec.name.lower()) if w and w not in _MODALITY_STOPS]
    for leader in leaders:
        others = re.split(r"[_.\d]+", leader.name.lower())
        if words and (words[0] in others or any(o.startswith(words[0]) for o in others if len(words[0]) > 2)):
            return leader.name, f"goes with '{leader.name}' (shares the name '{words[0]}')"
    matches = [leader for leader in leaders if _shapes_agree(spec.shape, leader.shape)]
    if len(matches) == 1:
        return matches[0].name, f"goes with '{matches[0].name}' (same leading shape)"
    if len(leaders) == 1:
        return leaders[0].name, f"goes with '{leaders[0].name}' (the only other input)"
    return None, ""


def _shapes_agree(companion: tuple[Dim, ...], leader: tuple[Dim, ...]) -> bool:
    """True when a mask's sizes, batch aside, are those of the leader's first axes (and there is at least one)."""
    inner, outer = companion[1:], leader[1:]
    return 0 < len(inner) <= len(outer) and outer[: len(inner)] == inner


def find_states(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], declared: Sequence[StateSpec] = ()
) -> tuple[StateSpec, ...]:
    """Returns the inputs that come back as outputs: declared ones first, then pairs whose names and shapes match.

    Recognised: `h` → `h_out`, `h_in` → `h_out`, `hn`, `h_n`, `new_h`, `next_h`, `h_next`, `past_*` → `present_*`,
    `past_key_values.0.key` → `present.0.key`. A guess needs equal dtype and rank and fixed sizes that agree.

    Raises:
        RecipeError: A declared state names an unknown input or output, one twice, or a pair of different dtype or
            shape.
    """
    ins, outs = {i.name: i for i in inputs}, {o.name: o for o in outputs}
    states: list[StateSpec] = []
    for state in declared:
        _check_declared(state, ins, outs, states)
        states.append(state)
    used_in, used_out = {s.input for s in states}, {s.output for s in states}
    for spec in inputs:
        if spec.name in used_in:
            continue
        for output in outputs:
            names_fit = output.name in _returned_names(spec.name)
            if output.name not in used_out and names_fit and _same_kind(spec, output):
                states.append(StateSpec(spec.name, output.name))
                used_out.add(output.name)
                break
    states += _unnamed_states(inputs, outputs, states)
    order = {spec.name: index for index, spec in enumerate(inputs)}
    return tuple(sorted(states, key=lambda s: order[s.input]))


def _unnamed_states(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], found: Sequence[StateSpec]
) -> list[StateSpec]:
    """Pairs inputs called like states with outputs that have no name of their own (`output_1`), in order.

    Only where as many outputs as inputs have the shape, so that the pairing is the only one.
    """
    used = {name for state in found for name in (state.input, state.output)}
    left = [i for i in inputs if i.name not in used and _STATE_NAME.search(i.name)]
    free = [o for o in outputs if o.name not in used and _UNNAMED.fullmatch(o.name)]
    pairs = []
    for spec in left:
        alike = [i for i in left if i.dtype == spec.dtype and i.shape == spec.shape]
        fitting = [o for o in free if _same_kind(spec, o)]
        if len(alike) == len(fitting):
            pairs.append(StateSpec(spec.name, fitting[alike.index(spec)].name))
    return pairs


def _check_declared(
    state: StateSpec,
    ins: Mapping[str, TensorSpec],
    outs: Mapping[str, TensorSpec],
    taken: Sequence[StateSpec],
) -> None:
    option = f"--state {state.input}={state.output}"
    if state.input not in ins:
        raise RecipeError(
            f"{option}: no input '{state.input}' in this model (inputs: {', '.join(ins)}).",
            hint=did_you_mean(state.input, ins, "write INPUT=OUTPUT"),
        )
    if state.output not in outs:
        raise RecipeError(
            f"{option}: no output '{state.output}' in this model (outputs: {', '.join(outs)}).",
            hint=did_you_mean(state.output, outs, "write INPUT=OUTPUT"),
        )
    if any(state.input == t.input or state.output == t.output for t in taken):
        raise RecipeError(f"{option}: declared twice.", hint="each state is one input and one output")
    if not _same_kind(ins[state.input], outs[state.output]):
        raise RecipeError(
            f"{option}: the input is {ins[state.input]}, the output {outs[state.output]}.",
            hint="a state must come back with the dtype and shape that it went in with",
        )


def _same_kind(a: TensorSpec, b: TensorSpec) -> bool:
    if a.dtype != b.dtype or len(a.shape) != len(b.shape):
        return False
    return all(x == y or isinstance(x, str) or isinstance(y, str) for x, y in zip(a.shape, b.shape, strict=True))


def _returned_names(name: str) -> tuple[str, ...]:
    """Returns the output names under which an input called `name` usually comes back."""
    base = re.sub(r"^(in|input|prev|previous|old|last)_|_(in|input|prev|old|0)$|(?<=[a-z])0$", "", name) or name
    found = [f"{b}{end}" for b in dict.fromkeys((name, base)) for end in
             ("_out", "_output", "_next", "_new", "n", "_n",
              "N", "_N", "_t", "_1", "1", ".out", "_last", "_final", "_updated")]  # fmt: skip
    found += [f"{start}{b}" for b in dict.fromkeys((name, base)) for start in
              ("new_", "next_", "out_", "output_", "updated_", "final_", "last_", "present_")]  # fmt: skip
    if base != name:
        found.append(base)
    if "past_key_values" in name:
        found += [
            name.replace("past_key_values", "present"),
            name.replace("past_key_values", "present_key_values"),
        ]
    if "past" in name:
        found.append(name.replace("past", "present"))
    return tuple(found)

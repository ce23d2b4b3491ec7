"""The manifest as text: round trip, determinism, and every way in which it can be wrong."""

from __future__ import annotations

import json
import string
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemm.bundle import EngineEntry, Manifest, StageEntry, StandIn, Variant
from edgemm.bundle.check import check_consistent, check_path
from edgemm.bundle.codec import dumps, loads
from edgemm.errors import BundleError
from edgemm.tensors import IOSpec, StateSpec, TensorSpec

WORDS = st.text(string.ascii_letters + "_µ名 ", min_size=1, max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(WORDS, children, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(WORDS, JSON, max_size=3)
COUNTS = st.dictionaries(WORDS, st.integers(0, 99), max_size=3)
NAMES = st.lists(WORDS, max_size=3).map(tuple)
TENSORS = st.lists(
    st.builds(
        TensorSpec,
        WORDS,
        st.sampled_from(["float32", "int64", "bool"]),
        st.lists(st.integers(0, 9) | WORDS, max_size=4).map(tuple),
    ),
    max_size=3,
).map(tuple)


@st.composite
def signatures(draw: st.DrawFn) -> IOSpec:
    inputs = draw(TENSORS)
    names = sorted({i.name for i in inputs})
    reasons = {n: "because" for n in names if draw(st.booleans())}
    return IOSpec(
        inputs=inputs,
        outputs=draw(TENSORS),
        modalities={n: draw(WORDS) for n in names if draw(st.booleans())},
        states=tuple(StateSpec(n, draw(WORDS)) for n in names[:1]),
        batch=draw(st.none() | st.integers(1, 9) | WORDS),
        reasons=reasons or None,
    )


ENGINES = st.lists(st.builds(EngineEntry, WORDS, NAMES, WORDS, NAMES, NAMES, COUNTS), max_size=2).map(tuple)
VARIANTS = st.lists(
    st.builds(
        Variant,
        *[WORDS] * 5,
        engines=ENGINES,
        decisions=COUNTS,
        size_bytes=st.integers(0, 2**40),
        accuracy=st.none() | OBJECTS,
        refused=st.none() | WORDS,
    ),
    max_size=2,
).map(tuple)
STAGES = st.lists(
    st.builds(StageEntry, WORDS, NAMES, WORDS, TENSORS, TENSORS, st.integers(0, 99), st.integers(0, 2**40)),
    max_size=2,
).map(tuple)
STAND_INS = st.lists(
    st.builds(
        StandIn, WORDS, WORDS, st.dictionaries(WORDS, WORDS | FLOATS | st.integers(-9, 9), max_size=2), WORDS
    ),
    max_size=2,
).map(tuple)
MANIFESTS = st.builds(
    Manifest,
    name=WORDS,
    io=signatures(),
    stages=STAGES,
    joins=st.lists(OBJECTS, max_size=2).map(tuple),
    variants=VARIANTS,
    info=OBJECTS,
    measured=OBJECTS,
    files=st.dictionaries(WORDS, st.fixed_dictionaries({"sha256": WORDS, "size": st.integers(0, 99)}), max_size=2),
    stream=OBJECTS,
    stand_ins=STAND_INS,
)


@settings(max_examples=60, deadline=None)
@given(MANIFESTS)
def test_manifest_round_trips(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest
    text = dumps(manifest)
    assert loads(text, "x") == manifest
    assert dumps(loads(text, "x")) == text


def test_manifest_text_does_not_depend_on_the_order_of_free_form_parts(tiny_manifest: Manifest) -> None:
    one = replace(tiny_manifest, info={"a": 1, "b": {"x": (1, 2), "y": np.float32(0.5)}})
    two = replace(tiny_manifest, info={"b": {"y": 0.5, "x": [1, 2]}, "a": np.int64(1)})
    assert dumps(one) == dumps(two)


def test_only_measured_differs_between_two_runs(tiny_manifest: Manifest) -> None:
    one = json.loads(dumps(replace(tiny_manifest, measured={"created": "today"})))
    two = json.loads(dumps(replace(tiny_manifest, measured={"created": "tomorrow"})))
    assert one.pop("measured") != two.pop("measured")
    assert one == two


def test_schema_1_is_what_it_was(tiny_manifest: Manifest) -> None:
    """Bundles outlive releases: a change here needs a new schema version and a reader for the old one."""
    golden = (Path(__file__).parents[1] / "golden" / "bundle_manifest.json").read_bytes()
    assert dumps(tiny_manifest) == golden
    assert loads(golden, "golden") == tiny_manifest


def test_engines_keep_their_own_backend_and_options(tiny_manifest: Manifest) -> None:
    (variant,) = tiny_manifest.variants
    image, fusion = variant.engines
    assert image.backend == "onnxruntime"  # left out, it is the variant's
    mixed = replace(image, backend="openvino", options={"threads": 1, "precision": "bf16"})
    variant = replace(variant, backend="onnxruntime+openvino", engines=(mixed, fusion))
    manifest = replace(tiny_manifest, variants=(variant,))
    check_consistent(manifest)
    entries = manifest.to_json()["variants"][0]["engines"]
    assert (entries[0]["backend"], entries[0]["options"]) == ("openvino", {"precision": "bf16", "threads": 1})
    assert entries[1]["backend"] == "onnxruntime"
    assert loads(dumps(manifest), "x") == manifest
    entries[0]["backend"] = 7
    with pytest.raises(BundleError, match=r"engines\[0\].backend' is int, expected a string"):
        Manifest.from_json(
            manifest.to_json() | {"variants": [manifest.to_json()["variants"][0] | {"engines": entries}]}
        )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"'info.bad' is nan, which JSON cannot hold"),
        (float("inf"), r"'info.bad' is inf"),
        (object(), r"'info.bad' is a object, expected numbers"),
        ({1: 2}, r"'info.bad' has the key 1"),
        (b"bytes", r"'info.bad' is a bytes"),
    ],
)
def test_values_that_json_cannot_hold_are_refused(tiny_manifest: Manifest, value: object, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        replace(tiny_manifest, info={"bad": value}).to_json()


def test_text_that_is_not_unicode_is_refused(tiny_manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="not Unicode"):
        dumps(replace(tiny_manifest, name="\udce4"))


def edited(manifest: Manifest, *path: str | int, value: object) -> bytes:
    data = manifest.to_json()
    at = data
    for key in path[:-1]:
        at = at[key]  # type: ignore[index]
    at[path[-1]] = value  # type: ignore[index]
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "made by a newer edgemm, schema 2; this is 1"),
        (("schema",), 0, "schema 0 does not exist"),
        (("schema",), "1", "'schema' is str, expected a whole number"),
        (("schema",), True, "'schema' is true or false, expected a whole number"),
        (("format",), "zip", "format is 'zip', expected 'edgemm-bundle'"),
        (("io",), [], "'io' is list, expected an object"),
        (("io", "inputs"), None, "'io.inputs' is NoneType, expected a list"),
        (("io", "inputs", 0), 3, r"'io.inputs\[0\]' is int, expected an object"),
        (("io", "inputs", 0, "shape"), [-1], r"'io.inputs\[0\].shape' has the size -1"),
        (("io", "inputs", 0, "shape"), [1.5], r"'io.inputs\[0\].shape' is float"),
        (("io", "inputs", 0, "modality"), 1, r"'io.inputs\[0\].modality' is int, expected a string"),
        (("io", "batch"), 1.5, "'io.batch' is float"),
        (("io", "states"), {}, "'io.states' is dict, expected a list"),
        (("stages", 0, "nodes"), "5", r"'stages\[0\].nodes' is str, expected a whole number"),
        (("stages", 0, "modalities"), "image", r"'stages\[0\].modalities' is str, expected a list"),
        (("variants", 0, "engines", 0, "file"), 7, r"'variants\[0\].engines\[0\].file' is int, expected a string"),
        (("variants", 0, "decisions"), {"int8": "1"}, r"'variants\[0\].decisions.int8' is str"),
        (("variants", 0, "accuracy"), 1, r"'variants\[0\].accuracy' is int, expected an object"),
        (("files",), {"a": "sha"}, "'files.a' is str, expected an object"),
        (("files",), {"a": {"sha256": 1, "size": 1}}, "'files.a.sha256' is int"),
        (("files",), {"a": {"sha256": "x", "size": "1"}}, "'files.a.size' is str"),
        (("info",), [], "'info' is list, expected an object"),
        (("stream",), [], "'stream' is list, expected an object"),
        (("stand_ins",), {}, "'stand_ins' is dict, expected a list"),
        (("least",), {"samples": "201"}, "'least.samples' is str, expected a whole number"),
        (("stand_ins",), [{"modality": "a", "fill": "mean", "arrays": {"x": None}}], r"arrays.x' is NoneType"),
        (
            ("stand_ins",),
            [{"modality": "a", "fill": "mean", "arrays": {"x": True}}],
            r"arrays.x' is true or false",
        ),
        (("stand_ins",), [{"modality": "a", "arrays": {}}], r"'stand_ins\[0\].fill' is missing"),
    ],
)
def test_wrong_types_name_the_key(
    tiny_manifest: Manifest, path: tuple[str | int, ...], value: object, message: str
) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        loads(edited(tiny_manifest, *path, value=value), "manifest.json")
    assert caught.value.hint


LEFT_OUT_WHEN_EMPTY = {"stream", "stand_ins", "heads", "preprocess", "least"}


@pytest.mark.parametrize("key", [f.name for f in fields(Manifest) if f.name not in LEFT_OUT_WHEN_EMPTY])
def test_missing_keys_are_named(tiny_manifest: Manifest, key: str) -> None:
    data = tiny_manifest.to_json()
    del data[key]
    with pytest.raises(BundleError, match=f"'{key}' is missing"):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a manifest"),
        (b"\xff\xfe", "not a manifest"),
        (b"[]", "'manifest' is list, expected an object"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' is there twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not a manifest"),
    ],
)
def test_text_that_is_no_manifest_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        loads(text, "manifest.json")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "is absolute"),
        ("../x", "'..' part"),
        ("a/../../x", "'..' part"),
        ("a//b", "empty"),
        ("", "empty"),
        ("./a", "'.'"),
        ("a\\..\\b", "backslash"),
        ("a\0b", "control character"),
        ("manifest.json", "the manifest itself"),
    ],
)
def test_paths_that_lead_out_are_refused(name: str, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        check_path(name)


def test_consistent_manifest_passes(tiny_manifest: Manifest) -> None:
    check_consistent(tiny_manifest)


def with_engine(manifest: Manifest, **changes: object) -> Manifest:
    variant = manifest.variants[0]
    engine = replace(variant.engines[0], **changes)  # type: ignore[arg-type]
    return replace(manifest, variants=(replace(variant, engines=(engine, *variant.engines[1:])),))


def test_names_that_refer_to_nothing_are_refused(tiny_manifest: Manifest) -> None:
    m = tiny_manifest
    io, variant = m.io, m.variants[0]
    wrong = {
        "file 'gone.onnx' is not in the bundle": with_engine(m, file="gone.onnx"),
        "there is no stage 'nope'": with_engine(m, stages=("nope",)),
        "no engine before it gives 'ghost'": with_engine(m, inputs=("ghost",)),
        "no engine gives the output 'logits'": replace(
            m, variants=(replace(variant, engines=variant.engines[:-1]),)
        ),
        "two variants called 'cpu-fp32'": replace(m, variants=(variant, variant)),
        "two stages called": replace(m, stages=(*m.stages, m.stages[0])),
        "two inputs called": replace(m, io=replace(io, inputs=(*io.inputs, io.inputs[0]))),
        "no variant has engines": replace(m, variants=(replace(variant, refused="slow"),)),
        "has no modality": replace(m, io=replace(io, modalities={})),
        "the state 'h' from 'h_out'": replace(m, io=replace(io, states=(StateSpec("h", "h_out"),))),
        "at most 10000": replace(m, files={f"f{i}": {"sha256": "", "size": 0} for i in range(10_001)}),
    }
    for message, manifest in wrong.items():
        with pytest.raises(BundleError, match=message):
            check_consistent(manifest)

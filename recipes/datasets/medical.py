"""Patients with a biopsy: half of the measurements as a table with gaps, the other half drawn as a picture.

The table is real: the Breast Cancer Wisconsin (Diagnostic) data, 569 patients, from the wheel of scikit-learn. Its
thirty fields were measured on microscope images that do not come with it, so the image here is synthetic:
cell nuclei drawn with the patient's own radius, spread of radius, dents of the outline and grey. What is drawn
is not in the table. The gaps are synthetic, too: the source has none. Splits are by patient.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays

SIDE = 48
SPLITS = ("train", "calib", "eval")
DRAWN = ("mean radius", "radius error", "mean concave points", "mean smoothness")
"""Fields that the image shows."""

FIELDS = (
    "mean texture",
    "mean symmetry",
    "mean fractal dimension",
    "texture error",
    "smoothness error",
    "compactness error",
    "concave points error",
    "symmetry error",
    "fractal dimension error",
    "worst texture",
)
"""Fields of the table, in its order."""


@dataclass(frozen=True, slots=True)
class Options:
    """Size and difficulty. Equal options give equal arrays.

    Attributes:
        patients: In train, calib and eval; together at most 569.
        images: Images drawn of each patient, each with gaps of its own in the table.
        nuclei: Nuclei in an image.
        noise: Standard deviation of the noise on pixels from 0 to 1.
        missing: Share of the fields that are gone, drawn anew for each sample.
        seed: Of everything random.
    """

    patients: tuple[int, int, int] = (269, 100, 200)
    images: int = 3
    nuclei: int = 5
    noise: float = 0.25
    missing: float = 0.25
    seed: int = 7


def load(options: Options = Options()) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `image` `[N,48,48,1]` uint8, grey as a camera gives it, `table` `[N,10]` float32 (standardised by
    training patients, 0 where a field is gone), `given` `[N,10]` float32 (1 where a field is there) and `label`
    `[N]` int64 (1 malignant).
    """
    flat = cached_arrays("medical", f"2 {asdict(options)}", lambda: _build(options))
    names = ("image", "table", "given", "label")
    return {split: {name: flat[f"{split}_{name}"] for name in names} for split in SPLITS}


def _build(options: Options) -> Arrays:
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    columns = [str(name) for name in source.feature_names]
    table = source.data[:, [columns.index(name) for name in FIELDS]]
    drawn = source.data[:, [columns.index(name) for name in DRAWN]]
    rng = np.random.default_rng(options.seed)
    parts = np.split(rng.permutation(len(table)), np.cumsum(options.patients))[:3]
    table = (table - table[parts[0]].mean(0)) / table[parts[0]].std(0)
    arrays: Arrays = {}
    for split, patients in zip(SPLITS, parts, strict=True):
        rows = np.repeat(patients, options.images)
        given = (rng.random((len(rows), len(FIELDS))) >= options.missing).astype(np.float32)
        arrays[f"{split}_image"] = np.stack([_draw(rng, drawn[row], options) for row in rows])
        arrays[f"{split}_table"] = (table[rows].clip(-4, 4) * given).astype(np.float32)
        arrays[f"{split}_given"] = given
        arrays[f"{split}_label"] = 1 - source.target[rows].astype(np.int64)
    return arrays


def _draw(rng: np.random.Generator, fields: np.ndarray, options: Options) -> np.ndarray:
    """Returns dark nuclei on bright tissue, `[48,48,1]` uint8; `fields` are those of `DRAWN`."""
    radius, spread, dents, grey = fields
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    image = np.full((SIDE, SIDE), 0.8, np.float32)
    for _ in range(options.nuclei):
        y, x = rng.uniform(6, SIDE - 6, 2)
        angle, distance = np.arctan2(rows - y, columns - x), np.hypot(rows - y, columns - x)
        own = 0.45 * max(3.0, radius + spread * rng.standard_normal())
        phases = rng.uniform(0, 2 * np.pi, 4)
        waves = sum(np.cos(k * angle + phase) for k, phase in zip(range(3, 7), phases, strict=True))
        outline = own * (1 + 1.5 * dents * waves)
        inside = 1 / (1 + np.exp(np.clip(2 * (distance - outline), -30, 30)))
        image -= inside * (image - 0.2 - 2 * grey) * rng.uniform(0.6, 1)
    image += options.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(255 * image.clip(0, 1)).astype(np.uint8)[:, :, None]

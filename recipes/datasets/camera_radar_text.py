"""Road scenes for a camera, a radar and a message: what should the car do? Synthetic, from `scenes`.

The camera shows *what* is ahead (through fog and at night), the radar how it *moves* (and, by how its echoes
spread, a hint of what it is), the message *where* the car is now. The answer is a table over all three, in which
no two are enough. Splits have their own scenes; evaluation has sentences that training has not.
"""

from __future__ import annotations

import numpy as np

from recipes.datasets import scenes
from recipes.datasets.cache import Arrays, cached_arrays

ACTIONS = ("keep", "follow", "slow", "stop")
MOTIONS = ("receding", "steady", "approaching")
SPEEDS = ((2.0, 9.0), (-0.6, 0.6), (-9.0, -2.0))
SITES = (
    ("motorway", "highway", "expressway"),
    ("town", "city", "village"),
    ("school", "kindergarten", "playground"),
    ("garage", "carpark", "parking"),
)
RULES = np.array(
    [  # site, kind (car, truck, pedestrian, cyclist), motion -> action
        [[0, 1, 2], [1, 2, 3], [2, 3, 3], [2, 3, 3]],
        [[0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 1, 3]],
        [[1, 2, 3], [1, 2, 3], [2, 3, 3], [2, 2, 3]],
        [[0, 2, 3], [2, 3, 3], [0, 0, 1], [0, 1, 2]],
    ]
)
FRAMES = (
    "you are now in the {0} zone",
    "we left the {1} and are in the {0}",
    "navigation says the {0} begins here",
    "welcome to the {0} zone please drive carefully",
    "the {1} ends here and the {0} begins",
    "after the {1} we have reached the {0}",
    "position {0} area not {1} area",
    "message from the control room you have reached the {0}",
    "not the {1} any more it is the {0}",
    "here the {0} begins leave the {1} behind",
    "we are in the {0} now the {1} is behind us",
    "entering {0} area leaving {1} area",
    "driver this is the {0} not the {1}",
    "we have reached the {0}",
    "please note the {0} begins here the {1} ends",  # from here on for evaluation alone
    "navigation message you are in the {0} area",
    "driver you left the {1} and have reached the {0}",
    "not the {1} zone any more you are entering {0}",
)
TRAINED_FRAMES = 14
WORDS = (
    "<pad>",
    "<unk>",
    *sorted(
        {word for text in (*FRAMES[:TRAINED_FRAMES], *sum(SITES, ())) for word in text.split() if "{" not in word}
    ),
)
LENGTH, SIZE, BINS, CHIRPS = 14, (32, 64), 32, 32
SPLITS = {"train": 6000, "calib": 500, "eval": 1000}


def tokens_of(sentence: str) -> np.ndarray:
    """Returns the indices `[14]` int64 of the words in `WORDS`; 1 where unknown, 0 after the end."""
    known = {word: i for i, word in enumerate(WORDS)}
    row = np.zeros(LENGTH, np.int64)
    indices = [known.get(word, 1) for word in sentence.lower().split()[:LENGTH]]
    row[: len(indices)] = indices
    return row


def load(share: float = 1.0) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `camera` `[N, 3, 32, 64]` float32 in [-1, 1], `radar` `[N, 1, 32, 32]` float32 (tens of decibels),
    `tokens` `[N, 14]` int64 and `label` `[N]` int64, index into `ACTIONS`.

    Args:
        share: Part of the samples to build, 0 to 1, for quick trials.
    """
    flat = cached_arrays("camera_radar_text", f"1 {share} {SPLITS}", lambda: _build(share))
    return {s: {n: flat[f"{s}_{n}"] for n in ("camera", "radar", "tokens", "label")} for s in SPLITS}


def _build(share: float) -> Arrays:
    arrays: Arrays = {}
    for seed, (split, count) in enumerate(SPLITS.items()):
        rng = np.random.default_rng([7, seed])
        frames = FRAMES[TRAINED_FRAMES:] if split == "eval" else FRAMES[:TRAINED_FRAMES]
        samples = [_sample(rng, frames) for _ in range(max(8, round(count * share)))]
        for name in samples[0]:
            arrays[f"{split}_{name}"] = np.stack([s[name] for s in samples])
    return arrays


def _sample(rng: np.random.Generator, frames: tuple[str, ...]) -> Arrays:
    action = rng.integers(len(ACTIONS))
    ways = np.argwhere(action == RULES)
    site, kind, motion = (int(i) for i in ways[rng.integers(len(ways))])
    other = (site + rng.integers(1, len(SITES))) % len(SITES)
    words = (str(rng.choice(SITES[site])), str(rng.choice(SITES[other])))
    scene, distances = _scene(rng, kind)
    weather = scenes.Weather(rng.uniform(15, 80), rng.uniform(0.3, 1.0), 0.05)
    picture, _ = scenes.photograph(rng, scene.boxes(), SIZE, weather)
    return {
        "camera": 2 * picture - 1,
        "radar": _echo(rng, scene, distances, rng.uniform(*SPEEDS[motion]))[None],
        "tokens": tokens_of(frames[rng.integers(len(frames))].format(*words)),
        "label": np.int64(action),
    }


def _scene(rng: np.random.Generator, kind: int) -> tuple[scenes.Objects, np.ndarray]:
    """Returns a road user ahead with up to two things beside the road, and their distances in metres."""
    kinds = np.array([kind, *rng.choice([scenes.POLE, scenes.CONTAINER], rng.integers(0, 3))])
    x, y = np.empty(len(kinds)), np.empty(len(kinds))
    x[0], y[0] = rng.uniform(6, 16), rng.uniform(-2.5, 2.5)
    x[1:] = rng.uniform(8, 30, len(kinds) - 1)
    y[1:] = rng.choice([-1, 1], len(kinds) - 1) * rng.uniform(5, 9, len(kinds) - 1)
    place = np.stack([x, y], 1)
    yaw = rng.choice([0.0, np.pi], len(kinds)) + rng.normal(0, 0.25, len(kinds))
    scene = scenes.Objects(kinds, place, yaw, rng.uniform(0.1, 0.9, (len(kinds), 3)))
    return scene, np.linalg.norm(place, axis=1)


def _echo(rng: np.random.Generator, scene: scenes.Objects, distances: np.ndarray, speed: float) -> np.ndarray:
    """Returns the radar's map of the road user at `speed`; what stands beside the road comes as the car drives."""
    speeds = [speed, *np.full(len(distances) - 1, -rng.uniform(0, 8))]
    all_echoes = [
        scenes.echoes_of(rng, int(kind), float(distance), float(v))
        for kind, distance, v in zip(scene.kind, distances, speeds, strict=True)
    ]
    weak = np.array([1.0] + [0.3] * (len(speeds) - 1))  # the beam is narrow
    echoes = scenes.Echoes(
        np.concatenate([e.range for e in all_echoes]),
        np.concatenate([e.speed for e in all_echoes]),
        np.concatenate([w * e.strength for w, e in zip(weak, all_echoes, strict=True)]),
    )
    return scenes.range_doppler(rng, echoes, BINS, CHIRPS, 0.35) / 10

"""Commands to a screen: what is meant depends on what is there and on its state. Synthetic, from templates.

`switch night light` turns it on where it is off, and is about nothing where the screen has no such switch; in
`toggle the night light timer` the words on the screen say which two of the three are the name. Evaluation has
sentences and names (pairs of known words) that training has not.
"""

from __future__ import annotations

import itertools

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays

INTENTS = ("tap", "turn_on", "turn_off", "type", "set", "not_here", "nothing_to_do")
SLOTS = ("target", "text", "value")
TARGET, TEXT, VALUE = range(3)
TYPES = ("empty", "button", "switch", "field", "slider")

FRAMES = {  # the last two of each are for evaluation alone
    "tap": (
        *("press {t}", "tap on {t}", "please press the {t}", "hit the {t} now", "could you tap the {t}"),
        *("please tap on the {t}", "could you press {t} now"),
    ),
    "toggle": (
        *("switch {t}", "toggle the {t}", "flip the {t} please", "could you flip {t}", "now switch the {t}"),
        *("please toggle {t}", "could you switch the {t}"),
    ),
    "on": (
        *("turn on the {t}", "turn the {t} on", "switch on {t}", "please enable {t}", "could you turn {t} on"),
        *("enable the {t} please", "now turn the {t} on"),
    ),
    "off": (
        *(
            "turn off the {t}",
            "turn the {t} off",
            "switch off {t}",
            "please disable {t}",
            "could you turn {t} off",
        ),
        *("disable the {t} please", "now turn the {t} off"),
    ),
    "type": (
        *("type {c} into the {t}", "write {c} in {t}", "enter {c} into {t} please", "please type {c} in the {t}"),
        *("please write {c} into the {t}", "now enter {c} in {t}"),
    ),
    "set": (
        *(
            "set {t} to {v}",
            "put the {t} at {v}",
            "change {t} to {v} percent",
            "please set the {t} at {v} percent",
        ),
        *("please change the {t} to {v}", "now put {t} at {v} percent"),
    ),
}
HELD_BACK = 2
_TYPE_OF = {"tap": 1, "toggle": 2, "on": 2, "off": 2, "type": 3, "set": 4}
NAMED = (
    *("night", "quiet", "dark", "guest", "morning", "kitchen", "travel", "winter", "music", "party"),
    *("light", "timer", "mode", "search", "volume", "notes", "menu", "camera", "heating"),
)
"""Words of names; an element is called by any two of them, in either order."""
CONTENTS = (
    "hello",
    "weather",
    "tomorrow",
    "berlin",
    "milk",
    "bread",
    "coffee",
    "train",
    "music",
    "light",
    "night",
)
VALUES = ("ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
WORDS = (
    "<pad>",
    "<unk>",
    *sorted(
        {w for frames in FRAMES.values() for f in frames for w in f.split() if "{" not in w}
        | {*NAMED, *CONTENTS, *VALUES}
    ),
)
_INDEX = {word: i for i, word in enumerate(WORDS)}
LENGTH, ELEMENTS = 12, 8
SPLITS = {"train": 8000, "calib": 500, "eval": 1000}
_PAIRS = list(itertools.permutations(NAMED, 2))
NAMES = {"train": [p for i, p in enumerate(_PAIRS) if i % 4], "eval": _PAIRS[::4]}
"""Names of elements for training (and calibration), and for evaluation."""


def load(share: float = 1.0) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `tokens` `[N, 12]` int64, index into `WORDS`; `names` `[N, 8, 3]` int64: type of an element and two
    words; `layout` `[N, 8, 3]` float32: x, y from 0 to 1 and the state; and `label` `[N, 13]` int64: the intent,
    and a tag per word as `recipes.metrics.slot_f1` reads them.

    Args:
        share: Part of the samples to build, 0 to 1, for quick trials.
    """
    flat = cached_arrays("nl_interface", f"1 {share} {SPLITS}", lambda: _build(share))
    return {s: {n: flat[f"{s}_{n}"] for n in ("tokens", "names", "layout", "label")} for s in SPLITS}


def _build(share: float) -> Arrays:
    arrays: Arrays = {}
    for seed, (split, count) in enumerate(SPLITS.items()):
        rng = np.random.default_rng([9, seed])
        samples = [_sample(rng, split == "eval") for _ in range(max(8, round(count * share)))]
        for name in samples[0]:
            arrays[f"{split}_{name}"] = np.stack([s[name] for s in samples])
    return arrays


def _sample(rng: np.random.Generator, held_out: bool) -> Arrays:
    command = str(rng.choice(list(FRAMES)))
    pairs = NAMES["eval" if held_out else "train"]
    target = pairs[rng.integers(len(pairs))]
    there, state = rng.random() > 0.15, rng.integers(0, 2)
    names, layout = _screen(rng, pairs, target)
    at = rng.integers(ELEMENTS)
    if there:
        names[at] = (_TYPE_OF[command], *(_INDEX[w] for w in target))
        layout[at, 2] = state if command in ("toggle", "on", "off") else layout[at, 2]
    frames = FRAMES[command]
    frame = str(rng.choice(frames[-HELD_BACK:] if held_out else frames[:-HELD_BACK]))
    words, tags = _sentence(rng, frame, target, {(WORDS[a], WORDS[b]) for _, a, b in names})
    label = np.full(1 + LENGTH, -1, np.int64)
    label[0], label[1 : 1 + len(tags)] = _intent(command, bool(there), bool(state)), tags
    tokens = np.zeros(LENGTH, np.int64)
    tokens[: len(words)] = [_INDEX[w] for w in words]
    return {"tokens": tokens, "names": names, "layout": layout, "label": label}


def _screen(
    rng: np.random.Generator, pairs: list[tuple[str, str]], target: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns names `[8, 3]` and layout `[8, 3]` of a screen without `target`; some places are empty."""
    names, layout = np.zeros((ELEMENTS, 3), np.int64), rng.random((ELEMENTS, 3)).astype(np.float32)
    others = [p for p in pairs if p != target]
    for at in np.flatnonzero(rng.random(ELEMENTS) < 0.7):
        names[at] = (rng.integers(1, len(TYPES)), *(_INDEX[w] for w in others[rng.integers(len(others))]))
    switches = names[:, 0] == TYPES.index("switch")
    layout[switches, 2] = layout[switches, 2] > 0.5
    layout[names[:, 0] == 0] = 0
    return names, layout


def _sentence(
    rng: np.random.Generator, frame: str, target: tuple[str, str], shown: set[tuple[str, str]]
) -> tuple[list[str], list[int]]:
    """Returns words and tags; beside a name that is `shown` a third word may stand, as if it were a part."""
    there = target in shown
    before, after = [], []
    extra, beside = rng.random(), str(rng.choice([w for w in NAMED if w not in target]))
    if there and extra < 0.25 and (target[1], beside) not in shown:
        after = [beside]
    elif there and extra < 0.5 and (beside, target[0]) not in shown:
        before = [beside]
    content = [str(w) for w in rng.choice(CONTENTS, rng.integers(1, 4), replace=False)]
    filled = {"{t}": (TARGET, target), "{c}": (TEXT, content), "{v}": (VALUE, [str(rng.choice(VALUES))])}
    words: list[str] = []
    tags: list[int] = []
    for part in frame.split():
        if part not in filled:
            words, tags = [*words, part], [*tags, 0]
            continue
        kind, inside = filled[part]
        left, right = (before, after) if kind == TARGET else ([], [])
        words += [*left, *inside, *right]
        tags += [0] * len(left) + [1 + 2 * kind] + [2 + 2 * kind] * (len(inside) - 1) + [0] * len(right)
    return words, tags


def _intent(command: str, there: bool, state: bool) -> int:
    if not there:
        return INTENTS.index("not_here")
    if command == "toggle":
        return INTENTS.index("turn_off" if state else "turn_on")
    if command in ("on", "off"):
        return INTENTS.index("nothing_to_do" if state == (command == "on") else f"turn_{command}")
    return INTENTS.index(command)

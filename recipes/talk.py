"""Talks with a converted `caption_dialogue` about pictures: greedy decoding with the session's kept state.

python -m recipes.talk caption_dialogue.edgemm
python -m recipes.talk caption_dialogue.edgemm --data dialogues.npz --show 3
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from recipes import metrics
from recipes.datasets import dialogues
from recipes.datasets.cache import Arrays, cache_root, load_arrays

LONGEST = 16
"""Words of an answer at most."""


class Session(Protocol):
    """What `edgemm.runtime.open_session` returns, as far as it is needed here."""

    def run(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns outputs by name; states go on from call to call."""


class Talk:
    """One dialogue about one picture: the model hears its own answers, as it will on a device."""

    def __init__(self, session: Session, image: np.ndarray) -> None:
        """Begins a dialogue about `image` `[1, 64, 64]` float32; the session's last one is forgotten."""
        self._session, self._image, self._last = session, image[None], dialogues.START

    def ask(self, question: Sequence[int]) -> list[int]:
        """Returns the words of the answer to a question, both as indices into `dialogues.WORDS`."""
        for word in (self._last, *question, dialogues.ANSWER):
            best = self._next(word)
        answer: list[int] = []
        while best != dialogues.END and len(answer) < LONGEST:
            answer.append(best)
            best = self._next(best)
        self._last = dialogues.END
        return answer

    def _next(self, word: int) -> int:
        outputs = self._session.run({"image": self._image, "token": np.array([[word]], np.int64)})
        return int(outputs["logits"].argmax())


def answers(session: Session, split: Arrays) -> list[tuple[list[int], list[int], list[int]]]:
    """Returns question, the model's answer and the right one of every turn of every dialogue."""
    talked = []
    for image, tokens in zip(split["image"], split["tokens"], strict=True):
        talk = Talk(session, image)
        talked += [(question, talk.ask(question), right) for question, right in dialogues.turns(tokens)]
    return talked


def scores(talked: Sequence[tuple[list[int], list[int], list[int]]]) -> dict[str, float]:
    """Returns `exact_match`, the share of answers that are right word by word, and corpus `bleu`, 0 to 1."""
    said, right = [said for _, said, _ in talked], [right for _, _, right in talked]
    exact = float(np.mean([a == b for a, b in zip(said, right, strict=True)]))
    return {"answers": len(talked), "exact_match": exact, "bleu": metrics.bleu(said, right)}


def main() -> None:
    """Prints the scores of a bundle as JSON, after the first dialogues in words."""
    from edgemm.runtime import open_session

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, help="default: dialogues.npz of the recipe")
    parser.add_argument("--dialogues", type=int, default=100, help="how many are held (default: 100)")
    parser.add_argument("--show", type=int, default=0, help="turns to show in words (default: 0)")
    options = parser.parse_args()
    split = load_arrays(options.data or cache_root() / "fixtures" / "caption_dialogue" / "dialogues.npz")
    with open_session(options.bundle) as session:
        talked = answers(session, {name: rows[: options.dialogues] for name, rows in split.items()})
    for question, said, right in talked[: options.show]:
        asked, given, expected = (" ".join(dialogues.WORDS[w] for w in words) for words in (question, said, right))
        print(f"{asked}? {given}" + ("" if said == right else f" (right: {expected})"))
    print(json.dumps(scores(talked)))


if __name__ == "__main__":
    main()

"""A camera and a microphone, each in a thread of its own at its own rate, and one app that takes the results.

    python examples/camera_microphone.py build/demo/av_digits.edgemm build/demo/eval.npz [--seconds 10]

The sensors play recorded samples (`make demo` leaves 1,500 of them, and a bundle): a new digit every half second,
seen 30 times a second with jitter, and spoken once. Every fifth digit the microphone is silent. What was right is
counted apart for sets with the spoken digit and without.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping

import numpy as np

from edgemm.errors import EdgemmError
from edgemm.runtime import open_session
from edgemm.runtime.stream import Stream

DIGIT_SECONDS = 0.5
FRAMES_PER_SECOND = 30


def camera(stream: Stream, images: np.ndarray, start: float, stop: threading.Event) -> None:
    """Pushes a frame 30 times a second, into a queue that keeps the newest if the app does not keep up."""
    frame = np.empty_like(images[0])  # one buffer that is refilled, as cameras do
    for number in range(10**9):
        captured = start + number / FRAMES_PER_SECOND
        if stop.wait(max(0.0, captured + random.uniform(0, 0.005) - time.monotonic())):
            return
        np.copyto(frame, images[int((captured - start) / DIGIT_SECONDS) % len(images)])
        stream.push("image", frame, t=captured)


def microphone(stream: Stream, windows: np.ndarray, start: float, stop: threading.Event) -> None:
    """Pushes a spoken digit every half second, but for every fifth one."""
    for number in range(10**9):
        captured = start + number * DIGIT_SECONDS
        if stop.wait(max(0.0, captured - time.monotonic())):
            return
        if number % 5 != 4:
            stream.push("audio", windows[number % len(windows)], t=captured)


def play(bundle: str, samples: Mapping[str, np.ndarray], seconds: float) -> Counter[str]:
    """Runs the app, and returns how many results there were, and how many were right, with and without sound."""
    score: Counter[str] = Counter()
    stop = threading.Event()
    with (
        open_session(bundle) as session,
        session.stream(
            trigger="image",
            optional={"audio": "zeros"},  # about the mean of these samples: a silent microphone
            max_age={"audio": DIGIT_SECONDS},
        ) as stream,
    ):
        start = time.monotonic() + 0.1
        sensors = [
            threading.Thread(target=camera, args=(stream, samples["image"], start, stop)),
            threading.Thread(target=microphone, args=(stream, samples["audio"], start, stop)),
        ]
        for sensor in sensors:
            sensor.start()
        latencies: list[float] = []
        runs: Counter[str] = Counter()
        for result in stream:
            heard = "seen" if result.filled else "seen and heard"
            label = samples["label"][int((result.time - start) / DIGIT_SECONDS) % len(samples["label"])]
            score[heard] += 1
            score[f"{heard}, right"] += int(result.outputs["logits"].argmax()) == label
            latencies.append(result.latency or 0.0)
            runs.update(result.encoded)
            if result.time > start + seconds:
                break
        stop.set()
        for sensor in sensors:
            sensor.join()
        print(f"latency from capture to output: p50 {np.median(latencies) * 1e3:.1f} ms, of {len(latencies)}")
        print("runs: " + ", ".join(f"{engine} {number}" for engine, number in runs.items()))
        for modality, counters in stream.counters.modalities.items():
            print(f"{modality}: {counters}")
    return score


def main() -> None:
    """Plays the samples and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("samples", help=".npz with image, audio and label")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    try:
        with np.load(arguments.samples) as file:
            samples = {name: file[name] for name in ("image", "audio", "label")}
        score = play(arguments.bundle, samples, arguments.seconds)
    except EdgemmError as error:
        parser.error(f"{error}\n{error.hint}")
    except (OSError, KeyError) as error:
        parser.error(f"{arguments.samples}: {error.args[0] if isinstance(error, KeyError) else error}")
    for heard in ("seen and heard", "seen"):
        print(f"{heard}: {score[f'{heard}, right']} of {score[heard]} right")


if __name__ == "__main__":
    main()

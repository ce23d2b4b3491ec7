"""The same in asyncio: two sensors as tasks, results ten times a second from the newest of each.

    python examples/asyncio_sensors.py build/demo/av_digits.edgemm build/demo/eval.npz [--seconds 10]

The camera stops halfway. From then on its last frame is used for a second, and is marked as stale after that.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping

import numpy as np

from edgemm.errors import EdgemmError
from edgemm.runtime import open_session
from edgemm.runtime.stream import Result, Stream


async def sensor(stream: Stream, modality: str, samples: np.ndarray, rate: float, seconds: float) -> None:
    """Pushes samples at a rate, for so many seconds."""
    for number in range(int(seconds * rate)):
        stream.push(modality, samples[number % len(samples)], t=time.monotonic())
        await asyncio.sleep(1 / rate)


async def play(bundle: str, samples: Mapping[str, np.ndarray], seconds: float) -> list[Result]:
    """Runs the app and returns its results."""
    results = []
    with open_session(bundle) as session:
        async with session.stream(
            trigger=10.0, optional={"image": "last", "audio": "zeros"}, max_age=1.0
        ) as stream:

            async def sensors() -> None:
                await asyncio.gather(
                    sensor(stream, "image", samples["image"], rate=20, seconds=seconds / 2),
                    sensor(stream, "audio", samples["audio"], rate=2, seconds=seconds),
                )
                stream.end()

            task = asyncio.create_task(sensors())
            async for result in stream:
                ages = {m: "none" if age is None else f"{age:.2f} s" for m, age in result.ages.items()}
                print(
                    f"{result.outputs['logits'].argmax()}  age {ages}, ran {result.encoded}, stale {result.stale}"
                )
                results.append(result)
            await task
    return results


def main() -> None:
    """Plays the samples and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("samples", help=".npz with image and audio")
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    try:
        with np.load(arguments.samples) as file:
            samples = {name: file[name] for name in ("image", "audio")}
        results = asyncio.run(play(arguments.bundle, samples, arguments.seconds))
    except EdgemmError as error:
        parser.error(f"{error}\n{error.hint}")
    except (OSError, KeyError) as error:
        parser.error(f"{arguments.samples}: {error.args[0] if isinstance(error, KeyError) else error}")
    stale = sum("image" in r.stale for r in results)
    print(f"{len(results)} results, {stale} with a stale frame")


if __name__ == "__main__":
    main()

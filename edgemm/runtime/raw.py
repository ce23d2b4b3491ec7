"""Raw arrays in the place of inputs: what a session takes whose bundle has steps that run on the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgemm.bundle import Manifest
from edgemm.bundle.codec import DAMAGED
from edgemm.errors import BundleError, DataError, MissingExtraError, RecipeError
from edgemm.preprocess.front import Front, InputSteps, renamed
from edgemm.preprocess.registry import files_of
from edgemm.runtime.feeds import FeedCheck
from edgemm.tensors import Feed, IOSpec


class RawFeeds:
    """Checks raw arrays and makes a model's inputs of them.

    Attributes:
        io: The model's signature with raw arrays in it.
        check: Checks feeds of these.
    """

    def __init__(self, front: Front) -> None:
        """Stands in front of a model."""
        self.io = front.io
        self.check = FeedCheck(front.io, {})
        self.make = front

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        """Returns the model's inputs.

        Raises:
            DataError: A raw array is missing or wrong.
        """
        self.check.check(feed)
        return self.make(feed)


def load_raw(folder: Path, manifest: Manifest) -> RawFeeds | None:
    """Returns what makes the inputs of a bundle's model of raw arrays, or None where it takes them as they are.

    Raises:
        BundleError: The bundle has steps that this edgemm does not know, that do not fit its model, or that read
            a file which is not a part of it.
    """
    if not manifest.preprocess:
        return None
    ways = [InputSteps.from_json(data) for data in manifest.preprocess]
    named = {file.as_posix() for way in ways for step in way.steps for file in files_of(step).values()}
    if strange := named - manifest.files.keys():
        raise BundleError(f"manifest: preprocess reads '{min(strange)}', no file of the bundle.", hint=DAMAGED)
    try:
        return RawFeeds(Front(manifest.io, [InputSteps.from_json(data, folder) for data in manifest.preprocess]))
    except (DataError, RecipeError) as error:
        raise BundleError(f"manifest: preprocess does not fit the model: {error}", hint=DAMAGED) from error


def fed_io(folder: Path, manifest: Manifest) -> IOSpec:
    """Returns the `io` of sessions on a bundle: the model's, with raw arrays where steps run on the host.

    Without the packages that steps need, sizes that these steps decide stay names.

    Raises:
        BundleError: As of `load_raw`.
    """
    try:
        raw = load_raw(folder, manifest)
    except MissingExtraError:
        return renamed(manifest.io, [InputSteps.from_json(data) for data in manifest.preprocess], sizes={})
    return manifest.io if raw is None else raw.io

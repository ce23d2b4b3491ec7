"""A `tensorrt` to import: a fake of one version as a file, for processes that build and those that ask for it."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

SCRIPT = """
import os, signal, sys, time
import trt_fakes

NAME = "Builder.build_serialized_network"

def build(module, self, network, config):
{body}
    return trt_fakes.BEHAVIOUR[NAME](module, self, network, config)

machine = trt_fakes.Machine(steps={steps}, dla_cores={dla_cores}, replaced={{NAME: build}})
sys.modules["tensorrt"] = trt_fakes.fake_module("tensorrt-{version}", machine)
"""


def write_fake(
    folder: Path, body: str = "pass", *, version: str = "10.3.0", steps: int = 3, dla_cores: int = 0
) -> Path:
    """Writes `tensorrt.py` into `folder`, whose every build begins with `body`; returns the file."""
    file = folder / "tensorrt.py"
    text = SCRIPT.format(body=indent(body, "    "), version=version, steps=steps, dla_cores=dla_cores)
    file.write_text(text)
    return file

"""The bundle: a directory with a manifest, one file per engine, and a digest for each. Device side.

    x.edgemm/
      manifest.json                  schema version, signature, stages, variants, sha256 of every other file
      recipe.json                    what was asked for
      engines/<variant>/<stage>.onnx one engine per stage (or one for the whole graph)
      plans/<variant>.json           every quantization decision with its rule and reason
      cache/                         what a device makes for itself; not verified, never trusted

`manifest` says what a bundle holds, `codec` turns that into JSON and back, `store` writes, reads and verifies
the directory, `additions` adds engines that were built on the device.
"""

from __future__ import annotations

from edgemm.bundle.additions import add_files
from edgemm.bundle.manifest import (
    CACHE,
    FORMAT,
    MANIFEST,
    SCHEMA,
    EngineEntry,
    Manifest,
    StageEntry,
    Variant,
)
from edgemm.bundle.store import check_output, read_manifest, verify, write_bundle

__all__ = [
    "CACHE",
    "FORMAT",
    "MANIFEST",
    "SCHEMA",
    "EngineEntry",
    "Manifest",
    "StageEntry",
    "Variant",
    "add_files",
    "check_output",
    "read_manifest",
    "verify",
    "write_bundle",
]

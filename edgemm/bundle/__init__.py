"""The bundle: a directory with a manifest, one file per engine, and a digest for each. Device side.

    x.edgemm/
      manifest.json                  schema version, signature, stages, variants, sha256 of every other file
      recipe.json                    what was asked for
      engines/<variant>/<stage>.onnx one engine per stage (or one for the whole graph)
      engines/<variant>/<stage>.<key>.engine, .engine.json   built from it on a device; can be built again
      plans/<variant>.json           every quantization decision with its rule and reason
      missing/<variant>/<modality>-*.npy   what stands for a modality without a sample
      heads/<name>.onnx              other heads, for sets without some modalities
      cache/                         what a device makes for itself; not verified, never trusted

`manifest` says what a bundle holds, `codec` turns that into JSON and back, `store` writes, reads and verifies
the directory, `engines` names the engines that were built on the device, `additions` adds and drops them.
"""

from __future__ import annotations

from edgemm.bundle.additions import add_files, drop_engines
from edgemm.bundle.damage import damaged_engines, engine_damage
from edgemm.bundle.manifest import (
    CACHE,
    FORMAT,
    MANIFEST,
    SCHEMA,
    EngineEntry,
    HeadEntry,
    Manifest,
    StageEntry,
    StandIn,
    Variant,
)
from edgemm.bundle.schedule import Schedule
from edgemm.bundle.store import check_output, read_manifest, verify, write_bundle

__all__ = [
    "CACHE",
    "FORMAT",
    "MANIFEST",
    "SCHEMA",
    "EngineEntry",
    "HeadEntry",
    "Manifest",
    "Schedule",
    "StageEntry",
    "StandIn",
    "Variant",
    "add_files",
    "check_output",
    "damaged_engines",
    "drop_engines",
    "engine_damage",
    "read_manifest",
    "verify",
    "write_bundle",
]

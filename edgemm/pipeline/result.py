"""What a conversion came to: for programs as one JSON object, for people as a table and a few lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemm.bundle import Manifest, Variant


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """The bundle that was written, and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def shipped(self) -> Variant:
        """The variant that the bundle runs."""
        return self.manifest.shipped[0]

    @property
    def modalities(self) -> dict[str, Any] | None:
        """The modality report, None where none was asked for."""
        file = "report/modalities.json"
        return json.loads((self.path / file).read_bytes()) if file in self.manifest.files else None

    def to_json(self) -> dict[str, Any]:
        """Returns what `edgemm convert --json` prints."""
        data = self.manifest.to_json()
        io, info, measured = data["io"], data["info"], data["measured"]
        latency, built = measured.get("latency", {}), measured.get("engines", {})
        lint = info.get("lint", {})
        return {
            "bundle": str(self.path),
            "inputs": [{"modality": None} | i for i in io["inputs"]],  # a state has none
            "outputs": io["outputs"],
            "states": io["states"],
            "stages": data["stages"],
            "joins": data["joins"],
            "dynamic": info["dynamic"],
            "parity": info["parity"],
            "variants": [
                v | {"latency": latency.get(n), "built": built.get(n), "lint": lint.get(n)}
                for v in data["variants"]
                for n in (v["name"],)
            ],
            "float_size_bytes": info["float_size_bytes"],
            "preprocess_bytes": info.get("preprocess_bytes", 0),
            "data": info["data"],
            "notes": info["notes"],
            "seconds": measured["seconds"],
            **({"modalities": self.modalities} if self.modalities is not None else {}),
        }

    def stage_rows(self) -> list[tuple[str, ...]]:
        """Returns a row per stage: name, modalities, nodes, parameters, precision, float ms, edge ms."""
        latency = self.manifest.measured.get("latency", {}).get(self.shipped.name) or {}
        engines = latency.get("engines", {})
        by_stage = {s: e for e in self.shipped.engines if len(e.stages) == 1 for s in e.stages}
        plan = self.manifest.info["precision"]
        rows: list[tuple[str, ...]] = []
        for stage in self.manifest.stages:
            engine = by_stage.get(stage.name)
            times = engines.get(engine.name, {}) if engine else {}
            rows.append(
                (
                    stage.name,
                    ", ".join(stage.modalities),
                    f"{stage.nodes}",
                    f"{stage.parameters:,}",
                    plan.get(stage.name, "float"),
                    _ms(times.get("float_ms")),
                    _ms(times.get("variant_ms")),
                )
            )
        return rows

    def other_targets(self) -> tuple[Variant, ...]:
        """Returns the first variant of every target but that of `shipped`."""
        first = {v.target: v for v in reversed(self.manifest.shipped)}
        return tuple(v for v in self.manifest.shipped if v is first[v.target] and v.target != self.shipped.target)

    def precision_of(self, variant: Variant, stage: str) -> str:
        """Returns what a stage is in a variant: `"12 int8, 3 fp16"`; `"in one engine"` with other stages."""
        alone = next((e for e in variant.engines if e.stages == (stage,)), None)
        if alone is None:
            return "in one engine"
        kinds = sorted((p for p in alone.decisions if p != "fp32"), reverse=True)
        floats = alone.decisions.get("fp32", 0)
        counts = [f"{alone.decisions[p]} {p}" for p in kinds] + ([f"{floats} float"] if floats else [])
        return ", ".join(counts) if kinds else "float"

    def summary_lines(self) -> list[str]:
        """Returns accuracy, latency and size of what ships for every target, and why something else does not."""
        lines = self._lines(self.shipped)
        for variant in self.other_targets():
            lines += ["", f"{variant.name}:", *self._lines(variant)]
        refused = [f"note: {v.name} refused: {v.refused}" for v in self.manifest.variants if v.refused]
        return lines + refused

    def _lines(self, shipped: Variant) -> list[str]:
        lines = []
        accuracy = shipped.accuracy
        twin = next(v for v in self.manifest.shipped if v.accuracy == accuracy)
        if accuracy is not None and twin is not shipped and accuracy.get("simulated"):
            lines.append(f"accuracy   that of {twin.name}: the same plan")
        elif accuracy is not None:
            share = accuracy["percent"]
            before, after = _value(accuracy["float"], share), _value(accuracy["variant"], share)
            drop, budget = _points(accuracy["drop"], share), _points(accuracy["budget"], share)
            name = accuracy["metric"]
            lines.append(
                f"{name if len(name) <= 10 else 'metric':<10} {before} → {after}   "
                f"(drop {drop}, budget {budget}; {accuracy['samples']:,} {accuracy['split']} samples"
                f"{', simulated on this CPU' if accuracy.get('simulated') else ''})"
            )
            lines += [_blank_line(name, blank) for name, blank in accuracy.get("blank", {}).items()]
        else:
            lines.append("accuracy   not measured: no samples (--calib, --eval)")
        latency = self.manifest.measured.get("latency", {}).get(shipped.name)
        if latency is not None:
            lines.append(
                f"latency    {latency['float_ms']:.3f} → {latency['variant_ms']:.3f} ms   "
                f"({latency['ratio']:.2f} × float ONNX Runtime, p50 of {latency['runs']:,} interleaved runs)"
            )
        elif any("module" in e.options for e in shipped.engines):
            lines.append(f"latency    unmeasured: it takes a device with {shipped.target}")
        sizes = _sizes(self.manifest.info["float_size_bytes"], shipped.size_bytes)
        constants = self.manifest.info.get("preprocess_bytes", 0)
        baked = f"; {_bytes(constants)} of both are constants of preprocessing" if constants else ""
        lines.append(f"size       {sizes}   ({shipped.name}, {shipped.layout}{baked})")
        beside = self.manifest.measured.get("layouts", {}).get(shipped.name)
        lines += [_beside_line(beside)] if beside is not None else []
        built = self.manifest.measured.get("engines", {}).get(shipped.name)
        return lines + ([_engines_line(built)] if built else [])


def _blank_line(modality: str, blank: Mapping[str, Any]) -> str:
    """Returns the accuracy of what ships while a modality is silent."""
    share = blank["percent"]
    after = "no number" if blank["variant"] is None else _value(blank["variant"], share)
    drop = "no number" if blank["drop"] is None else _points(blank["drop"], share)
    finite = blank["cosine"] is not None and blank["max_abs"] is not None
    nan = "" if finite else "; outputs are NaN or inf"
    return f"{'':<10} {_value(blank['float'], share)} → {after}   (drop {drop} with {modality} blank{nan})"


def _beside_line(beside: Mapping[str, Any]) -> str:
    """Returns what runs calls in which something is unchanged."""
    apart = (beside["parity"] or {}).get("max_abs", 0.0)
    return f"{'':<10} and {beside['variant']} for what is unchanged   (outputs up to {apart:.1e} apart)"


def _engines_line(built: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what is known of the built engines of a variant."""
    every = list(built.values())
    size, seconds = (sum(e[key] for e in every) for key in ("size_bytes", "seconds"))
    sms = ", ".join(map(str, every[0]["compute_capabilities"]))
    what = f"{len(every)} for SM {sms} by {every[0]['by']}" if sms else f"{len(every)} by {every[0]['by']}"
    return f"engines    {size / 1e6:,.2f} MB   ({what}, built in {seconds:.1f} s)"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size >= 100_000 else f"{size / 1e3:,.2f} kB"


def _sizes(before: int, after: int) -> str:
    unit, scale = ("MB", 1e6) if before >= 100_000 else ("kB", 1e3)
    return f"{before / scale:,.2f} → {after / scale:,.2f} {unit}"


def _value(value: float, share: bool) -> str:
    return f"{value:.2%}" if share else f"{value:.4g}"


def _points(value: float, share: bool) -> str:
    return f"{100 * value:.2f} points" if share else f"{value:.4g}"

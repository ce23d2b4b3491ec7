"""A latency report that has everything a page can show. The numbers are made up."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemm.profiling.times import times_json

EVIL = "</script><script>document.title='taken over'</script>&\"'<b>"
"""A name that must stay a name."""


def times(median_ms: float, runs: int = 2000, seed: int = 0, *, histogram: bool = True) -> dict[str, Any]:
    """Returns times as a machine gives them: a bulk, and a tail of slow runs."""
    random = np.random.default_rng(seed)
    seconds = median_ms * 1e-3 * (1 + np.abs(random.normal(0, 0.03, runs)) + random.pareto(12, runs) * 0.4)
    return times_json(seconds, histogram=histogram)


def full_report(name: str = "digits") -> dict[str, Any]:
    """Returns the report; `name` is that of the file, of a stage and of a layer."""
    whole = times(0.42)
    stages = [
        {"name": "image", "stages": ["image"], "share": 0.28, **times(0.11, seed=1, histogram=False)},
        {"name": name, "stages": [name, "audio norm"], "share": 0.58, **times(0.24, seed=2, histogram=False)},
        {"name": "fusion", "stages": ["fusion"], "share": 0.08, **times(0.03, seed=3, histogram=False)},
    ]
    layers = [
        {
            "name": f"{stage}/{name}/node_{op}_{at}",
            "op": op,
            "stage": stage,
            "module": None if at % 3 == 0 else f"{stage}.layers.{at}",
            "p50_ms": 0.03 / (at + 1),
            "share": 0.05 / (at + 1),
            "flops": None if op == "Relu" else 1.2e6 / (at + 1),
            "bytes": 3.1e4 * (at + 1),
            "bound": None if op == "Relu" else "memory" if at % 2 else "compute",
        }
        for stage in ("image", "fusion")
        for at, op in enumerate(
            ("Conv", "Relu", "MatMul", "Gemm", "Add", "Softmax", "Concat", "LayerNormalization")
        )
    ]
    return {
        "schema": 1,
        "kind": "edgemm-latency-report",
        "file": f"build/{name.replace('/', '_')}.edgemm",
        "variant": "cpu-int8",
        "target": "cpu",
        "layout": "staged",
        "backend": "onnxruntime",
        "backend_version": "1.31.1",
        "instead_of": None,
        "threads": 1,
        "machine": {"cpu": "Intel Xeon", "cores": 2, "governor": None, "features": ["avx2", "amx_int8"]},
        "machine_summary": "Intel Xeon (AMX-INT8) · 2 cores · governor not shown",
        "created": "2026-11-22T10:00:00Z",
        "edgemm": "0.1.0",
        "inputs": "eval.npz",
        "samples": 1500,
        "of_samples": 1500,
        "batch": 1,
        "dims": None,
        "states": {},
        "reset_every": None,
        "warmup": 40,
        "steady": {"rule": "two windows of 10 runs differ by at most 5%", "runs": 40, "reached": True},
        "load_ms": 12.4,
        "first_call_ms": 1.31,
        "runs": 2000,
        "end_to_end": whole,
        "stages": stages,
        "sum_of_stages_p50_ms": 0.38,
        "overhead_p50_ms": 0.012,
        "samples_per_second": 2381.0,
        "peak_memory_mb": 118.2,
        "baseline_memory_mb": 61.0,
        "modes": [
            {"mode": "back-to-back", "label": "back to back", "times": whole},
            {
                "mode": "paced",
                "label": "paced",
                "times": times(0.61, 600, 4),
                "rate_hz": {"image": 30.0, "audio": 10.0},
                "trigger": "image",
                "deadline_ms": 33.3,
                "deadlines": 600,
                "missed": 3,
                "jitter_ms": 0.21,
                "kept_up": True,
            },
            {
                "mode": "cached",
                "label": "image alone changes",
                "times": times(0.17, 700, 5),
                "changed": ["image"],
                "unchanged": ["audio"],
                "reused": [name],
                "comparable": False,
            },
        ],
        "modalities": [
            _share("image", ["image"], 0.3, 0.11, on_path=False),
            _share("audio", ["audio"], 0.62, 0.24, on_path=True),
            _share("image + audio", ["image", "audio"], 0.08, 0.03, on_path=True),
        ],
        "critical_path": [name, "fusion"],
        "critical_path_ms": 0.27,
        "timeline": [
            {"engine": "image", "start_ms": 0.006, "duration_ms": 0.11},
            {"engine": name, "start_ms": 0.121, "duration_ms": 0.24},
            {"engine": "fusion", "start_ms": 0.366, "duration_ms": 0.03},
        ],
        "layers": layers,
        "resources": {
            "memory": {
                "rss_before_mb": 61.0,
                "rss_steady_mb": 112.0,
                "rss_peak_mb": 118.2,
                "device": {"unavailable": "nothing runs on a GPU"},
            },
            "energy": {"unavailable": "/sys/class/powercap/intel-rapl:0/energy_uj: Permission denied"},
            "temperature": {"zones": [{"name": "cpu", "before_c": 41.0, "after_c": 52.0}], "hottest_c": 52.0},
        },
        "warnings": ["restless machine: the runs vary by 31% of their mean; repeat with nothing else running"],
    }


def _share(name: str, modalities: list[str], share: float, p50: float, *, on_path: bool) -> dict[str, Any]:
    engines = ["fusion"] if len(modalities) > 1 else modalities
    return {
        "name": name,
        "modalities": modalities,
        "engines": engines,
        "share": share,
        "p50_ms": p50,
        "on_critical_path": on_path,
    }


def search_report() -> dict[str, Any]:
    """Returns `report/search.json` with a plan that ships, one over the budget and one without a latency."""
    point = {"blank": {"audio": 0.002}, "setting": {}}
    return {
        "budget": 0.01,
        "unit": "ms",
        "finished": True,
        "steps": [],
        "groups": [],
        "stages": {},
        "points": [
            {**point, "expected": 0.42, "drop": 0.0, "fits": True, "chosen": False},
            {**point, "expected": 0.31, "drop": 0.004, "fits": True, "chosen": True},
            {**point, "expected": 0.25, "drop": 0.021, "fits": False, "chosen": False},
            {**point, "expected": None, "drop": 0.0, "fits": True, "chosen": False},
        ],
    }


def modalities_report(name: str = "audio") -> dict[str, Any]:
    """Returns `report/modalities.json` of two modalities, one of them called `name`."""
    rows = [
        {"missing": [], "fill": None, "scores": {"float": 0.9787, "cpu-int8": 0.9781}},
        {"missing": ["image"], "fill": "zeros", "scores": {"float": 0.61, "cpu-int8": 0.607}},
        {"missing": [name], "fill": "zeros", "scores": {"float": 0.93, "cpu-int8": 0.929}},
        {"missing": [name], "fill": "mean", "scores": {"float": None, "cpu-int8": 0.951}},
    ]
    return {
        "schema": 1,
        "metric": "accuracy",
        "percent": True,
        "samples": 1500,
        "sessions": ["float", "cpu-int8"],
        "rows": rows,
    }

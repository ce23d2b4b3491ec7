"""Peak memory of a conversion, and of calibration alone, at several numbers of samples.

    python benchmarks/memory.py [--samples 100 1000 10000] [--what convert collect] [--steps] [--json]

The model is an image+text net of 36 M parameters (two transformer encoders and a fusion head, about 140 MB) with
seeded random weights. Every conversion runs in a process of its own; the peak is what the kernel reports for it
(`VmHWM`). The process that exports the model counts with its own peak on top of what the first one holds
meanwhile: the larger of both is the peak. `--steps` adds the resident size after each step and the peak up to it.
The limit is 3 × the size of the model + 500 MB, whatever the number of samples.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

MB = 10**6
WORDS, LENGTH, SIDE, PATCH, WIDTH, LAYERS = 30_000, 16, 64, 16, 384, 6
CALIBRATION_ONLY = "percentile"


def limit(model_bytes: int) -> int:
    """Returns the peak that a conversion of a model of this size may have, in bytes."""
    return 3 * model_bytes + 500 * MB


def build_model(path: Path) -> int:
    """Writes the net as an exported program and returns its number of parameters."""
    import torch
    from torch import nn

    class ImageText(nn.Module):
        """Images [B,3,64,64] in 16 patches, 16 token ids [B,16]; 10 classes."""

        def __init__(self) -> None:
            super().__init__()

            def encoder() -> nn.Module:
                layer = nn.TransformerEncoderLayer(
                    WIDTH, 6, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
                )
                return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

            tokens = (SIDE // PATCH) ** 2
            self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
            self.place = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
            self.image = encoder()
            self.words = nn.Embedding(WORDS, WIDTH)
            self.order = nn.Parameter(0.02 * torch.randn(1, LENGTH, WIDTH))
            self.text = encoder()
            self.head = nn.Sequential(nn.Linear(2 * WIDTH, 1536), nn.GELU(), nn.Linear(1536, 10))

        def forward(self, image: Any, ids: Any) -> Any:
            seen = self.image(self.patches(image).flatten(2).transpose(1, 2) + self.place).mean(1)
            read = self.text(self.words(ids) + self.order).mean(1)
            return self.head(torch.cat([seen, read], 1))

    torch.manual_seed(0)
    model = ImageText().eval()
    for parameter in model.parameters():  # the layers of an nn.TransformerEncoder begin as copies of one
        if parameter.dim() == 2:
            nn.init.trunc_normal_(parameter, std=parameter.shape[1] ** -0.5)
    example = (torch.zeros(2, 3, SIDE, SIDE), torch.zeros(2, LENGTH, dtype=torch.int64))
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(model, example, dynamic_shapes=(batch, batch)), path)
    return sum(p.numel() for p in model.parameters())


def write_samples(path: Path, count: int) -> None:
    """Writes `count` samples, a few hundred at a time."""
    random = np.random.default_rng(count)
    shapes = {"image": (count, 3, SIDE, SIDE), "ids": (count, LENGTH)}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        arrays = {}
        for name, shape in shapes.items():
            file = Path(folder) / f"{name}.npy"
            dtype = np.float32 if name == "image" else np.int64
            arrays[name] = np.lib.format.open_memmap(file, "w+", dtype, shape)
        for start in range(0, count, 500):
            part = slice(start, min(start + 500, count))
            size = part.stop - start
            arrays["image"][part] = random.standard_normal((size, 3, SIDE, SIDE)) * random.uniform(
                0.3, 1.5, (size, 1, 1, 1)
            )
            arrays["ids"][part] = random.integers(0, WORDS, (size, LENGTH))
        np.savez(path, **arrays)


def status(field: str) -> int:
    """Returns a field of /proc/self/status in bytes: VmRSS (resident now) or VmHWM (peak so far)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


class Steps:
    """A `Progress` that notes the memory at the end of every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._name = ""
        self._start = time.monotonic()

    def note(self, name: str) -> None:
        """Notes the time, the memory now, and the peak so far."""
        at = round(time.monotonic() - self._start, 1)
        self.rows.append({"step": name, "at": at, "resident": status("VmRSS"), "peak": status("VmHWM")})

    def step(self, step: str, text: str) -> None:
        """Notes the end of a step."""
        self.note(step if step != "search" else f"search: {text[:40]}")

    def status(self, step: str, text: str) -> None:
        """Notes the beginning of a part."""
        self.note(f"{step}: {text[:40]} (begins)")

    def bar(self, step: str, done: int, total: int) -> None:
        """Notes the first and the last call of a bar."""
        if self._name != step or done == total:
            self.note(f"{step} {done}/{total}")
        self._name = step


def child(what: str, model: Path, data: Path, out: Path) -> list[dict[str, Any]]:
    """Converts, or calibrates alone, in this process."""
    steps = Steps()
    if what == "convert":
        from edgemm.pipeline import convert

        convert({"model": {"path": model}, "data": {"calib": str(data)}}, out, progress=steps)
        steps.note("end")
        return steps.rows
    from edgemm.data import open_samples
    from edgemm.export.model import ModelSource, load_model
    from edgemm.export.onnx_file import adopt_onnx
    from edgemm.export.request import ExportRequest
    from edgemm.partition import partition
    from edgemm.quant.collect import collect

    samples = open_samples(str(data))
    exported = adopt_onnx(load_model(ModelSource(model)), ExportRequest(), {0: samples[0]}, lambda text: None)
    stages = partition(exported.graph)
    steps.note("opened")
    collect(stages, exported.graph.io, samples, CALIBRATION_ONLY)
    steps.note("calibrated")
    return steps.rows


def measure(what: str, model: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Runs a child and returns the peak in bytes (that of the exporter alone, too), seconds and steps."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        result = Path(work) / "steps.json"
        places = [str(model), str(data), str(Path(work) / "out.edgemm"), str(result)]
        command = [sys.executable, __file__, "--child", what, *places]
        start = time.monotonic()
        code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        seconds = round(time.monotonic() - start, 1)
        if code:
            raise SystemExit(f"{' '.join(command)} failed with status {code}")
        found = json.loads(result.read_text())
        steps, exporter = found["steps"], found["exporter"]
        beside = max((s["resident"] for s in steps if exporter and s["step"].startswith("export")), default=0)
        peak = max(steps[-1]["peak"], beside + exporter)
        return {"peak": peak, "exporter": exporter, "seconds": seconds, "steps": steps}


def export_onnx(model: Path, target: Path, data: Path) -> None:
    """Writes the graph that `convert` makes of the model, for calibration alone."""
    import onnx_ir as ir

    from edgemm.data import open_samples
    from edgemm.export.model import ModelSource, load_model
    from edgemm.export.request import ExportRequest
    from edgemm.export.torch_onnx import export_model
    from edgemm.rewrite.pipeline import rewrite

    exported = export_model(
        load_model(ModelSource(model)), ExportRequest(), open_samples(str(data)), lambda text: None
    )
    ir.save(rewrite(exported.graph)[0].model, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--what", nargs="+", choices=["convert", "collect"], default=["convert", "collect"])
    parser.add_argument("--folder", type=Path, help="Where the model and the data are made and kept.")
    parser.add_argument("--steps", action="store_true", help="Memory after every step.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, model, data, out, result = options.child
        steps = child(what, Path(model), Path(data), Path(out))
        exporter = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 if what == "convert" else 0
        Path(result).write_text(json.dumps({"steps": steps, "exporter": exporter}))
        return
    with tempfile.TemporaryDirectory(prefix="edgemm-memory-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report(options, folder)


def report(options: argparse.Namespace, folder: Path) -> None:
    """Makes what is missing in `folder`, measures, and prints."""
    model, graph = folder / "model.pt2", folder / "model.onnx"
    if not model.exists():
        build_model(model)
    rows = []
    for count in options.samples:
        data = folder / f"samples-{count}.npz"
        if not data.exists():
            write_samples(data, count)
        if "collect" in options.what and not graph.exists():
            export_onnx(model, graph, data)
        for what in options.what:
            found = measure(what, model if what == "convert" else graph, data, folder)
            rows.append({"what": what, "samples": count, **found})
            print(f"{what} {count}: {found['peak'] / MB:,.0f} MB", file=sys.stderr)
    size = model.stat().st_size
    if options.json:
        print(json.dumps({"model_bytes": size, "limit": limit(size), "rows": rows}, indent=1))
        return
    print(f"model {size / MB:,.0f} MB, limit {limit(size) / MB:,.0f} MB\n")
    print(f"{'what':<10}{'samples':>9}{'peak MB':>10}{'seconds':>10}")
    for row in rows:
        print(f"{row['what']:<10}{row['samples']:>9,}{row['peak'] / MB:>10,.0f}{row['seconds']:>10.1f}")
        for step in row["steps"] if options.steps else ():
            memory = f"{step['resident'] / MB:>8,.0f} resident {step['peak'] / MB:>8,.0f} peak"
            print(f"    {step['at']:>6.1f} s {memory}  {step['step']}")


if __name__ == "__main__":
    main()

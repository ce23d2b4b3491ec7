"""onnxruntime.quantization, static: pre-processed, Q/DQ, uint8 activations and int8 weights per channel.

The options are those that the documentation gives for x86 processors: reduce_range where VNNI is missing.
The method is MinMax, Entropy or Percentile.
"""

# ruff: noqa: D101, D102

import sys
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

model, calib, out, method = sys.argv[1:]


class Reader(CalibrationDataReader):
    def __init__(self):
        data = np.load(calib)
        arrays = {name: data[name] for name in data.files}
        count = len(next(iter(arrays.values())))
        self.feeds = ({name: a[i] for name, a in arrays.items()} for i in range(count))

    def get_next(self):
        return next(self.feeds, None)


prepared = f"{out}/prepared.onnx"
try:
    quant_pre_process(model, prepared)
except Exception as error:
    print(f"note: without symbolic shape inference, which fails ({error})")
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
quantize_static(
    prepared,
    f"{out}/model.onnx",
    Reader(),
    activation_type=QuantType.QUInt8,
    weight_type=QuantType.QInt8,
    per_channel=True,
    reduce_range="vnni" not in Path("/proc/cpuinfo").read_text(),
    calibrate_method=CalibrationMethod[method],
)

"""nvidia-modelopt on ONNX: int8 Q/DQ calibrated on the CPU; what is not quantized stays float32.

Weights are stored as int8.
"""

# ruff: noqa: D101, D102

import sys

import numpy as np
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader

model, calib, out = sys.argv[1:]


class Reader(CalibrationDataReader):
    def __init__(self):
        data = np.load(calib)
        self.arrays = {name: data[name] for name in data.files}
        self.rewind()

    def rewind(self):
        count = len(next(iter(self.arrays.values())))
        self.feeds = ({name: a[i] for name, a in self.arrays.items()} for i in range(count))

    def get_next(self):
        return next(self.feeds, None)

    def get_first(self):
        return {name: a[0] for name, a in self.arrays.items()}


quantize(
    model,
    quantize_mode="int8",
    calibration_data_reader=Reader(),
    calibration_method="entropy",
    calibration_eps=["cpu"],
    high_precision_dtype="fp32",
    dq_only=True,
    output_path=f"{out}/model.onnx",
)

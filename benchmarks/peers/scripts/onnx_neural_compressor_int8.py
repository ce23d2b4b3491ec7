"""onnx-neural-compressor: static int8, weights per channel, its own operator lists and format for the CPU."""

# ruff: noqa: D101, D102

import sys

import numpy as np
from onnx_neural_compressor.data_reader import CalibrationDataReader
from onnx_neural_compressor.quantization import config, quantize

model, calib, out = sys.argv[1:]


class Reader(CalibrationDataReader):
    def __init__(self):
        data = np.load(calib)
        self.arrays = {name: data[name] for name in data.files}
        self.count = len(next(iter(self.arrays.values())))
        self.rewind()

    def rewind(self):
        self.feeds = ({name: a[i] for name, a in self.arrays.items()} for i in range(self.count))

    def get_next(self):
        return next(self.feeds, None)


reader = Reader()
settings = config.StaticQuantConfig(reader, per_channel=True, calibration_sampling_size=reader.count)
quantize(model, f"{out}/model.onnx", settings)

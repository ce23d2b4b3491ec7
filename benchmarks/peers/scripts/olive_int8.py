"""Olive: graph optimizations, then static quantization with Q/DQ, uint8 activations, int8 weights per channel."""

# ruff: noqa: D101

import sys

import numpy as np
from olive.data.registry import Registry
from olive.workflows import run

model, calib, out = sys.argv[1:]


class Samples:
    def __init__(self):
        data = np.load(calib)
        self.arrays = {name: data[name] for name in data.files}

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index):
        return {name: a[index] for name, a in self.arrays.items()}, 0


@Registry.register_dataset()
def calibration_samples(**kwargs):
    return Samples()


@Registry.register_dataloader()
def one_by_one(dataset, **kwargs):
    return [dataset[i] for i in range(len(dataset))]


calibration = {
    "name": "calibration",
    "load_dataset_config": {"type": "calibration_samples"},
    "pre_process_data_config": {"type": "skip_pre_process"},
    "dataloader_config": {"type": "one_by_one"},
}
quantize = {
    "type": "OnnxStaticQuantization",
    "data_config": "calibration",
    "precision": "int8",
    "activation_type": "uint8",
    "per_channel": True,
}
run(
    {
        "input_model": {"type": "OnnxModel", "model_path": model},
        "data_configs": [calibration],
        "passes": {"optimize": {"type": "OnnxPeepholeOptimizer"}, "quantize": quantize},
        "output_dir": f"{out}/model.onnx",
        "cache_dir": f"{out}/cache",
    }
)

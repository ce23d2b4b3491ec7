"""NNCF on ONNX, run by ONNX Runtime: the mixed preset, and the transformer scheme where there is attention."""

import sys

import nncf
import numpy as np
import onnx

path, calib, out = sys.argv[1:]
data = np.load(calib)
arrays = {name: data[name] for name in data.files}
count = len(next(iter(arrays.values())))
feeds = [{name: a[i] for name, a in arrays.items()} for i in range(count)]
model = onnx.load(path)
attention = any(node.op_type in ("Softmax", "Attention") for node in model.graph.node)
options = {
    "preset": nncf.QuantizationPreset.MIXED,
    "target_device": nncf.TargetDevice.CPU,
    "subset_size": count,
}
scheme = nncf.ModelType.TRANSFORMER if attention else None
try:
    quantized = nncf.quantize(model, nncf.Dataset(feeds), model_type=scheme, **options)
except Exception as error:
    print(f"note: without the transformer scheme, which fails ({error})")
    quantized = nncf.quantize(model, nncf.Dataset(feeds), **options)
onnx.save(quantized, f"{out}/model.onnx")

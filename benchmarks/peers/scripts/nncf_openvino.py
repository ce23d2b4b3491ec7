"""NNCF on OpenVINO, run by OpenVINO: the mixed preset, and the transformer scheme where there is attention.

Shapes are made static, which OpenVINO's documentation recommends where they are known.
"""

import sys

import nncf
import numpy as np
import openvino as ov

path, calib, out = sys.argv[1:]
data = np.load(calib)
arrays = {name: data[name] for name in data.files}
count = len(next(iter(arrays.values())))
feeds = [{name: a[i] for name, a in arrays.items()} for i in range(count)]
model = ov.convert_model(path)
model.reshape({name: a.shape[1:] for name, a in arrays.items()})
attention = any(op.get_type_name() in ("Softmax", "ScaledDotProductAttention") for op in model.get_ops())
quantized = nncf.quantize(
    model,
    nncf.Dataset(feeds),
    preset=nncf.QuantizationPreset.MIXED,
    target_device=nncf.TargetDevice.CPU,
    model_type=nncf.ModelType.TRANSFORMER if attention else None,
    subset_size=count,
)
ov.save_model(quantized, f"{out}/model.xml")

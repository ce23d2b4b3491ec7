"""aimet-onnx: BatchNorm folding, cross-layer equalization, int8 per channel, exported as Q/DQ.

With AdaRound of so many iterations before, unless they are 0.
"""

import sys

import aimet_onnx
import numpy as np
import onnx
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
from aimet_onnx.cross_layer_equalization import equalize_model

path, calib, out, iterations = sys.argv[1:]
data = np.load(calib)
arrays = {name: data[name] for name in data.files}
count = len(next(iter(arrays.values())))
feeds = [{name: a[i] for name, a in arrays.items()} for i in range(count)]
model = onnx.load(path)
fold_all_batch_norms_to_weight(model)
try:
    equalize_model(model)
except IndexError as error:
    print(f"note: without cross-layer equalization, which fails ({error})")
sim = aimet_onnx.QuantizationSimModel(
    model, param_type="int8", activation_type="int8", quant_scheme="tf_enhanced", dummy_input=feeds[0]
)
if int(iterations):
    aimet_onnx.apply_adaround(sim, feeds, num_iterations=int(iterations))
sim.compute_encodings(feeds)
onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), f"{out}/model.onnx")

"""onnxruntime.quantization, dynamic: what its documentation recommends for transformers and recurrent layers.

Convolutions stay float: the documentation recommends static quantization for them.
"""

import sys
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

model, calib, out = sys.argv[1:]
options = {
    "op_types_to_quantize": ["MatMul", "Gemm", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"],
    "weight_type": QuantType.QInt8,
    "per_channel": True,
    "reduce_range": "vnni" not in Path("/proc/cpuinfo").read_text(),
}
try:
    quant_pre_process(model, f"{out}/prepared.onnx")
    quantize_dynamic(f"{out}/prepared.onnx", f"{out}/model.onnx", **options)
except Exception as error:
    print(f"note: without pre-processing, which fails, and the exporter's shapes ({error})")
    bare = onnx.load(model)
    del bare.graph.value_info[:]
    quantize_dynamic(bare, f"{out}/model.onnx", **options)

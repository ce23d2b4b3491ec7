"""onnxruntime.quantization, dynamic: what its documentation recommends for transformers and recurrent layers.

Convolutions stay float: the documentation recommends static quantization for them.
"""

import sys
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

model, calib, out = sys.argv[1:]
prepared = f"{out}/prepared.onnx"
quant_pre_process(model, prepared)
quantize_dynamic(
    prepared,
    f"{out}/model.onnx",
    op_types_to_quantize=["MatMul", "Gemm", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"],
    weight_type=QuantType.QInt8,
    per_channel=True,
    reduce_range="vnni" not in Path("/proc/cpuinfo").read_text(),
)

"""Plans for TensorRT: symmetric int8 by Q/DQ, and fp16 or bf16 by casts. What is right there is wrong on a CPU.

    float stages + ranges of every tensor ─placement▶ QuantPlan ─apply▶ Q/DQ ─half▶ Q/DQ + Cast graph

TensorRT takes precision from the graph (strong typing): nothing is left to builder flags. The graph runs on ONNX
Runtime as well, which is how its accuracy is known before a GPU has seen it.
"""

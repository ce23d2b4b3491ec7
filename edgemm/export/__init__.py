"""From any trained model file to a checked ONNX graph with a named signature."""

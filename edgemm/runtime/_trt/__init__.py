"""What the TensorRT builder and the TensorRT session share: the module, its log, the sidecar of an engine."""

"""The parts of `edgemm.backends.tensorrt`, in the order of a build.

    request ─▶ process ═ JSON lines ═▶ worker ─▶ build ─▶ network ─▶ config ─▶ proof ─▶ engine + sidecar

`request` and `profiles` are checked in the caller's process; what touches TensorRT runs in the worker's. All of it
imports numpy and the standard library only: a device builds its engines with it.
"""

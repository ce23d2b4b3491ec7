"""CUDA's runtime library through ctypes: calls, streams, events, memory, graphs, and arrays on the GPU."""

"""Preprocessing as nodes in front of a model, so that it takes raw data. After the export, before the partition.

An emitter per step, in the file of its family, writes ONNX nodes that compute what the step's `apply` does; see
`edgemm.preprocess` for what both promise. `registry.EMITTERS` lists them.
"""

"""OpenVINO without quantization, shapes made static: what the engine alone gives."""

import sys

import numpy as np
import openvino as ov

path, calib, out = sys.argv[1:]
data = np.load(calib)
model = ov.convert_model(path)
model.reshape({name: data[name].shape[1:] for name in data.files})
ov.save_model(model, f"{out}/model.xml")

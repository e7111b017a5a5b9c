"""The shortest program that names what is in one picture with a network in ONNX. Knows nothing of linnaeus.

python predict_rival.py model.onnx PICTURE.jpg
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
wanted = session.get_inputs()[0]
height, width = wanted.shape[2:]
picture = Image.open(sys.argv[2]).convert("RGB").resize((width, height))
pixels = (np.asarray(picture, np.float32) / 255 - 0.5) / 0.5
logits = session.run(None, {wanted.name: pixels.transpose(2, 0, 1)[None]})[0]
print(int(logits.argmax()))

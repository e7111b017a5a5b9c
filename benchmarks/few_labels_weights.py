"""Write the ImageNet weights of EfficientNet-Lite0 that linnaeus starts from under timm's names, for the rival."""

from __future__ import annotations

import sys

from safetensors.torch import save_file

from linnaeus.models.registry import Blueprint, create_model, find_model
from linnaeus.models.weights import load_pretrained

blueprint = Blueprint(name="efficientnet_lite0", classes=2, channels=3, size=224)
model = create_model(blueprint)
load_pretrained(model, find_model(blueprint.name), blueprint, given="", progress=lambda done, total: None)
body = {name: value.contiguous() for name, value in model.state_dict().items() if not name.startswith("classifier")}
save_file(body, sys.argv[1])

"""fastai as its documentation writes it: `fine_tune` on a table of pictures, with its default augmentation.

    few_labels_rival.py TABLE.csv WEIGHTS.safetensors EPOCHS

Prints one JSON object: test accuracy in percent, seconds of fine_tune.
"""

import json
import sys
import time

import pandas as pd
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file

table, weights, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
set_seed(0, reproducible=True)
frame = pd.read_csv(table)
frame["is_valid"] = frame["split"] == "test"
loaders = ImageDataLoaders.from_df(
    frame, path="/", fn_col="path", label_col="label", valid_col="is_valid", bs=16, num_workers=0,
    item_tfms=Resize(256), batch_tfms=[*aug_transforms(size=224), Normalize.from_stats([0.5] * 3, [0.5] * 3)],
)  # fmt: skip
learner = vision_learner(loaders, "tf_efficientnet_lite0", pretrained=False, normalize=False, metrics=accuracy)
missing = learner.model[0].model.load_state_dict(load_file(weights), strict=False).missing_keys
assert not [name for name in missing if not name.startswith("classifier")], missing
start = time.perf_counter()
learner.fine_tune(epochs, 2e-3)
seconds = time.perf_counter() - start
_, share = learner.validate()
print(json.dumps({"accuracy": 100 * float(share), "seconds": seconds, "epochs": epochs}))

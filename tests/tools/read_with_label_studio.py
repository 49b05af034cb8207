"""Prints the masks in a list of Label Studio's predictions, as its own decoder reads them: task/region -> bits, hex."""

import json
import sys

import numpy as np
from label_studio_sdk.converter.brush import decode_rle

masks = {}
with open(sys.argv[1], encoding="utf-8") as file:
    for prediction in json.load(file):
        for region in prediction["result"]:
            if region["type"] == "brushlabels":
                shape = (region["original_height"], region["original_width"], 4)
                alpha = decode_rle(region["value"]["rle"]).reshape(shape)[..., 3]
                masks[f"{prediction['task']}/{region['id']}"] = np.packbits(alpha > 0).tobytes().hex()
print(json.dumps(masks))

"""The memory of a worker is bounded, whatever the sizes of images: measured in a process of its own."""

import subprocess
import sys

WORKER = """
import io, sys, threading, time
import numpy as np, pyarrow as pa, torch
from PIL import Image
from prelabel.operators import batches, label
from prelabel.operators.base import Instances, Model, Prediction, Task
from prelabel.schemas.categories import Category, CategorySet

MEGA = 2**20
label.AHEAD_PIXELS = batches.PENDING_PIXELS = 4 * MEGA

class Nothing(Model):
    name, tasks, categories = "fake:nothing", frozenset({Task.DETECT}), CategorySet([Category(1, "none")])
    def input_size(self, height, width):
        return 0, 0
    def predict(self, images, tasks):
        time.sleep(0.05)  # others are decoded meanwhile
        none = np.zeros(0, np.float32)
        return [Prediction(Instances(none.reshape(0, 4), none, none.astype(np.int32)))] * len(images)

def image(side, format):
    file = io.BytesIO()
    Image.new("RGB", (side, side), (30, 200, 90)).save(file, format)
    return file.getvalue()

def resident():  # without the pages of libraries, which come and go as others need memory
    whole, shared = map(int, open("/proc/self/statm").read().split()[1:3])
    return (whole - shared) * 4096

def look(images):
    unit = pa.table({"image_id": range(len(images)), "bytes": pa.array(images, pa.large_binary()),
                     "error_code": pa.nulls(len(images), pa.string())})
    asked = [label.Asked(Nothing(), frozenset({Task.DETECT}), {1: 1})]
    return label.Labeler(asked, batch_size=8, max_pixels=100 * MEGA, threads=8).look(unit)

small, large = image(500, "JPEG"), image(4096, "PNG")  # 16 megapixels: 4 times as many as are decoded ahead
look([small] * 20)
before, peak, over = resident(), 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.002):
        peak = max(peak, resident())
watcher = threading.Thread(target=watch)
watcher.start()
findings = look(([small] * 5 + [large, large]) * 4)
over.set()
watcher.join()
assert all(facts["status"] == "ok" for facts in findings.facts)
print(peak - before, 16 * 16 * MEGA + 3 * (2 * 4 + 16) * MEGA)
"""


def test_large_images_among_small_ones() -> None:
    ran = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, check=True)
    peak, bound = map(int, ran.stdout.split())
    assert peak < bound + 2**26  # what the allocator and the interpreter keep beside

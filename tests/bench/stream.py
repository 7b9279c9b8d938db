"""How fast episodes stream from shards. Every ratio is of runs that alternate, on one thread; run it on a machine that does nothing else.

    python tests/bench/stream.py                    # packs a synthetic dataset of 84 px JPEG images first
    python tests/bench/stream.py PACKED_FOLDER      # measures one that is there

A command each, all of them by default: `--only webdataset folder http first memory`. The folder reader opens a file for each image, with
the same decoder, and makes the tensors that episodes consist of; "only decoded" spares it that. "Cold" has the kernel forget what it cached
of both first, "warm" does not. All have the allocator settings that workers have. A stream is timed from its second round of shards on; it
checks every shard's SHA-256 when it first opens it, and that is in the time.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from distmeta.learners.allocator import ALLOCATOR

if TYPE_CHECKING:
    from distmeta.data.images import Pixels, Preprocessing

sys.path.insert(0, str(Path(__file__).parent.parent))

WAY, SHOT, QUERIES, SLOTS = 5, 1, 15, 4
PER_EPISODE = WAY * (SHOT + QUERIES)
ROUNDS = 5
WARM_UP = 75  # steps, a round of a full-size dataset's shards
STEPS = 140  # two more
FEW_STEPS = 60  # while most files are still cold: a directory's inodes lie 16 to a block, and reading one brings the others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", nargs="?", type=Path, help="a packed dataset; a synthetic one is made if absent")
    parser.add_argument("--images", type=int, default=45_000, help="training images of the synthetic dataset")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the memory measurement")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child](arguments.packed, arguments.steps)))
        return
    with tempfile.TemporaryDirectory(prefix="distmeta-bench-") as scratch:
        packed = arguments.packed or synthetic(Path(scratch) / "packed", arguments.images)
        for name in arguments.only:
            MEASUREMENTS[name](packed, arguments.steps)


def synthetic(out: Path, images: int) -> Path:
    """JPEG images of 84 px and about 4 KB, in 64 training classes."""
    from distmeta.data.pack import PackOptions, pack
    from distmeta.data.sources import SourceImage

    random = np.random.default_rng(0)
    pool = []
    for _ in range(302):
        encoded = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (14, 14, 3), np.uint8)).resize((84, 84), Image.Resampling.BICUBIC).save(encoded, "JPEG")
        pool.append(encoded.getvalue())

    def source() -> Iterator[SourceImage]:
        for number in range(images):
            yield SourceImage(
                split="train", class_name=f"class-{number % 64:02d}", category="", image=pool[number % 300], origin=f"image {number}"
            )
        for split, image in (("val", pool[300]), ("test", pool[301])):  # a dataset has all three
            yield SourceImage(split=split, class_name=split, category="", image=image, origin=f"{split} image")

    print(f"packing {images} images …", flush=True)
    pack(
        source(),
        out,
        PackOptions(
            dataset="synthetic", image_size=84, channels=3, image_format="jpg", resize="squash", images_per_class=150, seed=0, source={}
        ),
    )
    return out


def child(name: str, packed: Path, steps: int = 0) -> dict[str, float]:
    """A measurement in a process of its own, on one thread."""
    command = [sys.executable, __file__, str(packed), "--child", name, "--steps", str(steps)]
    environment = os.environ | ALLOCATOR | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return dict(json.loads(answer))


def ratio(
    packed: Path, mine: str, theirs: str, steps: int = STEPS, prepare: Callable[[], object] = lambda: None
) -> tuple[float, float, float]:
    """Median images/s of both and the median of the rounds' ratios."""
    rates = []
    for _ in range(ROUNDS):
        pair = []
        for name in (mine, theirs):
            prepare()
            pair.append(child(name, packed, steps)["images_per_s"])
        rates.append(pair)
    return (*(statistics.median(column) for column in zip(*rates, strict=True)), statistics.median(a / b for a, b in rates))


def stream(location: str, step: int = 0) -> Iterator[object]:
    import torch

    from distmeta.data.episodes import Task
    from distmeta.data.shards import Dataset
    from distmeta.data.stream import EpisodeStream

    torch.set_num_threads(1)
    return EpisodeStream(Dataset(location), "train", Task(WAY, SHOT, QUERIES), seed=0).training(range(SLOTS), step)


def images_per_s(batches: Iterator[object], steps: int) -> float:
    for _ in itertools.islice(batches, WARM_UP):
        pass
    begin = time.perf_counter()
    for _ in itertools.islice(batches, steps):
        pass
    return steps * SLOTS * PER_EPISODE / (time.perf_counter() - begin)


def shards_child(packed: Path, steps: int) -> dict[str, float]:
    return {"images_per_s": images_per_s(stream(str(packed)), steps)}


def webdataset_child(packed: Path, steps: int) -> dict[str, float]:
    """One pass of WebDataset's own reader over the same shards, with the same decoder and nothing after it."""
    import webdataset

    from distmeta.data.images import decode_packed
    from distmeta.data.shards import Dataset

    dataset = Dataset(str(packed))
    preprocessing = dataset.preprocessing()
    urls = [str(packed / info.name) for info in dataset.shards("train")]
    samples = iter(webdataset.WebDataset(urls, shardshuffle=False))
    extension = dataset.manifest.image_format
    begin, count = time.perf_counter(), 0
    for sample in itertools.islice(samples, steps * SLOTS * PER_EPISODE):
        decode_packed(sample[extension], preprocessing, sample["__key__"])
        count += 1
    return {"images_per_s": count / (time.perf_counter() - begin)}


def folder_child(packed: Path, steps: int) -> dict[str, float]:
    """As many images from a folder of files, one open for each, in random order, made into the tensors of a step."""
    preprocessing, images = from_files(packed, steps)
    begin = time.perf_counter()
    for _ in range(steps):
        pixels = preprocessing.pixels(SLOTS * PER_EPISODE)
        for place, image in zip(pixels, itertools.islice(images, len(pixels)), strict=True):
            place[:] = image
        preprocessing.network_input(pixels)
    return {"images_per_s": steps * SLOTS * PER_EPISODE / (time.perf_counter() - begin)}


def decoded_folder_child(packed: Path, steps: int) -> dict[str, float]:
    """The same with nothing after decoding, which is less than an episode takes."""
    _, images = from_files(packed, steps)
    begin = time.perf_counter()
    count = sum(1 for _ in images)
    return {"images_per_s": count / (time.perf_counter() - begin)}


def from_files(packed: Path, steps: int) -> "tuple[Preprocessing, Iterator[Pixels]]":
    from distmeta.data.images import decode_packed
    from distmeta.data.shards import Dataset

    preprocessing = Dataset(str(packed)).preprocessing()
    files = sorted(unpacked(packed).iterdir())
    chosen = np.random.default_rng(0).choice(len(files), steps * SLOTS * PER_EPISODE).tolist()
    return preprocessing, (decode_packed(files[number].read_bytes(), preprocessing, "") for number in chosen)


def unpacked(packed: Path) -> Path:
    """The training images as files, beside the packed folder."""
    from distmeta.data.shards import Dataset

    folder = packed.parent / f"{packed.name}-files"
    if not folder.exists():
        dataset = Dataset(str(packed))
        folder.mkdir()
        for info in dataset.shards("train"):
            shard = dataset.fetch(info)
            for member in range(len(info.sizes)):
                (folder / f"{info.name}-{member:08d}.{dataset.manifest.image_format}").write_bytes(shard.image(member))
        os.sync()
    return folder


def forget(*folders: Path) -> str:
    """Have the kernel forget these folders' files: all it cached, directories and inodes too, where that is allowed. Says which."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return "page cache, directories and inodes dropped"
    except OSError:
        for path in (path for folder in folders for path in folder.iterdir()):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        return "page cache dropped"


def against_webdataset(packed: Path, steps: int) -> None:
    mine, theirs, times = ratio(packed, "shards", "webdataset")
    print(f"shards {mine:.0f} images/s; WebDataset in one pass, decoded, {theirs:.0f}: {times:.2f} times", flush=True)


def against_folder(packed: Path, steps: int) -> None:
    folder = unpacked(packed)

    def compare(reader: str, what: str, steps: int, prepare: Callable[[], object] = lambda: None) -> None:
        mine, theirs, times = ratio(packed, "shards", reader, steps, prepare)
        images = f"{steps * SLOTS * PER_EPISODE} images"
        print(f"shards {mine:.0f} images/s; a folder of files, {what}, {images}, {theirs:.0f}: {times:.2f} times", flush=True)

    compare("folder", "warm", STEPS)
    how, images = forget(folder, packed), sum(1 for _ in folder.iterdir())
    for few in (steps for steps in (FEW_STEPS, STEPS) if steps * SLOTS * PER_EPISODE <= images):  # none is read twice, warm
        compare("folder", f"cold ({how})", few, lambda: forget(folder, packed))
        compare("decoded-folder", "only decoded, cold", few, lambda: forget(folder, packed))


def over_http(packed: Path, steps: int) -> None:
    """The server runs in a process of its own, and waits 20 ms before each answer."""
    server = subprocess.Popen([sys.executable, __file__, str(packed), "--child", "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        rates = [[images_per_s(stream(location), 100) for location in (url, str(packed))] for _ in range(3)]
    finally:
        server.terminate()
    print(f"over HTTP with 20 ms latency {statistics.median(a / b for a, b in rates):.2f} times the rate from disk", flush=True)


def serve_child(packed: Path, steps: int) -> dict[str, float]:
    from http_server import serve

    with serve(packed, latency_s=0.02) as server:
        print(server.url, flush=True)
        time.sleep(3600)
    return {}


def first_episode(packed: Path, steps: int) -> None:
    times = [child("first", packed) for _ in range(ROUNDS)]
    open_s, first_s = (statistics.median(t[key] for t in times) for key in ("open_s", "first_s"))
    print(f"manifest open after {open_s:.2f} s, first {SLOTS} episodes after {first_s:.2f} s (libraries imported before)", flush=True)


def first_child(packed: Path, steps: int) -> dict[str, float]:
    import distmeta.data.stream  # noqa: F401  so that only reading is timed
    from distmeta.data.shards import Dataset

    begin = time.perf_counter()
    Dataset(str(packed))
    opened = time.perf_counter()
    next(stream(str(packed)))
    return {"open_s": opened - begin, "first_s": time.perf_counter() - opened}


def memory(packed: Path, steps: int) -> None:
    print(f"{child('memory', packed, steps)['peak_mb']:.0f} MB resident at most in {steps} steps of {SLOTS} slots", flush=True)


def memory_child(packed: Path, steps: int) -> dict[str, float]:
    import psutil

    batches, peak = stream(str(packed)), 0
    for _ in itertools.islice(batches, steps):
        peak = max(peak, psutil.Process().memory_info().rss)
    return {"peak_mb": peak / 1e6}


MEASUREMENTS = {"webdataset": against_webdataset, "folder": against_folder, "http": over_http, "first": first_episode, "memory": memory}
CHILDREN = {
    "shards": shards_child,
    "webdataset": webdataset_child,
    "folder": folder_child,
    "decoded-folder": decoded_folder_child,
    "first": first_child,
    "memory": memory_child,
    "serve": serve_child,
}

if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # streams read ahead without end

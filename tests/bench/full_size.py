"""Packs and verifies a synthetic source of tieredImageNet's full size, and prints images a second, peak memory and seconds.

    python tests/bench/full_size.py FOLDER [--scale 0.01] [--processes N]

The source is an archive as ImageNet's: a tar of per-class tars of JPEG files of about 4 KB, 84 pixels, made once in FOLDER. Sizes at
scale 1: train 448,695 images of 351 classes, val 124,261 of 97, test 206,209 of 160; some 5.5 GB for the source, twice that for the pack.
`--scale` divides the images of each class, never the classes; `--eval-scale` divides val and test further.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageFilter

SIZES = {"train": (448_695, 351), "val": (124_261, 97), "test": (206_209, 160)}
PICTURES = 500  # different ones; every file has its own comment, so no two are equal


def pictures() -> list[bytes]:
    """JPEG files as photographs make them: soft shapes, edges and grain."""
    chance = np.random.default_rng(0)
    files = []
    for _ in range(PICTURES):
        coarse = Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((84, 84), Image.Resampling.BICUBIC)
        edges = Image.fromarray(chance.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((84, 84), Image.Resampling.NEAREST)
        blend = np.asarray(Image.blend(coarse, edges.filter(ImageFilter.GaussianBlur(1)), 0.35), dtype=np.int16)
        grain = np.clip(blend + chance.integers(-9, 10, blend.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(grain).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def commented(file: bytes, number: int) -> bytes:
    """The same picture in a file of its own: a comment after the JPEG's first marker."""
    text = b"%012d" % number
    return file[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + file[2:]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def make_source(folder: Path, scales: dict[str, float]) -> int:
    """Archive and lists in `folder`; returns the number of images."""
    files, number, wnid = pictures(), 0, 1_000_000
    with tarfile.open(folder / "train.tar", "w") as archive:
        for split, (images, classes) in SIZES.items():
            rows = []
            for position, share in enumerate(np.array_split(np.arange(max(2 * classes, round(images * scales[split]))), classes)):
                wnid += 1
                rows.append(f"n{wnid:08d},n{position % 20:08d}\n")
                buffer = io.BytesIO()
                with tarfile.open(fileobj=buffer, mode="w") as inner:
                    for i in range(len(share)):
                        number += 1
                        add(inner, f"n{wnid:08d}_{i}.JPEG", commented(files[number % PICTURES], number))
                add(archive, f"n{wnid:08d}.tar", buffer.getvalue())
            (folder / f"{split}.csv").write_text("".join(rows))
    return number


def measured(what: str, images: int, *arguments: str) -> None:
    """Run the command line and print what it took; memory is the most that its processes held together, shared pages counted once each."""
    command = [sys.executable, "-m", "distmeta", *arguments]
    start, peak, done = time.monotonic(), [0, 0], threading.Event()
    process = subprocess.Popen(command)

    def watch() -> None:
        while not done.wait(0.2):
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                peak[0] = max(peak[0], sum(member.memory_full_info().pss for member in family))
                peak[1] = max(peak[1], *(member.memory_info().rss for member in family))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    if code:
        sys.exit(code)
    figures = {"images_per_s": round(images / seconds), "seconds": round(seconds, 1)}
    print(json.dumps({"what": what, "images": images, **figures, "peak_mb": peak[0] >> 20, "largest_process_mb": peak[1] >> 20}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--eval-scale", type=float, default=1.0)
    parser.add_argument("--processes", type=int)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    scales = {split: options.scale * (1 if split == "train" else options.eval_scale) for split in SIZES}
    mark = options.folder / "source.json"
    if not mark.exists() or json.loads(mark.read_text())["scales"] != scales:
        mark.write_text(json.dumps({"scales": scales, "images": make_source(options.folder, scales)}))
    images = json.loads(mark.read_text())["images"]
    out, processes = str(options.folder / "packed"), ("--processes", str(options.processes)) if options.processes else ()
    source = ("--dataset", "tiered-imagenet", str(options.folder / "train.tar"), "--splits", str(options.folder))
    measured("pack", images, "pack", *source, "--out", out, *processes)
    measured("verify", images, "verify", out)
    subprocess.run([sys.executable, "-m", "distmeta", "inspect", out], check=True)


if __name__ == "__main__":
    main()

"""Writes one shard: a plain tar that any WebDataset reader opens."""

import hashlib
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from webdataset import TarWriter

from distmeta.data.deal import Integers
from distmeta.data.shards import ShardInfo
from distmeta.data.splits import Split


class ShardPlan(NamedTuple):
    """A shard to write: sample i is `sizes[i]` bytes from `offsets[i]` of the file `spool` and belongs to `class_ids[i]`."""

    path: Path
    split: Split
    image_format: str
    spool: Path
    class_ids: Integers
    offsets: Integers
    sizes: Integers


def write_shard(plan: ShardPlan) -> ShardInfo:
    """Write `<key>.<format>` and `<key>.cls` (the class_id) for every image. The bytes are reproducible."""
    with plan.spool.open("rb") as spool, plan.path.open("wb") as file:
        with TarWriter(file, encoder=False, mtime=0) as writer:
            for key, (class_id, offset, size) in enumerate(zip(plan.class_ids, plan.offsets, plan.sizes, strict=True)):
                content = os.pread(spool.fileno(), size, offset)
                writer.write({"__key__": f"{key:08d}", plan.image_format: content, "cls": str(class_id).encode()})
        file.flush()
        os.fsync(file.fileno())  # flushed before the folder gets its name
    with tarfile.open(plan.path) as archive:
        places = [member.offset_data for member in archive if member.name.endswith(f".{plan.image_format}")]
    with plan.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardInfo(
        name=plan.path.name,
        split=plan.split,
        bytes=plan.path.stat().st_size,
        sha256=digest,
        class_ids=plan.class_ids,
        offsets=np.array(places),
        sizes=plan.sizes,
    )

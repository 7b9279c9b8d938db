"""verify finds every damage and names where it is; on a whole dataset it finds nothing."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import options, patterns

from distmeta.data.pack import pack
from distmeta.data.shards import Dataset
from distmeta.data.verify import verify


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


def test_a_whole_dataset_has_no_findings(dataset: Dataset, tmp_path: Path) -> None:
    assert list(verify(dataset)) == []
    pack(patterns(), tmp_path / "jpg", options(image_format="jpg"))
    assert list(verify(Dataset(str(tmp_path / "jpg")))) == []


def test_every_flipped_byte_is_found_and_an_image_or_label_named(folder: Path, dataset: Dataset) -> None:
    info = dataset.manifest.shards[0]
    path = folder / info.name
    whole = path.read_bytes()
    for member in random.Random(0).sample(range(len(info.class_ids)), 10):
        content = bytearray(whole)
        middle = info.offsets[member] + info.sizes[member] // 2
        content[middle] ^= 0xFF  # inside the compressed pixels: the PNG's own checksum breaks
        path.write_bytes(content)
        findings = list(verify(Dataset(str(folder))))
        assert findings[0] == (info.name, "", "does not match its SHA-256")
        assert [finding.key for finding in findings[1:]] == [f"{member:08d}"]
    content = bytearray(whole)
    label = whole.index(b".cls") - 8
    content[label + 512] = ord("9")
    path.write_bytes(content)
    assert any("label" in finding.reason for finding in verify(Dataset(str(folder))))


def test_missing_truncated_and_quick(folder: Path, dataset: Dataset) -> None:
    first, second = dataset.manifest.shards[:2]
    (folder / first.name).unlink()
    (folder / second.name).write_bytes((folder / second.name).read_bytes()[: second.bytes // 2])
    for quick in (True, False):
        findings = list(verify(Dataset(str(folder)), quick))
        assert f"shard {folder / first.name} is missing" in [f.reason for f in findings if f.shard == first.name]
        assert f"{second.bytes // 2} bytes; the manifest says {second.bytes}" in [f.reason for f in findings if f.shard == second.name]
        assert {f.shard for f in findings} == {first.name, second.name}


def test_the_command_and_its_exit_code(folder: Path, dataset: Dataset) -> None:
    program = [sys.executable, "-c", "from distmeta.cli import main; main()", "verify", str(folder), "--json"]
    whole = subprocess.run(program, capture_output=True, text=True)
    assert whole.returncode == 0
    assert json.loads(whole.stdout.splitlines()[-1]) == {"ok": True, "bad": []}
    name = dataset.manifest.shards[0].name
    (folder / name).unlink()
    damaged = subprocess.run([*program, "--quick"], capture_output=True, text=True)
    assert damaged.returncode == 1
    answer = json.loads(damaged.stdout.splitlines()[-1])
    assert (answer["ok"], [bad["shard"] for bad in answer["bad"]]) == (False, [name])

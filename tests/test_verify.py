"""verify finds every damage and names where it is; on a whole dataset it finds nothing."""

import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import options, patterns

from distmeta.data.pack import pack
from distmeta.data.shards import Dataset, Manifest, ShardInfo
from distmeta.data.verify import Finding, verify


def findings_of(location: Path | Dataset, quick: bool = False) -> list[Finding]:
    dataset = location if isinstance(location, Dataset) else Dataset(str(location))
    return [finding for findings in verify(dataset, quick) for finding in findings]


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(packed, tmp_path / "copy")


def test_a_whole_dataset_has_no_findings(dataset: Dataset, tmp_path: Path) -> None:
    assert findings_of(dataset) == []
    pack(patterns(), tmp_path / "jpg", options(image_format="jpg"))
    assert findings_of(tmp_path / "jpg") == []


def test_every_flipped_byte_is_found_and_an_image_or_label_named(folder: Path, dataset: Dataset) -> None:
    info = dataset.manifest.shards[0]
    path = folder / info.name
    whole = path.read_bytes()
    for member in random.Random(0).sample(range(len(info.class_ids)), 10):
        content = bytearray(whole)
        middle = info.offsets[member] + info.sizes[member] // 2
        content[middle] ^= 0xFF  # inside the compressed pixels: the PNG's own checksum breaks
        path.write_bytes(content)
        findings = findings_of(folder)
        assert findings[0] == (info.name, "", "does not match its SHA-256")
        assert [finding.key for finding in findings[1:]] == [f"{member:08d}"]
    content = bytearray(whole)
    label = whole.index(b".cls") - 8
    content[label + 512] = ord("9")
    path.write_bytes(content)
    assert any("label" in finding.reason for finding in findings_of(folder))


def test_missing_truncated_and_quick(folder: Path, dataset: Dataset) -> None:
    first, second = dataset.manifest.shards[:2]
    (folder / first.name).unlink()
    (folder / second.name).write_bytes((folder / second.name).read_bytes()[: second.bytes // 2])
    for quick in (True, False):
        findings = findings_of(folder, quick)
        assert f"shard {folder / first.name} is missing" in [f.reason for f in findings if f.shard == first.name]
        assert f"{second.bytes // 2} bytes; the manifest says {second.bytes}" in [f.reason for f in findings if f.shard == second.name]
        assert {f.shard for f in findings} == {first.name, second.name}


def test_every_shard_has_its_place_in_the_answer(folder: Path, dataset: Dataset) -> None:
    """Shards are checked at once, but reported in the manifest's order, whole ones as having nothing."""
    last = dataset.manifest.shards[-1]
    (folder / last.name).unlink()
    answers = list(verify(Dataset(str(folder))))
    assert [len(findings) for findings in answers] == [0] * (len(dataset.manifest.shards) - 1) + [1]


Members = list[tuple[str, bytes]]


def repacked(folder: Path, change: Callable[[Members], Members]) -> Path:
    """The folder with its first shard's members changed, and a manifest that says so: only what is inside is wrong."""
    manifest = Dataset(str(folder)).manifest
    info = manifest.shards[0]
    with tarfile.open(folder / info.name) as archive:
        members = [(m.name, archive.extractfile(m).read()) for m in archive]  # type: ignore[union-attr]
    with tarfile.open(folder / info.name, "w") as archive:
        for name, content in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(folder / info.name) as archive:
        places = {m.name: (m.offset_data, m.size) for m in archive}
    images = [places.get(f"{n:08d}.png", (0, 1)) for n in range(len(info.class_ids))]
    reseal(folder, manifest, info, offsets=[offset for offset, _ in images], sizes=[size for _, size in images])
    return folder


def reseal(folder: Path, manifest: Manifest, info: ShardInfo, **changes: object) -> None:
    content = (folder / info.name).read_bytes()
    changed = info.model_copy(update={"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **changes})
    shards = [changed if shard.name == info.name else shard for shard in manifest.shards]
    manifest = manifest.model_copy(update={"shards": shards})
    manifest = manifest.model_copy(update={"fingerprint": manifest.digest()})
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def relabelled(label: bytes) -> Callable[[Members], Members]:
    return lambda members: [(name, label if name == "00000003.cls" else content) for name, content in members]


WRONG: dict[str, tuple[Callable[[Members], Members], str, str]] = {
    "label missing": (lambda m: [pair for pair in m if pair[0] != "00000003.cls"], "00000003", "the label (.cls) is missing"),
    "label no number": (relabelled(b"cat"), "00000003", "label b'cat' is not a number"),
    "label empty": (relabelled(b""), "00000003", "label b'' is not a number"),
    "label negative": (relabelled(b"-1"), "00000003", "label b'-1' is not a number"),
    "label out of range": (relabelled(b"25"), "00000003", "label 25 is out of range; the manifest has 25 classes"),
    "another label": (relabelled(b"24"), "00000003", "label 24; the manifest says"),
    "outside": (lambda m: [*m, ("../../escaped.png", b"x")], "../../escaped.png", "names a place outside the shard"),
    "absolute": (lambda m: [*m, ("/etc/passwd", b"x")], "/etc/passwd", "names a place outside the shard"),
    "stranger": (lambda m: [*m, ("readme.txt", b"x")], "readme.txt", "is not in the manifest"),
    "twice": (lambda m: [*m, m[0]], "00000000.cls", "appears twice"),
    "no image": (lambda m: [(n, b"not a picture" if n == "00000003.png" else c) for n, c in m], "00000003", "does not decode"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_inside_a_shard_is_named(kind: str, folder: Path) -> None:
    change, key, reason = WRONG[kind]
    findings = findings_of(repacked(folder, change))
    assert any(finding.key == key and reason in finding.reason for finding in findings), findings
    assert {finding.key for finding in findings} == {key}


def test_a_tar_cut_or_damaged_between_members_is_named_with_the_last_whole_one(folder: Path, dataset: Dataset) -> None:
    info = dataset.manifest.shards[0]
    whole = (folder / info.name).read_bytes()
    place = whole.index(b"00000005.cls")
    for damaged in (whole[:place] + b"X" + whole[place + 1 :], whole[: place + 100]):
        (folder / info.name).write_bytes(damaged)
        findings = findings_of(folder)
        assert any("not a whole, uncompressed tar; reading stopped after 00000004.png" in finding.reason for finding in findings)
        assert {"00000005", f"{len(info.class_ids) - 1:08d}"} <= {finding.key for finding in findings}


def test_a_wrong_offset(folder: Path, dataset: Dataset) -> None:
    manifest, other = dataset.manifest, dataset.manifest.shards[1]
    reseal(folder, manifest, other, offsets=[other.offsets[0] + 512, *other.offsets[1:]])
    assert [finding.key for finding in findings_of(folder)] == ["00000000", "00000000"]


def test_a_shard_of_no_bytes_is_named(folder: Path, dataset: Dataset) -> None:
    name = dataset.manifest.shards[0].name
    (folder / name).write_bytes(b"")
    assert any(finding.shard == name and "0 bytes; the manifest says" in finding.reason for finding in findings_of(folder))


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

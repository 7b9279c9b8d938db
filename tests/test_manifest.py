"""A manifest is typed, ranged and in agreement with itself, or it is refused with the place; nothing that it names is touched."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from http_server import serve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distmeta.data.cache import ShardCache
from distmeta.data.location import Reading
from distmeta.data.shards import MANIFEST, Dataset
from distmeta.errors import DataError

Content = dict[str, Any]


def resealed(content: Content) -> str:
    """A hostile manifest's fingerprint is right: whoever writes one computes it."""
    rest = {key: value for key, value in content.items() if key != "fingerprint"}
    return json.dumps(content | {"fingerprint": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()})


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "received"))


def changed(folder: Path, change: Callable[[Content], object]) -> Path:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(resealed(content))
    return folder


def first(content: Content, what: str) -> Content:
    return content[what][0]


HOSTILE: dict[str, tuple[Callable[[Content], object], str]] = {
    "no shards": (lambda c: c.update(shards=[]), "split 'train' has no class or no shard"),
    "no test split": (
        lambda c: c.update({key: [each for each in c[key] if each["split"] != "test"] for key in ("shards", "classes")}),
        "split 'test' has no class or no shard",
    ),
    "one shard twice": (lambda c: c["shards"].append(c["shards"][0]), "shard 'train-000000.tar' appears twice"),
    "one class twice": (lambda c: first(c, "classes").update(name=c["classes"][1]["name"]), "class .* appears twice"),
    "999 images": (lambda c: first(c, "classes").update(images=999), "has 999 images; the shards hold 12"),
    "-5 images": (lambda c: first(c, "classes").update(images=-5), "classes.0.images: Input should be greater than or equal to 1"),
    "NaN means": (lambda c: c["preprocessing"].update(mean=[float("nan")]), "NaN is not JSON"),
    "a path for a SHA-256": (lambda c: first(c, "shards").update(sha256="/home/me/.ssh/id_rsa"), "shards.0.sha256: String should match"),
    "a path for a name": (lambda c: first(c, "shards").update(name="../../x.tar"), "shards.0.name: String should match"),
    "a pipe for a name": (lambda c: first(c, "shards").update(name="pipe:id"), "shards.0.name: String should match"),
    "a negative size": (lambda c: first(c, "shards").update(bytes=-1), "shards.0.bytes: Input should be greater than or equal to 0"),
    "a size of 10^30": (lambda c: first(c, "shards").update(bytes=10**30), "shards.0.bytes"),
    "an image beyond the shard": (lambda c: first(c, "shards").update(bytes=10), "an image does not lie within the 10 bytes"),
    "negative offsets": (lambda c: first(c, "shards").update(offsets=[-1] * 72), "an image does not lie within"),
    "arrays of two lengths": (lambda c: first(c, "shards").update(sizes=[1, 2]), "are not lists of one length"),
    "nested arrays": (lambda c: first(c, "shards").update(sizes=[[1], [2]]), "are not lists of one length"),
    "no arrays": (lambda c: first(c, "shards").update(sizes={"a": 1}), "shards.0.sizes"),
    "arrays that are not base64": (lambda c: first(c, "shards").update(sizes="%%%"), "shards.0.sizes"),
    "an unknown class": (lambda c: first(c, "shards").update(class_ids=[99] * 72), "holds a class that is not one of its split"),
    "a class of another split": (lambda c: first(c, "shards").update(split="test"), "holds a class that is not one of its split"),
    "another kind of split": (
        lambda c: first(c, "shards").update(split="secret"),
        "shards.0.split: Input should be 'train'",
    ),
    "a seed that is text": (lambda c: c.update(seed="x"), "seed: Input should be a valid integer"),
    "a name of 2,000 letters": (lambda c: c.update(dataset="x" * 2000), "dataset: String should have at most 1000 characters"),
    "a key of its own": (lambda c: c.update(hook="pipe:id"), "hook: Extra inputs are not permitted"),
    "a later version": (lambda c: c.update(format_version=99), "has format version 99; this distmeta reads"),
    "a version that is text": (lambda c: c.update(format_version="2"), "has format version 2; this distmeta reads"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_is_refused_with_the_place(name: str, folder: Path) -> None:
    change, message = HOSTILE[name]
    with pytest.raises(DataError, match=message) as refused:
        Dataset(str(changed(folder, change)))
    assert MANIFEST in refused.value.message
    assert refused.value.remedy


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"\x00" * 100, b"[" * 100_000, b'{"a": ' * 50_000])
def test_what_is_no_manifest(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match=MANIFEST):
        Dataset(str(folder))


def test_a_manifest_that_is_a_pipe_or_a_folder_does_not_hang(folder: Path) -> None:
    import os

    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)
    with pytest.raises(DataError, match="it is not a regular file"):
        Dataset(str(folder))
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    with pytest.raises(DataError, match=MANIFEST):
        Dataset(str(folder))


def test_a_shard_that_is_a_pipe_does_not_hang(folder: Path) -> None:
    import os

    dataset = Dataset(str(folder))
    info = dataset.manifest.shards[0]
    (folder / info.name).unlink()
    os.mkfifo(folder / info.name)
    with pytest.raises(DataError, match="is not a regular file"):
        dataset.fetch(info)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.lists(st.integers(-3, 99), max_size=4)
)


@given(data=st.data(), value=VALUES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_in_any_place_is_read_or_refused(data: st.DataObject, value: Any, folder: Path, packed: Path) -> None:
    content = json.loads((packed / MANIFEST).read_text())
    part: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(part)) if isinstance(part, dict) else st.integers(0, len(part) - 1))
        if not isinstance(part[key], dict | list) or not part[key] or data.draw(st.booleans()):
            part[key] = value
            break
        part = part[key]
    (folder / MANIFEST).write_text(resealed(content))
    try:
        Dataset(str(folder))
    except DataError as error:
        assert MANIFEST in error.message  # noqa: PT017 (most are refused, some are not)


def test_a_manifest_that_drips_ends_in_time(packed: Path, tmp_path: Path) -> None:
    with serve(packed) as server:
        server.faults[MANIFEST] = ["drip"] * 9
        with pytest.raises(DataError, match=r"manifest.json cannot be read: it was incomplete after 4 s\n"):
            Dataset(server.url, Reading(timeout_s=2, attempts=3))
        assert server.requests[MANIFEST] == 1


def test_a_body_without_end_is_left_at_its_limit(packed: Path, tmp_path: Path) -> None:
    with serve(packed) as server:
        dataset = Dataset(server.url, Reading(timeout_s=5, attempts=1), ShardCache(tmp_path, 1 << 30))
        info = dataset.manifest.shards[0]
        server.faults[info.name] = ["endless"] * 9
        with pytest.raises(DataError, match=rf"{info.name} has more than {info.bytes} bytes"):
            dataset.fetch(info)
        assert not list(tmp_path.rglob("*.part"))

"""Bytes flipped, cut and inserted in every file of ours and in every picture format: a DistmetaError or a right answer, nothing else."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import picture, png_16_bit, stored, tiff
from world import drawn_model, make

from distmeta.config import load_config
from distmeta.data.decode import decode_file
from distmeta.data.images import Preprocessing, decode, decode_packed
from distmeta.data.shards import Dataset
from distmeta.data.verify import verify
from distmeta.errors import DistmetaError
from distmeta.inference.model import Adapted, build
from distmeta.registry import tracking, versions
from distmeta.training.measurement import measurement_of
from distmeta.training.run_folder import RunFolder

Change = tuple[str, float, float, bytes]

_PIECES = (
    b"null",
    b"[",
    b"{}",
    b"-1",
    b"1e999",
    b'"',
    b"\x00",
    b"\xff\xff\xff\xff",
    b"99999999999999999999",
    b"../../x",
    b"\n",
    b"NaN",
    b"true",
)
CHANGE = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "end"]),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.one_of(st.sampled_from(_PIECES), st.binary(min_size=1, max_size=8)),
)
CHANGES = st.lists(CHANGE, min_size=1, max_size=3)


def changed(content: bytes, changes: list[Change]) -> bytes:
    for how, at, size, piece in changes:
        place, length = int(at * len(content)), 1 + int(size**4 * len(content))
        if how == "flip":
            flipped = bytes(a ^ b for a, b in zip(content[place : place + len(piece)], piece, strict=False))
            content = content[:place] + flipped + content[place + len(flipped) :]
        elif how == "insert":
            content = content[:place] + piece + content[place:]
        else:
            content = content[:place] if how == "end" else content[:place] + content[place + length :]
    return content


def values(content: Any, draw: st.DrawFn) -> Any:
    """JSON with one of its values replaced, wherever it is."""
    if isinstance(content, dict) and content and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(content)))
        return content | {key: values(content[key], draw)}
    if isinstance(content, list) and content and draw(st.integers(0, 5)):
        place = draw(st.integers(0, len(content) - 1))
        return [*content[:place], values(content[place], draw), *content[place + 1 :]]
    odd = st.sampled_from(
        [None, -1, 0, 10**30, 1e308, "", "x", "../../x", [], {}, [[]], {"a": 1}, True, "9" * 400, 2**31, float("nan"), 0.5]
    )
    return draw(odd)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make(folder)
    return folder


def _run() -> RunFolder:
    return RunFolder("run")


def _metrics() -> None:
    for record in _run().metrics.read():
        tracking.metrics_of(record)
        if "validation" in record:
            measurement_of(record["validation"])


def _model() -> None:
    best = _run().best
    weights = best.load_params()
    with suppress(ValueError, KeyError, TypeError, RuntimeError, AttributeError):  # as versions.load_model does
        versions.check_weights(build(best.read_description(), weights), weights, "x")


def _checkpoint() -> None:
    checkpoint = _run().checkpoint(30)
    assert checkpoint.is_whole in (True, False)
    checkpoint.load()
    checkpoint.written_on()


def _result() -> None:
    measurement_of(_run().read_result()["test"]).summary  # noqa: B018


def _publish() -> None:
    from distmeta.training.storage import understood

    with understood("run"):
        versions._finished(_run())


def _dataset() -> None:
    dataset = Dataset("data")
    list(verify(dataset))


FILES: dict[str, Callable[[], object]] = {
    "run/config.yaml": lambda: _run().read_config(),
    "run.yaml": lambda: load_config(Path("run.yaml")),
    "run/dataset.json": lambda: _run().read_dataset(),
    "run/starts.jsonl": lambda: _run().restarts(),
    "run/metrics/000000-000030.jsonl": _metrics,
    "run/result.json": _result,
    "run/test_episodes.json": _publish,
    "run/mlflow.json": lambda: _run().read_mlflow(),
    "run/best/best.json": _model,
    "run/best/step-000010/model.json": _model,
    "run/best/step-000010/meta_params.safetensors": _model,
    "run/best/step-000010/checkpoint.json": _publish,
    "run/checkpoints/step-000030/progress.json": _checkpoint,
    "run/checkpoints/step-000030/checkpoint.json": _checkpoint,
    "run/checkpoints/step-000030/optimizer.safetensors": _checkpoint,
    "adapted/adapted.safetensors": lambda: Adapted.load("adapted"),
    "data/manifest.json": _dataset,
    "data/test-000000.tar": _dataset,
}
EXAMPLES, FEWER = 100, 25  # a dataset takes longer
_QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """The file's content comes back when the block ends."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_ours_whose_bytes_changed_is_refused_or_read(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    path, content = Path(name), Path(name).read_bytes()

    @settings(max_examples=FEWER if name.startswith("data/") else EXAMPLES, suppress_health_check=_QUIET)
    @given(CHANGES)
    def law(changes: list[Change]) -> None:
        path.write_bytes(changed(content, changes))
        with suppress(DistmetaError):
            FILES[name]()

    with restored(path):
        law()


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".json", ".jsonl"))])
def test_a_file_of_ours_with_another_value_is_refused_or_read(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    path, content = Path(name), Path(name).read_bytes()
    lines = [json.loads(line) for line in content.splitlines()] if name.endswith(".jsonl") else [json.loads(content)]

    @settings(max_examples=FEWER if name.startswith("data/") else EXAMPLES, suppress_health_check=_QUIET)
    @given(st.data())
    def law(data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(lines) - 1))
        written = [*lines[:number], values(lines[number], data.draw), *lines[number + 1 :]]
        if name.endswith("manifest.json") and isinstance(written[0], dict):  # whoever writes one computes its fingerprint
            rest = {key: value for key, value in written[0].items() if key != "fingerprint"}
            written = [rest | {"fingerprint": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}]
        path.write_text("\n".join(map(json.dumps, written)))
        with suppress(DistmetaError):
            FILES[name]()

    with restored(path):
        law()


PICTURES: dict[str, bytes] = {form: stored(picture(16), form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")}
PICTURES |= {
    "16-bit PNG": png_16_bit(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)),
    "16-bit TIFF": tiff(np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)),
    "float TIFF": tiff(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)),
}


@pytest.mark.parametrize("form", PICTURES)
@settings(max_examples=80, suppress_health_check=_QUIET)
@given(changes=CHANGES, value_range=st.sampled_from([None, (0.0, 1.0)]))
def test_a_picture_whose_bytes_changed_is_refused_or_read(
    form: str, changes: list[Change], value_range: tuple[float, float] | None
) -> None:
    content = changed(PICTURES[form], changes)
    wanted = Preprocessing(image_size=16, channels=1, resize="squash", mean=[0.5], std=[0.5], value_range=value_range)
    for channels in (1, 3):
        with suppress(DistmetaError):
            decode_file(content, channels, "it", value_range, max_pixels=10**6)
    with suppress(DistmetaError):
        assert decode(content, wanted, "it", 10**6).shape == (1, 16, 16)
    if form in ("JPEG", "PNG"):
        with suppress(DistmetaError):
            assert decode_packed(content, wanted, "it").shape == (1, 16, 16)


def test_the_changes_reach_what_they_should(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a change everything is read, so a refusal above is due to the change; and there are as many cases as were promised."""
    monkeypatch.chdir(world)
    for read in FILES.values():
        read()
    assert changed(b"abc", [("end", 0.4, 0, b"x")]) == b"a"
    shutil.rmtree("tmp", ignore_errors=True)
    assert drawn_model().meta_params
    assert 14 * EXAMPLES + 2 * FEWER + 11 * 80 >= 2000

"""inspect: its counts are the shards', its picture shows the very episode that --export writes."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import options, patterns
from PIL import Image

from distmeta.data import inspect as inspect_module
from distmeta.data.episodes import Task
from distmeta.data.fonts import drawable, opened
from distmeta.data.inspect import draw_episode, export_episode, overview, pair_overview, pairs
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset
from distmeta.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Training shards of 4 of 12 classes."""
    out = tmp_path_factory.mktemp("partial") / "out"
    pack(patterns(), out, options(classes_per_shard=4, images_per_class=3))
    return Dataset(str(out))


def test_overview_counts_what_the_shards_hold(dataset: Dataset, partial: Dataset) -> None:
    assert [row[:-1] for row in overview(dataset)] == [
        ["train", "12", "3", "144", "2", "12", "6"],
        ["val", "6", "3", "72", "2", "6", "6"],
        ["test", "7", "3", "84", "2", "7", "6"],
    ]
    assert overview(partial)[0][:-1] == ["train", "12", "3", "144", "12", "4", "3"]


def test_pairs_are_counted_as_by_hand(partial: Dataset) -> None:
    meetings: Counter[tuple[int, int]] = Counter()
    for info in partial.shards("train"):
        meetings.update(itertools.combinations(sorted(set(info.class_ids)), 2))
    counts = np.array([meetings[pair] for pair in itertools.combinations(partial.class_ids("train"), 2)])
    found = pairs(partial, "train")
    assert (found.total, found.never, found.fewest) == (66, int((counts == 0).sum()), counts.min())
    assert found.mean == pytest.approx(counts.mean())
    assert found.variation == pytest.approx(counts.std() / counts.mean(), rel=1e-5)
    assert meetings[found.rarest] == counts.min()


def test_pairs_are_shown_only_where_a_shard_lacks_a_class(dataset: Dataset, partial: Dataset) -> None:
    assert pair_overview(dataset) == []
    assert pairs(dataset, "train").variation == 0
    rows = pair_overview(partial)
    assert [row[0] for row in rows] == ["train"]
    assert rows[0][-1].startswith("train-")


@pytest.mark.parametrize("task", [Task(5, 1, 3), Task(3, 2, 4), Task(2, 1, 1)])
def test_the_picture_shows_the_exported_episode(task: Task, dataset: Dataset, tmp_path: Path) -> None:
    draw_episode(dataset, "test", task, 3, tmp_path / "episode.png")
    export_episode(dataset, "test", task, 3, tmp_path / "episode")
    page = np.asarray(Image.open(tmp_path / "episode.png").convert("L"), dtype=float)
    shown = {role: _tiles(tmp_path / "episode" / role, dataset) for role in ("support", "query")}
    boundary = page.shape[1] - inspect_module._MARGIN - task.queries * (inspect_module._TILE + inspect_module._GAP)
    for role, tiles in shown.items():
        assert len(tiles) == task.way * (task.shot if role == "support" else task.queries)
        columns = {_column_of(page, tile) for tile in tiles}
        assert all((column < boundary) == (role == "support") for column in columns)
        assert len(columns) == (task.shot if role == "support" else task.queries)


def _tiles(folder: Path, dataset: Dataset) -> list[np.ndarray]:
    tiles = [inspect_module._tile(path.read_bytes(), dataset.manifest.preprocessing) for path in sorted(folder.rglob("*.png"))]
    return [np.asarray(tile.convert("L"), dtype=float) for tile in tiles]


def _column_of(page: np.ndarray, tile: np.ndarray) -> int:
    """Where the picture holds the tile, exactly."""
    windows = np.lib.stride_tricks.sliding_window_view(page, (1, tile.shape[1]))[:, :, 0]
    rows, columns = np.nonzero((windows == tile[40]).all(axis=-1))
    assert len(rows) == 1, "a tile stands in the picture once"
    return int(columns[0])


def test_what_cannot_be_exported_or_drawn_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"episode\.way=8 but split 'test'"):
        draw_episode(dataset, "test", Task(8, 1, 1), 0, tmp_path / "x.png")
    for path in (tmp_path / "absent" / "x.png", tmp_path / "x.unknown", tmp_path):
        with pytest.raises(DataError, match="cannot be written"):
            draw_episode(dataset, "test", Task(3, 1, 1), 0, path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        export_episode(dataset, "test", Task(3, 1, 1), 0, tmp_path / "file" / "episode")
    with pytest.raises(DataError, match="exists already"):
        export_episode(dataset, "test", Task(3, 1, 1), 0, tmp_path / "file")


def test_an_export_that_fails_leaves_nothing(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device"):
        export_episode(dataset, "test", Task(3, 1, 1), 0, tmp_path / "episode")
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_is_shortened_to_its_place() -> None:
    assert inspect_module._shortened(drawable("cat")) == drawable("cat")
    short = inspect_module._shortened(drawable("a very long name of a class " * 9))
    assert short.text.endswith("…")
    assert opened(None, 14).getlength(short.text) <= inspect_module._TEXT

"""Names of classes for people: from the user's file, from WordNet for ImageNet's ids, else the dataset's own."""

import csv
from pathlib import Path

import pytest
from conftest import options, patterns
from hypothesis import given
from hypothesis import strategies as st

from distmeta.data.class_names import imagenet_names, read_names, shown
from distmeta.data.episodes import Task
from distmeta.data.inspect import export_episode, pair_overview
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset
from distmeta.errors import DataError

WORD = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(str.isprintable)


def test_each_of_imagenets_thousand_ids_has_its_own_name() -> None:
    names = imagenet_names()
    assert len(names) == len(set(names.values())) == 1000
    assert names["n01440764"] == "tench"
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdigit() for wnid in names)


def test_the_users_name_comes_before_wordnets_and_that_before_the_datasets() -> None:
    assert shown("n01440764", {"n01440764": "a fish"}) == "a fish"
    assert shown("n01440764", {}) == "tench"
    assert shown("cat", {"dog": "Hund"}) == "cat"


@given(names=st.dictionaries(WORD, WORD, max_size=5))
def test_a_file_of_names_is_read_as_it_was_written(names: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("names") / "names.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(names.items())
    assert read_names(path) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat,Katze\ndog\n", "line 2 is not class,name"),
        (b"cat,Katze,tabby\n", "line 1 is not class,name"),
        (b"cat, \n", "line 1 is not class,name"),
        (b"cat,\x1b[2J\n", "line 1 is not class,name"),
        (b"cat," + b"x" * 101, "line 1 is not class,name"),
        (b"cat,\xff\n", "not UTF-8"),
    ],
)
def test_a_line_without_a_class_and_a_name_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_names(tmp_path / "names.csv")
    with pytest.raises(DataError, match=r"absent\.csv cannot be read"):
        read_names(tmp_path / "absent.csv")


def test_names_show_in_exports_and_tables_and_change_no_fingerprint(packed: Path, tmp_path: Path) -> None:
    names = {f"test-{number}": name for number, name in enumerate(["oak", "elm", "ELM", "../../up", "..", "red fox (wild)", "猫"])}
    pack(patterns(), tmp_path / "named", options(names=names))
    named = Dataset(str(tmp_path / "named"))
    assert named.manifest.fingerprint == Dataset(str(packed)).manifest.fingerprint
    export_episode(named, "test", Task(7, 1, 1), 0, tmp_path / "episode")
    folders = {path.name for path in (tmp_path / "episode" / "support").iterdir()}
    unchanged = {"oak", "red fox (wild)", "猫"}
    assert folders >= unchanged
    others = {folder.rpartition("-")[0]: int(folder.rpartition("-")[2]) for folder in folders - unchanged - {"up"}}
    assert set(others) == {"elm", "ELM", "class"}
    assert all(named.manifest.classes[class_id].name in names for class_id in others.values())
    assert {path.name for path in (tmp_path / "episode" / "query").iterdir()} == folders
    assert {path.name for path in tmp_path.iterdir()} == {"named", "episode"}


def test_rare_pairs_are_named(tmp_path: Path) -> None:
    names = {f"train-{number}": f"tree {number}" for number in range(12)}
    pack(patterns(), tmp_path / "named", options(names=names, classes_per_shard=4, images_per_class=3))
    (row,) = pair_overview(Dataset(str(tmp_path / "named")))
    assert row[-1].startswith("tree ")

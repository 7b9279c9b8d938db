"""Names of classes for people: those that the user gave to `pack`, else WordNet's for ImageNet's ids, else the dataset's own."""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from distmeta.errors import DataError

_IMAGENET = Path(__file__).with_name("imagenet_names.csv")  # the 1,000 classes of ILSVRC2012: first synonym of WordNet 3.0's synset
_LIMIT = 100  # characters of a name


@cache
def imagenet_names() -> dict[str, str]:
    """WordNet id → name, different for each id."""
    with _IMAGENET.open(encoding="utf-8", newline="") as file:
        return {wnid: name for wnid, name in csv.reader(file)}


def shown(name: str, given: Mapping[str, str]) -> str:
    """The name of class `name` for people; `given` holds those that came with the dataset."""
    return given.get(name) or imagenet_names().get(name, name)


def read_names(path: Path) -> dict[str, str]:
    """The names in a CSV file with rows `class,name`. Raises DataError naming the line that is not one."""
    names: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                if len(row) != 2 or not all(cell.strip() and cell.isprintable() and len(cell) <= _LIMIT for cell in row):
                    raise DataError(f"{path} line {number} is not class,name", f"write two texts of 1 to {_LIMIT} characters on each line")
                names[row[0].strip()] = row[1].strip()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "give a CSV file with rows class,name") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} cannot be read: it is not UTF-8", "save it as UTF-8") from None
    return names

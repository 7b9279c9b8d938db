"""The house keeps its floors: docs/architecture.md says which room may import what, and these tests read it there."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "distmeta"
PAGE = TESTS.parent / "docs" / "architecture.md"
WRITTEN = PACKAGE / "templates"  # files in its folders are copied to users by `distmeta init`, never imported
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py" and WRITTEN not in path.parent.parents)
TREES = {path: ast.parse(path.read_text()) for path in [*MODULES, *sorted(TESTS.rglob("*.py"))]}


class Room(NamedTuple):
    """libraries: those that only rooms which name them may import. config: "yes", "no", or the one module that may open it."""

    name: str
    libraries: set[str]
    config: str


def _rooms() -> list[Room]:
    lines = PAGE.read_text().split("## Rooms")[1].split("## Laws")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [Room(name.strip("`"), set(filter(None, libraries.split(", "))), config) for name, _, libraries, config in rows]


ROOMS = _rooms()
ORDER = [room.name for room in ROOMS]
RESERVED = set().union(*(room.libraries for room in ROOMS))


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(path: Path) -> Room:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return ROOMS[ORDER.index(name)]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        library, *inside = name.split(".")
        if library == "distmeta":
            assert inside, f"{path} imports the package's own face, which is above every room"
            assert inside[0] in ORDER, f"{path} imports {name} from the package's own face, which is above every room"
            assert ORDER.index(inside[0]) <= ORDER.index(room.name), f"{path} imports {name} from a higher floor"
        elif library in RESERVED:
            assert library in room.libraries, f"{path} may not know {library}"


def test_every_room_is_on_the_page() -> None:
    assert {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} == set(ORDER)


def test_the_config_is_opened_where_objects_are_built_from_it_only() -> None:
    for path in MODULES:
        may = room_of(path).config
        if may != "yes" and path.stem != may:
            assert not any(name.startswith("distmeta.config") for name in imports(path)), f"{path} may not open the config"


# They hold what they name: a folder's own class in each.
OWNERS = {"run_folder", "checkpoint", "model_folder", "metrics_folder", "sealed"}


def _names_in_a_run_folder() -> set[str]:
    """What the owners' modules call files and folders: their upper-case constants."""
    found = set()
    for path in (PACKAGE / "training" / f"{owner}.py" for owner in OWNERS):
        for node in TREES[path].body:
            if isinstance(node, ast.Assign):
                target, value = node.targets[0], node.value
                several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                values = value.elts if several else [value]  # type: ignore[attr-defined]
                found |= {one.value for one in values if isinstance(one, ast.Constant)}
    return {name for name in found if isinstance(name, str) and re.fullmatch(r"\.?[\w./]+", name)}


def _spelled(tree: ast.AST, names: set[str]) -> list[str]:
    """Names of files anywhere, and names of folders where they are joined to a path."""
    files = {name for name in names if "." in name}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    joined = [node.right for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)]
    folders = [str(node.value).split("/")[0] for node in joined if isinstance(node, ast.Constant)]
    return [text for text in texts if text.rpartition("/")[2] in files] + [folder for folder in folders if folder in names]


def test_no_other_module_spells_what_lies_in_a_run_folder() -> None:
    names = _names_in_a_run_folder()
    assert {"config.yaml", "result.json", "checkpoints", "best", "mlflow.json", "meta_params.safetensors", "trials"} <= names
    for path in MODULES:
        if path.stem not in OWNERS:
            assert _spelled(TREES[path], names) == [], path


@pytest.mark.parametrize("line", ["folder / 'best' / name", "open('result.json')", "f'{folder}/config.yaml'", "folder / 'trials'"])
def test_a_spelled_name_is_noticed(line: str) -> None:
    assert _spelled(ast.parse(line), _names_in_a_run_folder())


CLASSES = {node.name for path in MODULES for node in ast.walk(TREES[path]) if isinstance(node, ast.ClassDef)}


def test_a_constructor_of_ours_is_given_four_arguments_by_position_at_most() -> None:
    for path in MODULES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                assert name not in CLASSES or len(node.args) <= 4, f"{path}:{node.lineno}: call {name} by keyword"


def test_modules_and_functions_are_read_in_one_look() -> None:
    for path in MODULES:
        assert path.name == "config.py" or len(path.read_text().splitlines()) <= 350, f"{path} has more than 350 lines"
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                assert not body or (body[-1].end_lineno or 0) - body[0].lineno < 50, f"{path}: {node.name} has more than 50 lines"


def test_what_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    for found in re.findall(r"`((?:distmeta|docs|tests)/[\w./]+)`", text):
        assert (TESTS.parent / found).exists(), found
    laws = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(laws) > 10
    for file, name in laws:
        assert f"def {name}(" in (TESTS / file).read_text(), f"{file}::{name}"


def test_the_processes_that_ray_starts_import_little() -> None:
    """Every worker and every driver of a trial imports these first: each second there is paid by each of them at each start."""
    heavy = "{'mlflow', 'scipy.stats', 'matplotlib', 'optuna'}"
    code = f"import sys, distmeta.scale.worker, distmeta.sweep.trials; print(*{heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"

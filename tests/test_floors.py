"""The house keeps its floors: a room imports only from lower floors and from its own floor's earlier rooms."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "distmeta"
# Lower floors first; rooms of one floor in their order.
ROOMS = [
    "masking",
    "files",
    "yaml12",
    "errors",
    "seeds",
    "config",
    "data",
    "envs",
    "models",
    "learners",
    "training",
    "inference",
    "registry",
    "report",
    "assembly",
    "scale",
    "sweep",
    "library",
    "show",
    "cli",
    "__main__",
]
# Which rooms may import a heavy library at all.
MAY_KNOW = {
    "ray": {"scale", "sweep"},
    "optuna": {"sweep"},
    "mlflow": {"registry"},
    "webdataset": {"data"},
    "gymnasium": {"envs"},
    "upath": {"training"},
    "fsspec": {"data"},
    "typer": {"cli"},
    "jinja2": {"report"},
    "yaml": {"yaml12", "scale"},
}


def imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        library, *inside = name.split(".")
        if library == "distmeta" and inside and inside[0] in ROOMS:
            assert ROOMS.index(inside[0]) <= ROOMS.index(room), f"{path} imports {name} from a higher floor"
        if library in MAY_KNOW:
            assert room in MAY_KNOW[library], f"{path} may not know {library}"


def test_every_room_is_on_the_plan() -> None:
    assert {room_of(path) for path in MODULES} == set(ROOMS)


def test_the_config_is_opened_where_objects_are_built_from_it_only() -> None:
    for path in MODULES:
        # A run folder writes and reads back what a run is, and looks at none of it.
        closed = {"data", "envs", "models", "learners", "training", "inference", "report"}
        if room_of(path) in closed and path.name != "run_folder.py":
            assert not any(name.startswith("distmeta.config") for name in imports(path)), path

"""The user's own code that a run is made of: kept in the run folder when the run begins, and compared whenever the run is built again."""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

from distmeta.errors import ConfigError
from distmeta.models.construct import imported
from distmeta.training.sealed import SealedFolder

_INSTALLED = [Path(__file__).parent.parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]


def keep_code(paths: Mapping[str, str], folder: SealedFolder) -> None:
    """Copy the files behind import paths {the config's key: path} into `folder`, if they are the user's own, as MODULE.py."""
    files = own_files(paths)
    if files:
        with folder.filling() as new:
            for module, file in files.items():
                (new / f"{module}.py").write_bytes(file.read_bytes())


def check_code(paths: Mapping[str, str], folder: SealedFolder, run_folder: str) -> None:
    """Raises ConfigError if a file behind the import paths means something else than its copy in `folder`."""
    for module, file in own_files(paths).items():
        kept = folder.path / f"{module}.py"
        if kept.exists() and _meaning(before := kept.read_bytes()) != _meaning(now := file.read_bytes()):
            raise ConfigError(
                f"{file} has changed since the run in {run_folder} began (SHA-256 {_short(before)} → {_short(now)});"
                " only comments, docstrings and layout may",
                f"restore it from {kept}, or give --set run_folder=NEW to train with the changed code",
            )


def check_libraries(before: Mapping[str, str], now: Mapping[str, str], run_folder: str) -> None:
    """Raises ConfigError if a package that the user's own code needs has another version now than `before`."""
    for name, number in before.items():
        if now.get(name, number) != number:
            raise ConfigError(
                f"the run in {run_folder} began with {name} {number}; {now[name]} is installed now",
                f"pip install {name}=={number}, or give --set run_folder=NEW",
            )


def own_files(paths: Mapping[str, str]) -> dict[str, Path]:
    """The user's own files behind import paths {the config's key: path}: module → file. They are those of the modules that define what the
    paths name, and of the user's modules that these use.
    """
    return {module.__name__: file for module in _modules(paths) if (file := _own_file(module)) is not None}


def libraries(paths: Mapping[str, str], *objects: object) -> dict[str, str]:
    """The installed packages that the user's own files use, or that define the classes of `objects`: name → version. Python's own modules,
    torch and distmeta are left out.
    """
    used = {module.__name__ for module in _modules(paths)} | {type(part).__module__ for part in objects}
    modules = {name.partition(".")[0] for name in used} - {"torch", "distmeta"} - sys.stdlib_module_names
    packages = packages_distributions() if modules else {}
    return {name: version(name) for name in sorted({name for module in modules for name in packages.get(module, ())})}


def _modules(paths: Mapping[str, str]) -> list[ModuleType]:
    """The modules that define the import paths, and all modules that the user's modules import, sorted by name."""
    found: dict[str, ModuleType] = {}
    waiting = [module for key, path in paths.items() for module in _defining(path, imported(key, path))]
    while waiting:
        module = waiting.pop()
        if module.__name__ not in found:
            found[module.__name__] = module
            used = vars(module).values() if _own_file(module) is not None else ()
            waiting += [other for value in list(used) if (other := _module_of(value)) is not None]
    return [found[name] for name in sorted(found)]


def _defining(path: str, target: Any) -> list[ModuleType]:
    """The module that an import path names, and the one that defines what it names there."""
    parts = path.split(".")
    named = next(module for count in range(len(parts) - 1, 0, -1) if (module := sys.modules.get(".".join(parts[:count]))) is not None)
    defining = _module_of(target)
    return [named] if defining is None else [named, defining]


def _module_of(value: Any) -> ModuleType | None:
    """A module itself, or the module that a class or function says it was defined in."""
    if isinstance(value, ModuleType):
        return value
    name = getattr(value, "__module__", None) if isinstance(value, type) or callable(value) else None
    return sys.modules.get(name) if isinstance(name, str) else None


def _own_file(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    if name is None or not name.endswith(".py") or module.__name__ == "__main__":
        return None
    file = Path(name).absolute()
    return file if file.exists() and not any(file.is_relative_to(place) for place in _INSTALLED) else None


def _meaning(source: bytes) -> str:
    """What Python reads in a file, without comments, docstrings and layout."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return source.decode(errors="replace")
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _short(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]

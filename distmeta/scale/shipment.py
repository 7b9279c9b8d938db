"""The files sent with a job: this package, the config, and the files of --include."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from zipfile import ZipFile

from distmeta.config import Config
from distmeta.data.shards import MANIFEST
from distmeta.errors import ConfigError
from distmeta.registry.source import source_tags
from distmeta.scale.job import COMPARED, FACTS
from distmeta.training.run_folder import CONFIG

LIMIT_BYTES = 100 * 2**20  # Ray's head refuses larger uploads
# Never shipped: files that can be generated again, and ignore lists of other tools, which Ray would apply.
_LEFT_OUT = {"__pycache__", ".git", ".venv", "venv", ".gitignore", ".rayignore"}
_INSTALLERS = {"..", "__pycache__", "INSTALLER", "REQUESTED", "direct_url.json"}  # what installing adds to a wheel's files
_SECRET_NAMES = re.compile(
    r"\.env(\..+)?|\.(aws|ssh|gnupg|kube|docker|azure|netrc|pgpass|pypirc|npmrc|git-credentials)|gcloud|"
    r"id_(rsa|dsa|ecdsa|ed25519)|.+\.(pem|key|p12|pfx|jks|keytab|ppk|kdbx)|credentials(\.json)?",
    re.IGNORECASE,
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----")
_KEY_WITHIN = 4096  # bytes at a file's start that are searched for a key


def pack_job(folder: Path, config: Config | None, includes: list[Path], needs_tracking: bool = False) -> None:
    """Fill `folder` with the files of a job: this package (unpacked wheel), the config, the versions here, and `includes`.

    `needs_tracking`: the job finds MLflow by its nodes' environment alone.
    Raises ConfigError if one of the `includes` is missing, links out of its folder, may hold a credential or a packed dataset, has the name
    of another, or if together they are too large.
    """
    _check_names(includes)
    files = {path: dict(_files(path)) for path in includes}
    _check_size(files)
    for path, shipped in files.items():
        for name, file in shipped.items():
            target = folder / shipped_name(path) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    _unpack_package(folder)
    here = {name: version(name) for name in COMPARED}
    (folder / FACTS).write_text(json.dumps({"versions": here, "needs_tracking": needs_tracking, "source": source_tags()}))
    if config is not None:
        (folder / CONFIG).write_text(config.to_yaml())


def shipped_name(include: Path) -> str:
    """The name that a file or folder of --include has in the job's working folder."""
    return include.name or include.resolve().name


def _check_names(includes: list[Path]) -> None:
    taken = {"distmeta": "the package", CONFIG: "the config", FACTS: "a file of the job"}
    for path in includes:
        name = shipped_name(path)
        if name in taken:
            raise ConfigError(f"--include {path} would have the name of {taken[name]}: {name}", "rename it, or remove one of the two")
        taken[name] = f"--include {path}"


def _check_size(files: dict[Path, dict[str, Path]]) -> None:
    sizes = {str(path): sum(file.stat().st_size for file in shipped.values()) for path, shipped in files.items()}
    if sum(sizes.values()) > LIMIT_BYTES:
        listed = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
        raise ConfigError(
            f"--include comes to more than {LIMIT_BYTES / 1e6:.0f} MB: {listed}", "put large files on storage that all nodes share"
        )


def _files(include: Path) -> Iterator[tuple[str, Path]]:
    """The files to ship from a file or folder, each with its name inside. Raises ConfigError if one must not be shipped."""
    if not include.exists():
        raise ConfigError(f"--include {include} does not exist", "give a file or folder")
    _check_secret(include, include)
    if not include.is_dir():
        _check_file(include, include)
        yield "", include
        return
    for place, folders, names in os.walk(include):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for name in folders:
            _check_secret(include, Path(place, name))
            if Path(place, name).is_symlink():
                raise ConfigError(f"--include {include} holds {Path(place, name)}, a link to a folder", "include that folder itself")
        for name in sorted(set(names) - _LEFT_OUT):
            file = Path(place, name)
            _check_file(include, file)
            yield str(file.relative_to(include)), file


def _check_file(include: Path, file: Path) -> None:
    if file.name == MANIFEST and file != include:
        raise ConfigError(
            f"--include {include} holds a packed dataset; data is read from its location, never shipped", "put it on shared storage"
        )
    if not file.is_file():
        raise ConfigError(f"--include {include} holds {file}, which is not a file", "take it out of the folder")
    if file != include and file.is_symlink() and not file.resolve().is_relative_to(include.resolve()):
        raise ConfigError(f"--include {include} holds {file}, a link out of that folder", "copy what it leads to into the folder")
    _check_secret(include, file)
    with file.open("rb") as opened:
        if _PRIVATE_KEY.search(opened.read(_KEY_WITHIN)):
            raise _secret(include, file)


def _check_secret(include: Path, path: Path) -> None:
    if _SECRET_NAMES.fullmatch(shipped_name(path)):
        raise _secret(include, path)


def _secret(include: Path, path: Path) -> ConfigError:
    return ConfigError(
        f"--include {include} would ship {path}, which may hold a credential; everybody on the cluster can read what is shipped",
        "take it out of the folder, and keep credentials on the nodes",
    )


def _unpack_package(folder: Path) -> None:
    """distmeta and its metadata, as its wheel holds them. Ray would install a wheel together with torch, if it were given one."""
    source = Path(__file__).parents[2]
    if (source / "pyproject.toml").exists():
        _build_package(source, folder)
    else:
        _copy_installed(source, folder)


def _build_package(source: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # A copy, because building leaves files behind. Without isolation if setuptools is installed, because that needs no network.
        shutil.copytree(source / "distmeta", Path(scratch) / "distmeta", ignore=shutil.ignore_patterns(*_LEFT_OUT))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(source / name, scratch)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *_isolation(), "--wheel-dir", f"{scratch}/wheel", scratch]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            reason = (built.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ConfigError(f"the wheel of {source} cannot be built: {reason}", "pip install 'setuptools>=77' wheel, or fix the source")
        with ZipFile(next(Path(scratch, "wheel").glob("*.whl"))) as wheel:
            wheel.extractall(folder)


def _copy_installed(site: Path, folder: Path) -> None:
    """What the installed wheel's record lists, without its commands and without what pip notes about this machine."""
    installed = next(iter(distributions(name="distmeta", path=[str(site)])), None)
    listed = [file for file in (installed and installed.files) or [] if not _INSTALLERS.intersection(file.parts)]
    if not listed:
        raise ConfigError(f"distmeta in {site} has no record of its files", "uninstall distmeta with pip, and install it again")
    for file in listed:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(site / file, target)


def _isolation() -> list[str]:
    try:
        return ["--no-build-isolation"] if int(version("setuptools").partition(".")[0]) >= 77 else []
    except PackageNotFoundError:
        return []

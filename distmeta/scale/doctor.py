"""Checks installed packages and reachable services, with a remedy for each problem."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import psutil
import ray
import torch
from packaging.requirements import Requirement

from distmeta.data.shards import Dataset
from distmeta.data.workers import usable_cpus
from distmeta.errors import DataError, DistmetaError
from distmeta.learners.allocator import ALLOCATOR
from distmeta.masking import masked
from distmeta.models.native.library import KernelsUnavailable, find_compiler, library
from distmeta.registry.listing import registered_models
from distmeta.registry.tracking import answers, client
from distmeta.scale.cluster import connected

_LEAST_DISK_GB, _LEAST_SHARED_GB = 2, 0.5


class Finding(NamedTuple):
    """One line: the check, its result, and a remedy (empty if all is well)."""

    what: str
    found: str
    remedy: str = ""


def examine(uri: str, address: str | None, shards: str | None) -> Iterator[Finding]:
    """Check this machine, then the services it needs: the Ray cluster, MLflow and its registry, and the dataset if one is named."""
    yield from _packages()
    yield _accelerator()
    yield _kernels()
    yield _allocator()
    yield _space("disk here", Path.cwd(), _LEAST_DISK_GB, "free some, or work in another folder: run folders are written here")
    if Path("/dev/shm").is_dir():
        yield _space("shared memory", Path("/dev/shm"), _LEAST_SHARED_GB, "in a container, give --shm-size=2g: Ray keeps its objects there")
    yield _asked("Ray", lambda: _cluster(address))
    yield _asked("MLflow and its registry", lambda: _registry(uri))
    if shards is not None:
        yield _asked("dataset", lambda: _dataset(shards))


def _asked(what: str, ask: Callable[[], str]) -> Finding:
    try:
        return Finding(what, ask())
    except DistmetaError as error:
        return Finding(what, error.message, error.remedy)


def _packages() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("distmeta", version("distmeta"))
    for line in requires("distmeta") or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Finding:
    wanted = f"{requirement.name}{requirement.specifier}"
    remedy = f"pip install --constraint constraints.txt '{wanted}'"
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Finding(requirement.name, f"not installed; {wanted} is needed", remedy)
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding(requirement.name, f"{installed}; {wanted} is needed", remedy)
    return Finding(requirement.name, installed)


def _accelerator() -> Finding:
    cpu = f"{usable_cpus()} CPU cores ({torch.backends.cpu.get_cpu_capability()})"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Finding("accelerator", f"{names}; {cpu}")
    if torch.version.cuda and shutil.which("nvidia-smi"):
        return Finding(
            "accelerator", f"torch is built for CUDA {torch.version.cuda} but finds no GPU; {cpu}", "check nvidia-smi and the driver"
        )
    return Finding("accelerator", f"none; {cpu}")


def _kernels() -> Finding:
    """Compiles them if necessary. A run works without them, so missing kernels are not a fault."""
    try:
        kernels = library("float32")
    except KernelsUnavailable as error:
        return Finding("native kernels", f"none: {error.message}; training uses torch's, which are slower ({error.remedy})")
    return Finding("native kernels", f"{kernels.level}, probe {kernels.digest}, by {find_compiler()}")


def _allocator() -> Finding:
    if platform.libc_ver()[0] != "glibc":
        return Finding("allocator", "not glibc: the settings have no effect here")
    differing = [name for name, value in ALLOCATOR.items() if os.environ.get(name, value) != value]
    if differing:
        return Finding("allocator", f"{', '.join(differing)} differs from the workers' setting", f"unset {' '.join(differing)}")
    return Finding("allocator", f"workers get {', '.join(ALLOCATOR)}")


def _space(what: str, folder: Path, least_gb: float, remedy: str) -> Finding:
    free = psutil.disk_usage(str(folder)).free / 1e9
    return Finding(what, f"{free:.1f} GB free", "" if free >= least_gb else remedy)


def _cluster(address: str | None) -> str:
    with connected(address):
        held = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
    where = address or os.environ.get("RAY_ADDRESS") or "a local instance"
    return f"{where}: nodes {nodes}, CPUs {held.get('CPU', 0):g}, GPUs {held.get('GPU', 0):g}"


def _registry(uri: str) -> str:
    with answers(uri):
        count = sum(1 for _ in registered_models(client(uri)))
    return f"{masked(uri)}: {count} registered models"


def _dataset(location: str) -> str:
    """Raises DataError if a shard is missing or of another size."""
    dataset = Dataset(location)
    for info in dataset.manifest.shards:
        size = dataset.size(info)
        if size != info.bytes:
            raise DataError(
                f"{dataset.path(info)} has {size} bytes; its manifest says {info.bytes}", "copy it again; distmeta verify checks in detail"
            )
    classes, megabytes = len(dataset.manifest.classes), sum(info.bytes for info in dataset.manifest.shards) / 1e6
    return f"{location}: {dataset.manifest.dataset}, {classes} classes in {len(dataset.manifest.shards)} shards, {megabytes:.0f} MB"

"""The compiled blocks: built from this folder's C++ at first use and kept in the user's cache.

A child process tries a library before this process loads it, because a library for another CPU would kill the process.

A file in the cache is named by a hash of its sources and by its own SHA-256. So a changed source never matches an old library, and a
damaged library is detected and compiled again. The compiler is given a CPU level, never "this machine", so that one file serves all
machines of that level.
"""

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor

from distmeta.errors import DistmetaError

Precision = Literal["float32", "float64"]

COMPILERS = ("g++", "clang++")
# torch's name of this CPU's capability → the level for which the blocks are compiled.
LEVELS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
# No contraction: the bits would otherwise depend on the compiler's choice of fused operations.
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
_REAL = {"float32": "float", "float64": "double"}
_COMPILE_S, _TRY_S = 300, 60
_TRY = "import ctypes, sys; probe = ctypes.CDLL(sys.argv[1]).probe; probe.restype = ctypes.c_uint64; print(f'{probe():016x}')"

_int, _long, _double, _pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
_SIZES = [_int] * 5
_IMAGES = [_pointer] + [_long] * 4
_FUNCTIONS = {
    "block_forward": [*_SIZES, *[_pointer] * 4, _double, *[_pointer] * 6],
    "block_evaluate": [*_SIZES, *[_pointer] * 6, _double, _pointer],
    "block_backward": [*_SIZES, *[_pointer] * 16],
    "block_second": [*_SIZES, *[_pointer] * 22],
    "first_block_forward": [*_SIZES, *_IMAGES, *[_pointer] * 3, _double, *[_pointer] * 6],
    "first_block_evaluate": [*_SIZES, *_IMAGES, *[_pointer] * 5, _double, _pointer],
    "first_block_backward": [*_SIZES, *_IMAGES, *[_pointer] * 13],
    "first_block_second": [*_SIZES, *_IMAGES, *[_pointer] * 17],
    "convolution": [*_SIZES, *[_pointer] * 3],
    "convolution_gradients": [*_SIZES, *[_pointer] * 5],
    "convolution_gradients_twice": [*_SIZES, *[_pointer] * 8],
}


class KernelsUnavailable(DistmetaError):
    """The native blocks are not available on this machine."""


class Library:
    """The loaded functions for one precision. `level` is the CPU level they were compiled for, `digest` the result of their probe."""

    def __init__(self, path: Path, precision: Precision, level: str, digest: str) -> None:
        self.precision, self.level, self.digest = precision, level, digest
        self.dtype: torch.dtype = getattr(torch, precision)
        loaded = ctypes.CDLL(str(path))
        self._functions = {name: getattr(loaded, name) for name in _FUNCTIONS}
        for name, function in self._functions.items():
            function.argtypes, function.restype = _FUNCTIONS[name], ctypes.c_int

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function of blocks.cpp with the addresses of tensors. The last tensor is a result. If it has no elements, nothing is
        computed.
        """
        if isinstance(arguments[-1], FakeTensor):
            return
        if self._functions[name](*(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)):
            raise MemoryError(f"no memory for the working arrays of {name}")

    def __deepcopy__(self, memo: Any) -> "Library":
        return self

    def __str__(self) -> str:
        return f"native {self.level} {self.digest}"


@cache
def library(precision: Precision) -> Library:
    """The library of this process. Raises KernelsUnavailable, with a remedy, if there is no compiler, no such CPU, or no working result."""
    level = LEVELS.get(torch.backends.cpu.get_cpu_capability())
    if level is None:
        raise KernelsUnavailable("native kernels need an x86-64 CPU with AVX2", "set train.kernels=torch or auto, or use other machines")
    compiler = find_compiler()
    command = _command(compiler, level, precision)
    with _cache_folder() as folder:
        path = _kept(folder, key := _key(command))
        digest = None if path is None else _digest(path)
        if path is None or digest is None:
            path = _build(command, folder, key)
            digest = _digest(path)
        if digest is None:
            raise KernelsUnavailable(f"native kernels compiled by {compiler} for {level} do not run here", "set train.kernels=torch")
        return Library(path, precision, level, digest)


def prebuild() -> list[Path]:
    """Compile the blocks for every level and precision into the user's cache, whatever this machine's CPU; nothing is run.

    An image's build calls this, so that its containers need not compile. Raises KernelsUnavailable.
    """
    compiler = find_compiler()
    commands = [_command(compiler, level, precision) for level in LEVELS.values() for precision in _REAL]
    with _cache_folder() as folder:
        paths = [_kept(folder, _key(command)) or _build(command, folder, _key(command)) for command in commands]
    if not all(path.exists() for path in paths):
        raise KernelsUnavailable("the cache of native kernels cannot be written", "set XDG_CACHE_HOME to a folder of your own")
    return paths


def find_compiler() -> str:
    """The path of the first C++ compiler. Raises KernelsUnavailable."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelsUnavailable(f"native kernels need a C++ compiler; {' and '.join(COMPILERS)} are not installed", "install g++")
    return compiler


def _command(compiler: str, level: str, precision: str) -> list[str]:
    return [compiler, *FLAGS, f"-march={level}", f"-DREAL={_REAL[precision]}"]


def sources() -> list[Path]:
    return sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".h", ".cpp"))


def _key(command: list[str]) -> str:
    """A hash of everything that determines the compiled bytes."""
    told = subprocess.run([command[0], "--version"], capture_output=True, timeout=_TRY_S, check=False).stdout
    digest = hashlib.sha256(repr(command).encode() + told)
    for path in sources():
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:32]


@contextmanager
def _cache_folder() -> Iterator[Path]:
    """The user's folder for libraries, or a temporary one if that is not writable or is open to others."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distmeta" / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        ours = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
        usable = ours
    except OSError:
        usable = False
    if usable:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="distmeta-native-") as own:
        yield Path(own)


def _kept(folder: Path, key: str) -> Path | None:
    """The library of that key whose content matches its name. Damaged ones are removed."""
    for path in sorted(folder.glob(f"{key}-*.so")):
        if path.stem.partition("-")[2] == _sha256(path):
            return path
        with suppress(OSError):
            path.unlink()
    return None


def _build(command: list[str], folder: Path, key: str) -> Path:
    """Compile under a name unique to this process, then rename the library, so that it appears only when it is complete."""
    source = Path(__file__).with_name("blocks.cpp")
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
        made = Path(scratch) / "blocks.so"
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(made)], capture_output=True, text=True, timeout=_COMPILE_S, check=False, env=_plain()
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KernelsUnavailable(f"{command[0]} cannot compile the native kernels: {error}", "set train.kernels=torch") from None
        if done.returncode or not made.exists():
            reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
            raise KernelsUnavailable(f"{command[0]} cannot compile the native kernels: {reason}", "use g++ 11 or clang++ 12, or newer")
        return made.replace(folder / f"{key}-{_sha256(made)}.so")


def _digest(path: Path) -> str | None:
    """The probe's result, or None if it failed. It runs in a child process, because a wrong or damaged library may kill the process."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY, str(path)], capture_output=True, text=True, timeout=_TRY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _plain() -> dict[str, str]:
    """This process's environment with compilers' messages in English."""
    return os.environ | {"LC_ALL": "C"}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Native kernels are built, kept and chosen so that no damaged cache, missing compiler or unlike node ends in a crash."""

import os
import shutil
import stat
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from distmeta.config import Config, validate
from distmeta.errors import ClusterError, ConfigError, RunError
from distmeta.models import build_model
from distmeta.models.native import library as built
from distmeta.models.native.library import KernelsUnavailable, Library, library
from distmeta.scale import kernels
from distmeta.training.run_folder import RunFolder

COMPILER = next(filter(None, map(built.shutil.which, built.COMPILERS)), None)
SOURCES = Path(built.__file__).parent
needs_compiler = pytest.mark.skipif(
    COMPILER is None or torch.backends.cpu.get_cpu_capability() not in built.LEVELS, reason="no compiler, or no CPU for it"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the user's, and a small library in place of the real one, which takes seconds to compile."""
    small = tmp_path / "source"
    small.mkdir()
    names = "".join(f"int {name}() {{ return 0; }}\n" for name in built._FUNCTIONS)
    (small / "blocks.cpp").write_text(f'extern "C" {{ unsigned long probe() {{ return 7; }}\n{names}}}\n')
    (small / "library.py").touch()
    monkeypatch.setattr(built, "__file__", str(small / "library.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield tmp_path / "cache" / "distmeta" / "native"
    library.cache_clear()


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.so"))


def anew() -> Library:
    library.cache_clear()
    return library("float32")


@needs_compiler
def test_a_library_is_built_once_into_a_folder_of_the_users_own(cache: Path) -> None:
    assert anew().digest == f"{7:016x}"
    (path,) = kept(cache)
    before = path.stat().st_mtime_ns
    anew()
    assert [p.stat().st_mtime_ns for p in kept(cache)] == [before]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert [p.name for p in cache.iterdir()] == [path.name]


@needs_compiler
@pytest.mark.parametrize("left", [None, 0, 1000])
def test_a_damaged_library_is_built_again(cache: Path, left: int | None) -> None:
    """Cut to so many bytes, or gone."""
    anew()
    (path,) = kept(cache)
    whole = path.read_bytes()
    path.unlink()  # this process has loaded the file itself
    if left is not None:
        path.write_bytes(whole[:left])
    anew()
    assert [p.read_bytes() for p in kept(cache)] == [whole]


@needs_compiler
def test_a_changed_source_is_compiled_anew(cache: Path) -> None:
    anew()
    source = Path(built.__file__).with_name("blocks.cpp")
    source.write_text(source.read_text().replace("return 7", "return 8"))
    assert anew().digest == f"{8:016x}"


@needs_compiler
def test_a_library_that_kills_its_process_kills_the_child_only(cache: Path) -> None:
    """As one compiled for another CPU does, by an illegal instruction."""
    source = Path(built.__file__).with_name("blocks.cpp")
    source.write_text(source.read_text().replace("return 7;", "__builtin_trap(); return 7;"))
    with pytest.raises(KernelsUnavailable, match="do not run here"):
        anew()


@needs_compiler
@pytest.mark.parametrize("obstacle", ["a file in its place", "open to others"])
def test_a_cache_that_cannot_be_used_is_done_without(cache: Path, obstacle: str) -> None:
    cache.parent.mkdir(parents=True)
    if obstacle == "a file in its place":
        cache.touch()
    else:
        cache.mkdir()
        cache.chmod(0o777)
    assert anew().digest == f"{7:016x}"
    assert kept(cache) == []


@needs_compiler
def test_a_full_disk_is_done_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(built.tempfile, "TemporaryFile", full)
    assert anew().digest == f"{7:016x}"
    assert kept(cache) == []


@needs_compiler
def test_an_image_holds_builds_for_every_level_and_precision(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are built from finds them: this machine's is not compiled again."""
    paths = built.prebuild()
    assert sorted(paths) == kept(cache)
    assert len(paths) == len(built.LEVELS) * 2
    monkeypatch.setattr(built, "_build", None)
    assert anew().digest == f"{7:016x}"
    assert built.prebuild() == paths


@needs_compiler
def test_builds_that_cannot_be_kept_are_refused(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(built.KernelsUnavailable, match="cannot be written"):
        built.prebuild()


@needs_compiler
def test_eight_processes_at_once_find_or_build_one_library(cache: Path) -> None:
    code = (
        "import sys; from distmeta.models.native import library as built; built.__file__ = sys.argv[1]; "
        "print(built.library('float32').digest)"
    )
    command = [sys.executable, "-c", code, built.__file__]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) for _ in range(8)]
    assert [process.communicate(timeout=300)[0].strip() for process in racing] == [f"{7:016x}"] * 8
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_compiler
def test_a_compilers_error_is_told_in_one_line(cache: Path) -> None:
    Path(built.__file__).with_name("blocks.cpp").write_text("this is no program")
    with pytest.raises(KernelsUnavailable, match=r"cannot compile the native kernels: .*error") as caught:
        anew()
    assert "\n" not in caught.value.message


def test_without_a_compiler_the_remedy_is_to_install_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KernelsUnavailable, match="need a C\\+\\+ compiler") as caught:
        anew()
    assert caught.value.remedy == "install g++"


def test_another_cpu_has_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with pytest.raises(KernelsUnavailable, match="AVX2"):
        anew()


def config(tmp_path: Path, **train: Any) -> Config:
    return validate({"run_folder": str(tmp_path / "run"), "data": {"shards": "x"}, "train": train}, "test")


def settled(config: Config, device: str = "cpu", filters: int = 16) -> tuple[str, str]:
    network = build_model("conv4", (1, 28, 28), 5, filters=filters)
    run: Any = types.SimpleNamespace(config=config, folder=RunFolder(config.run_folder), learner=types.SimpleNamespace(model=network))
    return kernels.settled(run, device)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster of this node alone, and what the kernels are here; a tuple is a failure and its remedy."""
    told: dict[str, Any] = {"answer": "native x86-64-v3 1"}
    node = {"Alive": True, "NodeID": "a", "NodeManagerHostname": "here", "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(kernels.ray, "get_runtime_context", lambda: types.SimpleNamespace(get_node_id=lambda: "a"))
    monkeypatch.setattr(kernels.ray, "nodes", lambda: [node])
    monkeypatch.setattr(kernels.ray, "get", lambda asked: [])
    monkeypatch.setattr(kernels, "_tried", lambda precision: told["answer"])
    return told


def test_auto_is_native_where_every_node_can(tmp_path: Path, nodes: dict[str, Any]) -> None:
    assert settled(config(tmp_path)) == ("native", "")
    assert settled(config(tmp_path, kernels="torch")) == ("torch", "")


def test_auto_is_torch_where_a_node_cannot_and_says_so_once(tmp_path: Path, nodes: dict[str, Any]) -> None:
    nodes["answer"] = ("native kernels need a C++ compiler", "install g++")
    chosen, told = settled(config(tmp_path))
    assert chosen == "torch"
    assert told.startswith("on node ")
    assert told.endswith("native kernels need a C++ compiler; training uses torch's kernels, which are slower")
    with pytest.raises(ClusterError, match=r"train.kernels=native, but on node .* need a C\+\+ compiler\ninstall g\+\+"):
        settled(config(tmp_path, kernels="native"))


@pytest.mark.parametrize(
    ("train", "device", "filters", "rule"),
    [
        ({}, "cuda", 16, "not on cuda"),
        ({"threads_per_worker": 2}, "cpu", 16, "train.threads_per_worker=2"),
        ({}, "cpu", 10, "no block of this network"),
    ],
)
def test_where_native_has_nothing_to_do_auto_is_torch(
    tmp_path: Path, nodes: dict[str, Any], train: dict[str, Any], device: str, filters: int, rule: str
) -> None:
    assert settled(config(tmp_path, **train), device, filters) == ("torch", "")
    with pytest.raises(ConfigError, match=rule):
        settled(config(tmp_path, kernels="native", **train), device, filters)


@pytest.mark.parametrize(("stored", "kept"), [("native", "native"), ("torch", "torch"), ("auto", "torch")])
def test_a_run_goes_on_with_what_it_began_with(tmp_path: Path, nodes: dict[str, Any], stored: str, kept: str) -> None:
    """A run from before there was a choice, whose config says nothing, computed with torch's."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(config(tmp_path, kernels=stored).to_yaml())
    assert settled(config(tmp_path)) == (kept, "")


def test_a_worker_that_cannot_is_refused_with_its_node_and_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(precision: str) -> Library:
        raise KernelsUnavailable("native kernels need a C++ compiler", "install g++")

    monkeypatch.setattr(kernels, "library", unavailable)
    assert kernels.of_worker(config(tmp_path, kernels="torch")) is None
    with pytest.raises(RunError, match=f"on node {kernels.socket.gethostname()} native kernels need a C\\+\\+ compiler\ninstall g\\+\\+"):
        kernels.of_worker(config(tmp_path, kernels="native"))


def program(tmp_path: Path, real: str, *flags: str) -> str:
    """What tests/sanitized.cpp prints, compiled with `flags`. Fails if a sanitizer finds anything."""
    path = tmp_path / "program"
    source = Path(__file__).with_name("sanitized.cpp")
    command = [built.find_compiler(), *built.FLAGS, f"-DREAL={real}", f"-I{SOURCES}", *flags, str(source), "-o", str(path)]
    subprocess.run([part for part in command if part not in ("-shared", "-fPIC")] + ["-pthread"], check=True, timeout=500)
    done = subprocess.run([str(path)], capture_output=True, text=True, timeout=500, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
@pytest.mark.parametrize("real", ["float", "double"])
def test_sanitizers_find_nothing(tmp_path: Path, real: str, sanitizers: str) -> None:
    level = f"-march={built.LEVELS[torch.backends.cpu.get_cpu_capability()]}"
    program(tmp_path, real, level, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None or torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs a CPU of both levels")
@pytest.mark.parametrize("real", ["float", "double"])
def test_builds_for_both_levels_compute_the_same_bits(tmp_path: Path, real: str) -> None:
    assert program(tmp_path, real, "-march=x86-64-v3") == program(tmp_path, real, "-march=x86-64-v4")


@needs_compiler
@pytest.mark.slow
def test_an_installed_wheel_brings_the_source_along(tmp_path: Path) -> None:
    """Not only an editable install: the kernels are built from what the wheel holds."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    copy = tmp_path / "source"
    shutil.copytree(SOURCES.parents[1], copy / "distmeta")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCES.parents[2] / name, copy)
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(copy)], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "installed"), str(wheel)], check=True, timeout=300)
    code = "from distmeta.models.native import library as built; print(built.__file__); print(built.library('float32'))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    where, found = done.stdout.splitlines()
    assert where.startswith(str(tmp_path / "installed"))
    assert found.startswith("native x86-64-v")

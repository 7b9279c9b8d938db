"""What --include ships: what it names and nothing else, and never a credential."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from distmeta.errors import ConfigError
from distmeta.scale import shipment
from distmeta.scale.shipment import pack_job

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipment, "_unpack_package", lambda folder: None)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "net.py").write_text("width = 3")
    (tmp_path / "job").mkdir()
    return folder


def shipped(*includes: Path) -> set[str]:
    job = includes[0].absolute().parent / "job"
    pack_job(job, None, list(includes))
    return {str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()} - {"job.json"}


def _write(name: str, text: str = "x") -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return act


def _climbing(folder: Path) -> None:
    (folder.parent / "outside").write_text("x")
    (folder / "x").symlink_to("../outside")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link out of it": (lambda folder: (folder / "passwd").symlink_to("/etc/passwd"), "holds .*passwd, a link out of that folder"),
    "a link that climbs": (_climbing, "a link out of that folder"),
    "a link to a folder": (lambda folder: (folder / "home").symlink_to("/root"), "holds .*home, a link to a folder"),
    "a link to itself": (lambda folder: (folder / "up").symlink_to("."), "a link to a folder"),
    "a file that is a link to itself": (lambda folder: (folder / "loop").symlink_to("loop"), "holds .*loop, which is not a file"),
    "a pipe": (lambda folder: os.mkfifo(folder / "pipe"), "holds .*pipe, which is not a file"),
    "a link that leads nowhere": (lambda folder: (folder / "gone").symlink_to("nowhere"), "holds .*gone, which is not a file"),
    ".env": (_write(".env"), r"would ship .*\.env, which may hold a credential"),
    ".env.local": (_write("deep/.env.local"), r"would ship .*\.env.local"),
    ".aws": (_write(".aws/credentials"), r"would ship .*\.aws"),
    ".ssh": (_write(".ssh/known_hosts"), r"would ship .*\.ssh"),
    ".netrc": (_write(".netrc"), r"would ship .*\.netrc"),
    ".kube": (_write("a/.kube/config"), r"would ship .*\.kube"),
    "a key by its name": (_write("certificates/server.pem"), "would ship .*server.pem"),
    "a key in capitals": (_write("SERVER.KEY"), "would ship .*SERVER.KEY"),
    "id_ed25519": (_write("id_ed25519"), "would ship .*id_ed25519"),
    "a key by its content": (_write("notes.txt", KEY), "would ship .*notes.txt"),
    "a packed dataset": (_write("data/manifest.json"), "holds a packed dataset"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_is_refused_with_the_file_that_must_not_travel(name: str, mine: Path) -> None:
    act, message = HOSTILE[name]
    act(mine)
    with pytest.raises(ConfigError, match=message) as refused:
        shipped(mine)
    assert refused.value.remedy
    assert list((mine.parent / "job").iterdir()) == [], "nothing is copied before all is looked at"


def test_a_file_is_refused_as_a_folder_is(mine: Path) -> None:
    for name, text in ((".env", "x"), ("server.key", "x"), ("notes.txt", KEY)):
        _write(name, text)(mine)
        with pytest.raises(ConfigError, match=f"would ship .*{name}"):
            shipped(mine / name)


def test_the_remedy_works(mine: Path) -> None:
    _write(".env")(mine)
    with pytest.raises(ConfigError, match="take it out of the folder"):
        shipped(mine)
    (mine / ".env").unlink()
    assert shipped(mine) == {"mine/net.py"}


def test_what_is_named_is_shipped_whatever_other_tools_ignore(mine: Path) -> None:
    for name in ("results/a.json", ".gitignore", ".rayignore", "deep/.gitignore"):
        _write(name, "*\n")(mine)
    assert shipped(mine) == {"mine/net.py", "mine/results/a.json"}


def test_what_is_counted_is_what_is_sent(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipment, "LIMIT_BYTES", 100)
    for name in (".git/objects/pack", "__pycache__/net.pyc", ".venv/lib/torch.so", "venv/lib/torch.so"):
        _write(name, "x" * 1000)(mine)
    (mine / "same.py").symlink_to("net.py")
    assert shipped(mine) == {"mine/net.py", "mine/same.py"}
    _write("large.bin", "x" * 200)(mine)
    with pytest.raises(ConfigError, match="--include comes to more than"):
        shipped(mine)


def test_two_of_one_name_are_refused(mine: Path) -> None:
    other = mine / "deep" / "mine"
    _write("deep/mine/net.py")(mine)
    with pytest.raises(ConfigError, match=r"--include .*deep/mine would have the name of --include .*mine: mine"):
        shipped(mine, other)
    for name in ("distmeta/x.py", "config.yaml", "job.json"):
        _write(name)(mine.parent)
        with pytest.raises(ConfigError, match=f"would have the name of .*: {name.partition('/')[0]}"):
            shipped(mine, mine.parent / name.partition("/")[0])


def test_the_working_folder_goes_by_its_own_name(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    pack_job(mine.parent / "job", None, [Path()])
    assert (mine.parent / "job" / "mine" / "net.py").exists()

"""What others wrote: datasets, run folders, servers' answers (E, F)."""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from case import Ask, Case

from cases.folders import _after, _write

Content = dict[str, Any]


def _manifest(change: Callable[[Content], object], *ask: str) -> Callable[[], Ask]:
    """A manifest changed by somebody who computes its fingerprint as well."""

    def act() -> None:
        path = Path("data/manifest.json")
        content = json.loads(path.read_text())
        change(content)
        rest = {key: value for key, value in content.items() if key != "fingerprint"}
        fingerprint = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(content | {"fingerprint": fingerprint}))

    return _after(act, *ask)


def _shard(**changes: Any) -> Callable[[Content], object]:
    return lambda content: content["shards"][0].update(changes)


def _class(**changes: Any) -> Callable[[Content], object]:
    return lambda content: content["classes"][0].update(changes)


def _preprocessing(**changes: Any) -> Callable[[Content], object]:
    return lambda content: content["preprocessing"].update(changes)


MANIFESTS: dict[str, Callable[[Content], object]] = {
    "a SHA-256 that is a path": _shard(sha256="/home/user/.ssh/id_rsa"),
    "a name that is a path": _shard(name="../../home/.ssh/id_rsa"),
    "a name that is absolute": _shard(name="/etc/passwd"),
    "a name that is a pipe": _shard(name="pipe:touch owned"),
    "a name with a null": _shard(name="a\0b"),
    "a size below 0": _shard(bytes=-1),
    "a size of 10^30": _shard(bytes=10**30),
    "a size that is text": _shard(bytes="many"),
    "offsets below 0": _shard(offsets=[-1] * 72),
    "offsets that are text": _shard(offsets="%%%"),
    "offsets of 2^64": _shard(offsets=[2**64] * 72),
    "offsets that nest": _shard(offsets=[[[1]]]),
    "no shards": lambda content: content.update(shards=[]),
    "no classes": lambda content: content.update(classes=[]),
    "one shard twice": lambda content: content["shards"].append(content["shards"][0]),
    "999 images": _class(images=999),
    "-5 images": _class(images=-5),
    "a class of another split": _class(split="secret"),
    "a class without a name": _class(name=""),
    "a size of 10^9 pixels": _preprocessing(image_size=10**9),
    "a size of 0 pixels": _preprocessing(image_size=0),
    "a size of -1 pixels": _preprocessing(image_size=-1),
    "two channels": _preprocessing(channels=2),
    "means of three channels for one": _preprocessing(mean=[0.1, 0.2, 0.3]),
    "no mean": _preprocessing(mean=[]),
    "a std of 0": _preprocessing(std=[0.0]),
    "an infinite mean": _preprocessing(mean=[1e999]),
    "a mean of 1e300": _preprocessing(mean=[1e300]),
    "a value range backwards": _preprocessing(value_range=[1, 0]),
    "a way to resize": _preprocessing(resize="pipe:touch owned"),
    "a later version": lambda content: content.update(format_version=99),
    "an older version": lambda content: content.update(format_version=1),
    "a version that is a list": lambda content: content.update(format_version=[2]),
    "a key of its own": lambda content: content.update(hook="pipe:touch owned"),
    "a source that is a list": lambda content: content.update(source=[1]),
    "a format that is none": lambda content: content.update(image_format="exe"),
}
LOCATIONS = {
    "/nowhere": "/nowhere is not a packed dataset",
    "": "location of the dataset is empty|data.shards is missing",
    "run.yaml": "run.yaml",
    "/dev/zero": "/dev/zero",
    "http://127.0.0.1:9/x": "http://127.0.0.1:9/x",
    "http://me:hunter2@127.0.0.1:9/x": "http://127.0.0.1:9/x",
    "http://127.0.0.1:9/x?token=hunter2": "127.0.0.1:9",
    "http://[::1": "http",
    "ftp://127.0.0.1:9/x": "ftp",
    "nonsense://x": "nonsense://x cannot be read",
    "file:///nowhere": "nowhere",
    "memory://x": "memory://x",
    "zip://x::http://127.0.0.1:9/x.zip": "zip|127.0.0.1",
    "pipe:false": "does not say which file to read",
    "x" * 5000: "x",
    "a\0b": "a",
    "\x1b[2J": "packed dataset|printable text",
}


ANSWERS = {  # what is sent first, and what then without end
    "drips": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    "endless": (b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16)),
    "garbage": (b"\xff\xfe\x00garbage" * 1000, b""),
    "silent": (b"", b""),
    "closes": (b"", b""),
    "redirects": (b"HTTP/1.1 302 SlotVectors\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", b""),
}


def _serve_badly(kind: str, listening: socket.socket) -> None:
    """Answer every connection as no server should."""
    first, then = ANSWERS[kind]

    def answer(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(first)
            while then:
                connection.sendall(then)
                time.sleep(0.5 if len(then) == 1 else 0)
            time.sleep(120 if kind == "silent" else 0)

    while True:
        connection, _ = listening.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def serving(kind: str, *ask: str) -> Callable[[], Ask]:
    """A server on this machine whose address stands for {} in what is asked."""

    def arrange() -> Ask:
        listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_serve_badly, args=(kind, listening), daemon=True).start()
        return [part.format(f"http://127.0.0.1:{listening.getsockname()[1]}") for part in ask]

    return arrange


def _config(**sections: Any) -> Callable[[], object]:
    """The run folder's config, as somebody else changed it."""

    def act() -> None:
        path = Path("run/config.yaml")
        content = yaml.safe_load(path.read_text())
        for key, value in sections.items():
            content[key] = content.get(key, {}) | value if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(content))

    return act


RUNS: dict[str, Callable[[], object]] = {
    "a command for shards": _config(data={"shards": "pipe:touch owned; cat {name}"}),
    "a URL for shards": _config(data={"shards": "http://127.0.0.1:9/x"}),
    "a cache in the home": _config(data={"cache": {"folder": "/root"}}),
    "a network": _config(model={"name": "this.Network"}),
    "a learner": _config(learner={"name": "antigravity.Learner"}),
    "a domain": _config(data={"domain": "antigravity.Domain"}),
    "an environment": _config(
        data={"domain": "reinforcement", "shards": None, "settings": {"environment": "gymnasium", "options": {"id": "this:Env"}}}
    ),
    "another run folder": _config(run_folder="/etc"),
    "a model name that climbs": _config(tracking={"model": "../../x"}),
    "a tracking URI elsewhere": _config(tracking={"uri": "http://127.0.0.1:9"}),
    "weights elsewhere": _config(init_from="http://127.0.0.1:9/weights.safetensors"),
}


QUICK = ("--set", "data.read_attempts=1", "--set", "data.read_timeout_s=2")


def _datasets() -> Iterator[Case]:
    for name, change in MANIFESTS.items():
        yield Case(
            f"verify a manifest with {name}", _manifest(change, "verify", "data"), "manifest.json", real=name == "a SHA-256 that is a path"
        )
        train = ("train", "run.yaml", "--set", "data.cache.folder=cache")
        yield Case(f"train on a manifest with {name}", _manifest(change, *train), "manifest.json", (1, 2), seldom=name != "a std of 0")
    for location, says in LOCATIONS.items():
        yield Case(
            f"train at {location[:40]!r}", lambda at=location: ("train", "run.yaml", *QUICK, "--set", f"data.shards={at}"), says, (1, 2)
        )
        if "127.0.0.1" not in location:
            yield Case(f"verify {location[:40]!r}", lambda at=location: ("verify", at), says, (1, 2), real=location == "/dev/zero")
    for kind in ("drips", "endless", "garbage", "silent", "closes", "redirects"):
        ask = ("train", "run.yaml", "--set", "data.shards={}", "--set", "data.read_attempts=1", "--set", "data.read_timeout_s=2")
        yield Case(f"data from a server that {kind}", serving(kind, *ask), "127.0.0.1.*manifest.json")


def _runs() -> Iterator[Case]:
    for name, act in RUNS.items():
        for verb in ("report", "publish", "sync"):
            yield Case(
                f"{verb} a received run with {name}",
                _after(act, verb, "run"),
                ".",
                (0, 1, 2),
                real=(verb, name) == ("report", "a command for shards"),
            )
    for verb in ("report", "publish", "sync"):
        for place in (
            "nowhere",
            "",
            "data",
            "run.yaml",
            "http://127.0.0.1:9/run",
            "s3:/",
            "nonsense://run",
            "memory://run",
            "x" * 5000,
            "a\0b",
        ):
            yield Case(
                f"{verb} the folder {place[:20]!r}",
                lambda verb=verb, place=place: (verb, place),
                ".",
                (1, 2),
                real=(verb, place) == ("report", "nowhere"),
                seldom=verb != "report",
            )


def _configs() -> Iterator[Case]:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    for name, text in {
        "an alias bomb": bomb,
        "an alias of itself": "a: &a [*a]\n",
        "a Python object": "seed: !!python/object/apply:os.system ['touch owned']\n",
        "900 levels": "a: " + "[" * 900,
        "900 levels of sections": "".join(" " * i + "a:\n" for i in range(900)),
        "a million lines": "a: 1\n" * 10**6,
        "one key twice": "seed: 1\nseed: 2\n",
        "a list": "- 1\n",
        "a number": "5",
        "a tag": "seed: !!binary aGk=\n",
        "a number of 5,000 digits": f"seed: {'9' * 5000}\n",
        "tabs": "\tseed: 1\n",
        "several documents": "--- {}\n--- {}\n",
        "two megabytes": "# " + "x" * 2**21,
        "bytes": "\x00\x01\x02",
        "colours": "\x1b[2Jseed: 1\n",
        "an unknown section": "sections: {}\n",
        "no data": "seed: 1\n",
        "empty": "# nothing\n",
    }.items():
        yield Case(f"a config that is {name}", _after(_write("hostile.yaml", text), "train", "hostile.yaml"), "hostile.yaml", 2)
    for place in ("nowhere.yaml", "data", "/dev/zero", "/dev/stdin", "", "x" * 5000):
        yield Case(f"train {place[:20]!r}", lambda place=place: ("train", place), "config", 2, real=place == "nowhere.yaml")


CASES = [*_datasets(), *_runs(), *_configs()]

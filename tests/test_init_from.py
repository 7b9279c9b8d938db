"""A run whose first weights cannot be had is refused before Ray starts, by name and with a remedy, and leaves nothing behind."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import free_port
from http_server import Served, serve
from mlflow import MlflowClient
from safetensors.torch import save_file
from test_cli import call

from distmeta.models import build_model
from distmeta.scale import run as runs


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server of a folder with good weights and bad ones of conv4."""
    folder = tmp_path / "served"
    folder.mkdir()
    weights = {name: value.contiguous() for name, value in build_model("conv4", (1, 16, 16), 3, filters=4, seed=0).state_dict().items()}
    torch.save(weights, folder / "good.pt")
    torch.save({f"net.{name}": value for name, value in weights.items()}, folder / "prefixed.pt")
    torch.save({name: torch.zeros(2, 2) for name in weights}, folder / "shapes.pt")
    torch.save({name: value.long() for name, value in weights.items()}, folder / "integers.pt")
    torch.save({name: value.to(torch.complex64) for name, value in weights.items()}, folder / "complex.pt")
    torch.save([1, 2], folder / "list.pt")
    save_file({name: value.to(torch.complex64) for name, value in weights.items()}, folder / "complex.safetensors")
    for name in ("page.pt", "page.safetensors"):
        (folder / name).write_text("<html>404 not found</html>")
    (folder / "empty.pt").write_bytes(b"")
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in weights.items()})
    with serve(folder) as server:
        yield server


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("absent.pt", None, r"init_from=http\S+/absent.pt does not exist\n.*give the path or URL of a file of weights"),
        ("good.pt", 404, r"init_from=http\S+/good.pt does not exist\n"),
        ("good.pt", 403, r"good.pt cannot be read: 403.*\n.*check the location and your access"),
        ("good.pt", "drip", r"good.pt cannot be read: it was incomplete after \d+ s.*\n.*check the location"),
        ("good.pt", "stall", r"good.pt cannot be read: no answer within 0.5 s.*\n.*check the location"),
        ("good.pt", "truncate", r"good.pt cannot be read: .*\n.*check the location"),
        ("good.pt", "cut", r"good.pt cannot be read: the server does not say how long it is; download it, and give its path\n"),
        ("good.pt", "endless", r"good.pt cannot be read: the server does not say how long it is; download it, and give its path\n"),
        ("page.pt", None, r"page.pt is not a state dict that can be read without running code: .*\n.*save it again with torch.save"),
        ("page.safetensors", None, r"page.safetensors does not hold safetensors: .*\n.*download or export the weights again"),
        ("empty.pt", None, r"empty.pt is not a state dict .*\n.*save it again with"),
        ("list.pt", None, r"list.pt holds a list without named tensors\n.*save network.state_dict\(\) instead"),
        ("weights.npz", None, r"weights.npz is not a state dict that can be read without running code: .*\n.*or as safetensors"),
        ("shapes.pt", None, r"shapes.pt does not fit Conv4: of another shape: blocks.0.conv.weight \(4, 1, 3, 3\) \(there \(2, 2\)\).*\n"),
        (
            "prefixed.pt",
            None,
            r"prefixed.pt does not fit Conv4: missing there: .*names there: net.blocks.*\n.*set init_prefix to the prefix",
        ),
        ("integers.pt", None, r"integers.pt holds integers where numbers are needed: .*\n.*export it without quantisation"),
        (
            "complex.pt",
            None,
            r"blocks.0.conv.weight in init_from=.* is a complex tensor, which is not supported\n.*save its values as real",
        ),
        ("complex.safetensors", None, r"\S+ in init_from=.* is a complex tensor, which is not supported\n.*save its values as real"),
    ],
)
def test_weights_that_cannot_be_had_are_refused_and_nothing_stays(
    name: str,
    fault: int | str | None,
    message: str,
    served: Served,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served.faults[name] = [fault] * 9 if fault is not None else []
    read_timeout_s = 0.5 if fault in ("drip", "stall") else 60
    refused(f"{served.url}/{name}", message, packed, tmp_path, monkeypatch, capsys, read_timeout_s)


def test_a_server_that_is_not_there_is_named(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = r"init_from=\S+|w.pt cannot be read: .*\n.*check the location and your access"
    refused(f"http://127.0.0.1:{free_port()}/w.pt", message, packed, tmp_path, monkeypatch, capsys)


def refused(
    origin: str,
    message: str,
    packed: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    read_timeout_s: float = 60,
) -> None:
    """A whole `distmeta train`, which must not come to Ray."""

    def no_ray(*_: object) -> None:
        raise AssertionError("Ray starts")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(runs, "connected", no_ray)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    content = {
        "run_folder": "run",
        "init_from": origin,
        "data": {"shards": str(packed), "way": 3, "shot": 1, "queries": 3, "eval": {"queries": 3, "episodes": 6, "val_episodes": 6}},
        "model": {"name": "conv4", "filters": 4},
        "outer": {"lr": 0.01, "steps": 4, "meta_batch_size": 2},
        "tracking": {"uri": uri},
    }
    content["data"] |= {"read_timeout_s": read_timeout_s, "read_attempts": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    code, _, err = call(monkeypatch, capsys, "train", "run.yaml")
    assert code in (1, 2)
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert not (folder / "run").exists()
    client = MlflowClient(uri)
    assert client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]) == []

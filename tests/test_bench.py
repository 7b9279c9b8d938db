"""What `make bench` is made of, without running it; and peers' weights under our names, without their code."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from distmeta.learners import build_learner
from distmeta.models import build_model

BENCH = Path(__file__).parent / "bench"
sys.path.append(str(BENCH))
import everything  # noqa: E402
import peers  # noqa: E402


def test_every_part_is_a_program_that_is_there() -> None:
    assert all((BENCH.parent / part.arguments[0]).is_file() for part in everything.PARTS)
    assert len({part.name for part in everything.PARTS}) == len(everything.PARTS)


@pytest.mark.parametrize(
    ("text", "needs", "outcome"),
    [
        ("", (), "ok"),
        ("raise SystemExit(3)", (), "failed (exit code 3)"),
        ("import time\ntime.sleep(600)", (), "stopped after 0.02 min"),
        ("", ("data/nowhere", "tests"), "skipped: data/nowhere absent"),
    ],
)
def test_what_became_of_a_part_is_told(text: str, needs: tuple[str, ...], outcome: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(text)
    part = everything.Part("part", "what", 0.02 if "sleep" in text else 1, [str(tmp_path / "program.py")], needs)
    assert everything.run(part, str(tmp_path))[0] == outcome


def test_the_processes_of_a_part_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a child that survives its leader and does not listen to SIGTERM."""
    child = "import os, pathlib, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child += "pathlib.Path('child').write_text(str(os.getpid()))\ntime.sleep(600)"
    program = tmp_path / "program.py"
    program.write_text(f"import os, subprocess, sys\nos.chdir({str(tmp_path)!r})\nsubprocess.run([sys.executable, '-c', {child!r}])")
    monkeypatch.setattr(everything, "ENDING_S", 0.5)
    assert everything.run(everything.Part("part", "what", 0.1, [str(program)]), str(tmp_path))[0] == "stopped after 0.1 min"
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(int((tmp_path / "child").read_text())).status() == psutil.STATUS_ZOMBIE  # for init to reap


def test_no_part_runs_after_the_time_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "program.py").write_text("import time\ntime.sleep(600)")
    parts = [everything.Part(name, "what", 10, [str(tmp_path / "program.py")]) for name in ("long", "next")]
    monkeypatch.setattr(everything, "PARTS", parts)
    monkeypatch.setattr(everything, "LONGEST_S", 1.2)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        everything.main(show=False)
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "| long | what | stopped after 0.02 min | 1 |" in printed
    assert "| next | what | not begun | 0 |" in printed


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["adapt.py", "--repeats", "2"], ["stream.py", "--images", "4000", "--only", "webdataset"]])
def test_parts_that_make_their_own_data_run(arguments: list[str]) -> None:
    """They once asked what the package had come to refuse: a network of other weights, a dataset without a validation split."""
    subprocess.run([sys.executable, str(BENCH / arguments[0]), *arguments[1:]], check=True)


class Block(nn.Module):
    """A residual block under the names that few-shot-meta-baseline gives its parts."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        for number, ins in enumerate((inputs, outputs, outputs), 1):
            setattr(self, f"conv{number}", nn.Conv2d(ins, outputs, 3, padding=1, bias=False))
            setattr(self, f"bn{number}", nn.BatchNorm2d(outputs))
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = images
        for number in (1, 2):
            hidden = nn.functional.leaky_relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(hidden)), 0.1)
        hidden = self.get_submodule("bn3")(self.get_submodule("conv3")(hidden)) + self.downsample(images)
        return nn.functional.max_pool2d(nn.functional.leaky_relu(hidden, 0.1), 2)


def resnet12() -> nn.Module:
    widths = [3, 4, 4, 8, 8]
    encoder = nn.Sequential()
    for number in range(4):
        encoder.add_module(f"layer{number + 1}", Block(*widths[number : number + 2]))
    encoder.add_module("pool", nn.AdaptiveAvgPool2d(1))
    encoder.add_module("flat", nn.Flatten())
    whole = nn.Module()
    whole.encoder = encoder
    whole.temp = nn.Parameter(torch.tensor(7.0))
    return whole


def conv4() -> nn.Module:
    """As prototypical-networks builds it: convolutions with biases."""
    blocks = [nn.Sequential(nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)) for inputs in (1, 8, 8, 8)]
    whole = nn.Module()
    whole.encoder = nn.Sequential(*blocks, nn.Flatten())
    return whole


@pytest.mark.parametrize(
    ("name", "made", "own", "image"),
    [
        ("few-shot-meta-baseline", resnet12, {"widths": [4, 4, 8, 8]}, (3, 32, 32)),
        ("prototypical-networks", conv4, {"filters": 8}, (1, 28, 28)),
    ],
)
def test_a_peers_weights_compute_the_same_under_our_names(
    name: str, made: "type[nn.Module]", own: dict[str, object], image: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    network, peer = made().double(), peers.PEERS[name]
    peers.settled(network, torch.randn(10, 12, *image, dtype=torch.float64))
    network.eval()
    learner = build_learner(name=peer.learner, model=build_model(**peer.model | own, input_shape=image, outputs=5, seed=0).double())
    params, _ = learner.start_from(peers.translated(network.state_dict(), peer.names), "theirs")
    images = torch.randn(6, *image, dtype=torch.float64)
    learner.model.eval()
    with torch.no_grad():
        ours = learner.forward()(params, images[None], method="features")[0]
        torch.testing.assert_close(ours, network.encoder(images), rtol=1e-10, atol=1e-10)  # type: ignore[operator]
    if name == "few-shot-meta-baseline":
        assert params["temperature"].item() == 7.0

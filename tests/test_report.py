"""The report of a run: one page that says what the run found, whole and readable wherever it is opened."""

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from registered import DESCRIPTION, PROTONET, WAY, finished_run
from scipy.stats import t
from test_cli import call

from distmeta.assembly.report import report, report_of_model
from distmeta.config import validate
from distmeta.data.episodes import Task
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.errors import ConfigError, RegistryError, RunError
from distmeta.inference.model import build
from distmeta.learners.description import default_name
from distmeta.registry import versions
from distmeta.registry.tracking import log_files
from distmeta.report.adaptation import adaptation_curves, draw_adaptation
from distmeta.report.figures import Curve, binned, lines
from distmeta.report.study import study
from distmeta.show import show_test
from distmeta.training.accuracy import Accuracy
from distmeta.training.evaluate import evaluate
from distmeta.training.events import sentence
from distmeta.training.run_folder import RunFolder

HOSTILE = "</title><script>document.title='owned'</script>&\"'{{ 7*7 }}$x_{$"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def run_of(folder: Path, uri: str, packed: Path, description: dict[str, Any] = DESCRIPTION) -> RunFolder:
    """A finished run on the packed patterns, with its metrics; its dataset has a name that would break a page."""
    beside = {"random_init": 0.4, "random_init_ci95": 0.02}
    run = finished_run(folder, uri, description=description, test={"accuracy": 0.6121, "ci95": 0.0111} | beside)
    content: dict[str, Any] = {
        "run_folder": str(run),
        "data": {"shards": str(packed), "way": WAY, "queries": 3, "eval": {"episodes": 12}},
        "model": {"filters": 4},
        "learner": description["learner"],
    }
    (run.path / "config.yaml").write_text(validate(content, "test").to_yaml())
    (run.path / "dataset.json").write_text(json.dumps({"dataset": HOSTILE, "fingerprint": "f" * 64}))
    (run.path / "metrics").mkdir()
    with (run.path / "metrics" / "000000-000030.jsonl").open("w") as file:
        for step in range(1, 31):
            times = {"time/data": 0.01, "time/adapt": 0.2, "time/wait": 0.01, "time/reduce": 0.01, "time/update": 0.01}
            record = {"step": step, "meta_loss": 1 / step, "accuracy": 1 - 1 / (step + 1), "ranks": [0, 0, 1] if step < 20 else [0] * 3}
            if step == 7:
                record = {"step": step, "bad_slot": 2}
            if step % 10 == 0:
                found = {"accuracy": 0.5, "ci95": 0.05, "accuracy_inductive": 0.4, "ci95_inductive": 0.05, "episodes": 9}
                record["validation"] = found
            file.write(json.dumps(record | times) + "\n")
    return run


class Page(HTMLParser):
    """Its text, its images, and whatever it would load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images: list[str] = []
        self.foreign: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag == "img":
            self.images.append(values["src"] or "")
        if tag in ("script", "link", "iframe", "object") or any(name.startswith("on") for name in values):
            self.foreign.append(tag)
        loaded = ("src", "xlink:href") if tag == "a" else ("src", "href", "xlink:href")  # a link loads nothing until it is followed
        self.foreign += [value for name in loaded if (value := values.get(name) or "").startswith(("http", "//"))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, uri: str, packed: Path) -> RunFolder:
    return run_of(tmp_path_factory.mktemp("runs") / "a<b>&'\"c", uri, packed)


@pytest.fixture(scope="module")
def written(run: RunFolder, packed: Path) -> Path:
    return report(run, shards=str(packed))


def test_it_says_what_the_run_found(written: Path) -> None:
    page = Page(written.read_text())
    for said in (
        "61.2 ± 1.1 %",
        "40.0 ± 2.0 %",
        "Its accuracy on new tasks is 61.2 % transductive and ",
        " % inductive; without meta-training it is 40.0 % (guessing: 33.3 %)",
        "best at 10",
        "2 from step 1, 1 from step 20",
        "(meta-gradient not finite) 7",
        "50 episodes of unseen tasks",
        "first 12 test episodes",
        HOSTILE,
        "a<b>&'\"c",
    ):
        assert " ".join(said.split()) in page.text, said
    assert page.foreign == [], "the page would load or run something"
    assert len(page.images) == 3 * (WAY + 2 * WAY)
    assert all(image.startswith("data:image/png;base64,") for image in page.images)
    assert written.read_text().count("<svg") == 5
    assert not re.search(r"\bnan\b", page.text)


def test_its_curves_are_those_of_the_evaluation(run: RunFolder, packed: Path, dataset: Dataset) -> None:
    """After the last inner step the study counts what the run's own evaluation counts, episode by episode."""
    stream = EpisodeStream(dataset, "test", Task(WAY, 1, 3), 0)
    weights = run.best.load_params()
    learner = build(DESCRIPTION, weights)
    fresh = learner.initial_params()
    found = study(learner, weights, fresh, stream, 9)
    for by_step, params in ((found.trained, weights), (found.random_init, fresh)):
        own = evaluate(Accuracy(), learner, params, stream, 9, "batch")
        assert by_step.shape == (9, learner.inner_steps_eval + 1)
        ordered = sorted(range(9), key=lambda i: (i % len(dataset.shards("test")), i))
        assert torch.equal(by_step[:, -1], own.by_episode[ordered, 1])
    asked = 9 * WAY * 3
    assert sum(chances for _, chances in found.confused.values()) == asked * (WAY - 1)
    assert sum(taken for taken, _ in found.confused.values()) == round((1 - found.trained[:, -1].mean().item()) * asked)


def test_learners_without_inner_steps_have_a_report_without_an_adaptation_plot(uri: str, packed: Path, tmp_path: Path) -> None:
    page = Page(report(run_of(tmp_path / "run", uri, packed, PROTONET), shards=str(packed)).read_text())
    assert "protonet with conv4" in page.text
    assert "Errors between categories" in page.text
    assert "Adaptation" not in page.text


def test_it_says_how_to_use_the_model(written: Path, run: RunFolder, uri: str, packed: Path, tmp_path: Path) -> None:
    """A run without a registered version is addressed by its run id; afterwards the page names the version, and links to MLflow."""
    run_id = run.read_mlflow()["run_id"]
    before = Page(written.read_text())
    assert f"distmeta predict --model runs:/{run_id}/model --support" in before.text
    assert f"under the name {run.read_config().tracking.model or default_name(run.best.read_description())}" in before.text
    assert f"{datetime.now(UTC):%B %Y} · maml with conv4" in before.text
    registered = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    registered.write_mlflow(run.read_mlflow() | {"model": "models:/m/7", "page": "http://mlflow/#/runs/1 (after: mlflow ui)"})
    text = report(registered).read_text()
    assert "distmeta predict --model models:/m/7 --support" in Page(text).text
    assert '<a href="http://mlflow/#/runs/1">' in text
    registered.write_mlflow(run.read_mlflow() | {"page": "javascript:alert(1)"})
    assert "<a href" not in report(registered).read_text()
    assert re.search(r"<details>.*shards: .*</details>", text, re.DOTALL), "the config is folded"


def test_the_headline_names_both_figures(uri: str, packed: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", uri, packed)
    assert re.search(
        r"on new tasks is [\d.]+ % transductive and [\d.]+ % inductive; without meta-training", Page(report(run).read_text()).text
    )


def test_the_confusion_plot_has_a_key(written: Path) -> None:
    for label in ("share of queries", "predicted category", "true category"):
        assert f">{label}</text>" in written.read_text()


def test_curves_differ_without_colours() -> None:
    svg = lines([Curve(str(number), [0, 1], [number, number], [0.1, 0.1]) for number in range(5)], "x", "y")
    dashes = [re.search(r"stroke-dasharray: ([^;]*);", path) for path in re.findall(r'<path d="M[^>]*style="fill: none; [^>]*>', svg)]
    styles = {dash[1] if dash else "" for dash in dashes}
    assert len(styles) >= 5


def test_without_its_dataset_it_says_so(run: RunFolder, uri: str, packed: Path, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    page = Page(report(copy, shards=str(tmp_path / "gone")).read_text())
    assert f"This report shows no test episodes: {tmp_path / 'gone'} is not a packed dataset" in page.text
    assert "61.2 ± 1.1 %" in page.text
    with pytest.raises(RunError, match="holds no run"):
        report(RunFolder(tmp_path))


def test_an_unfinished_run_has_a_report_of_what_happened_so_far(run: RunFolder, uri: str, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    result = copy.read_result()
    (copy.path / "result.json").unlink()
    shutil.rmtree(copy.path / "best")  # before the first validation
    facts = {"pid": 71, "node": "host-a", "signal": "SIGKILL", "reason": "", "log": "", "step": 30, "checkpoint": None}
    died = copy.events.add("died", rank=1, **facts)
    page = Page(report(copy).read_text())
    assert "This run has not ended: it is at step 30 of " in page.text
    assert sentence(died) in page.text
    assert "meta-loss" in page.text
    assert page.foreign == []
    assert "Test:" not in page.text
    copy.write_result(result, [])
    assert not copy.report.exists(), "the final report is written anew"


def test_a_report_runs_no_command_that_its_folder_names(run: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    config = copy.path / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["data"]["shards"] = f"pipe: touch {tmp_path}/ran {{name}}"
    config.write_text(yaml.safe_dump(content))
    page = Page(report(copy).read_text())
    assert "location is taken from you" in page.text
    assert "61.2 ± 1.1 %" in page.text
    assert not (tmp_path / "ran").exists()


def test_the_report_of_a_registered_model(
    uri: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", uri, packed)
    published = versions.publish(uri, run, "reported")
    assert report_of_model(uri, published.uri) == (run.report, True)
    # On another machine, where another run may have the same path.
    run.path.rename(tmp_path / "moved")
    run_of(run.path, uri, packed)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(RegistryError, match=r"the run of models:/reported/1 is in .*run, which is not on this machine, and MLflow has no"):
        report_of_model(uri, published.uri)
    log_files(uri, RunFolder(tmp_path / "moved").read_mlflow()["run_id"], [tmp_path / "moved" / "report.html"])
    with pytest.raises(ConfigError, match="which is not on this machine: --shards cannot be looked at"):
        report_of_model(uri, published.uri, shards=str(packed))
    assert list(here.iterdir()) == []
    code, out, err = call(monkeypatch, capsys, "report", published.uri, "--tracking-uri", uri, "--json")
    assert (code, json.loads(out)) == (0, {"report": "reported-1-report.html"})
    assert err.splitlines()[-1].startswith("wrote reported-1-report.html, the report written when the run ended")
    assert (here / "reported-1-report.html").read_bytes() == (tmp_path / "moved" / "report.html").read_bytes()
    assert not run.report.exists()


def test_curves_of_a_regression_have_one_order_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def falling(steps: int, to: float) -> dict[str, float]:
        return {str(step): to + (steps - step) for step in reversed(range(steps + 1))}  # after JSON, in any order

    test: dict[str, Any] = {
        "mse_by_step": falling(11, 0.25),
        "ci95_by_step": falling(11, 0.5),
        "random_init": falling(11, 4),
        "random_init_ci95": falling(11, 0.125),
        "episodes": 9,
    }
    difference = {"difference": 1.0, "difference_ci95": 0.5}
    test["beside"] = {
        f"models:/m/{i}": {"mse_by_step": falling(i, i), "ci95_by_step": falling(i, 0.5), "episodes": 9} | difference for i in range(1, 6)
    }
    curves = adaptation_curves(test)
    names = ["meta-trained", "random initialisation", *(f"models:/m/{i}" for i in range(1, 6))]
    assert [curve.name for curve in curves] == names
    assert curves[0] == Curve("meta-trained", list(range(12)), [11.25 - i for i in range(12)], [11.5 - i for i in range(12)])
    assert curves[3] == Curve("models:/m/2", [0, 1, 2], [4, 3, 2], [2.5, 1.5, 0.5])
    svg = lines(curves, "inner steps", "squared error")
    assert [name for name in names if f">{name}<" in svg] == names
    long = "models:/" + "few-shot-sinusoids-of-five-points-" * 6 + "/1"
    draw_adaptation(test | {"beside": test["beside"] | {long: test["beside"]["models:/m/1"]}}, "a run", tmp_path / "adaptation.png")
    picture = np.asarray(Image.open(tmp_path / "adaptation.png").convert("L"))
    assert picture.shape[1] == 840
    assert (picture[:, [0, -1]] == 255).all(), "the legend leaves the figure"
    on = {"way": 1, "shot": 5, "queries": 20, "inner_steps": 11, "seed": 0, "norm": "none"}
    show_test(test | on)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert [row[0] for row in rows] == [*map(str, range(12)), "this run minus it, 11, paired"]
    assert rows[-1][3:] == ["+1.000 ± 0.500"] * 5
    assert rows[2] == ["2", "9.250 ± 9.500", "13.000 ± 9.125", "", *(f"{2 * i - 2:.3f} ± {i - 1.5:.3f}" for i in range(2, 6))]


def test_bins_are_means_with_the_formulas_interval() -> None:
    y = np.random.default_rng(0).random(1000)
    curve = binned(list(range(1000)), y, "y", bins=10)
    assert len(curve.y) == 10
    assert curve.y[3] == pytest.approx(y[300:400].mean())
    assert curve.ci95[3] == pytest.approx(t.ppf(0.975, 99) * y[300:400].std(ddof=1) / 10)
    assert curve.x[3] == pytest.approx(349.5)
    assert len(binned([1, 2, 3], [1, 1, 1], "short").y) == 3


BROWSER = next((found for name in ("chromium", "google-chrome", "chromium-browser", "chrome") if (found := shutil.which(name))), None)
LOOK = """
<script>
window.failures = [];
window.onerror = message => window.failures.push(String(message));
addEventListener("load", () => {
  for (const image of document.images) if (!image.naturalWidth) window.failures.push("no picture: " + image.alt);
  if (document.documentElement.scrollWidth > innerWidth) window.failures.push("wider than the window");
  for (const element of document.querySelectorAll("h1,h2,p,td,th,pre,.card,.tile,figcaption"))
    if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline")
      window.failures.push("cut off: " + element.textContent.slice(0, 60));
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      if (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2 || box.bottom > frame.bottom + 2)
        window.failures.push("outside its plot: " + text.textContent);
    }
  }
  document.documentElement.dataset.looked = JSON.stringify(window.failures);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_real_browser(width: int, written: Path, tmp_path: Path) -> None:
    assert BROWSER is not None
    watched = tmp_path / "watched.html"
    watched.write_text(written.read_text().replace("<head>", "<head>" + LOOK))
    options = ["--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2400"]

    def browse(*wanted: str) -> str:
        return subprocess.run([BROWSER, *options, *wanted, watched.as_uri()], capture_output=True, text=True, timeout=120).stdout

    looked = re.search(r'data-looked="([^"]*)"', browse("--dump-dom", "--virtual-time-budget=5000"))
    assert looked is not None, "the page did not load"
    assert looked[1] == "[]"
    pictures = []
    for scheme in ("1", "0"):
        picture = tmp_path / f"{scheme}.png"
        browse(f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}")
        pictures.append(np.asarray(Image.open(picture).convert("L")))
    assert pictures[0][5, 5] > 240, "light"
    assert pictures[1][5, 5] < 40, "dark"
    browse(f"--print-to-pdf={tmp_path / 'printed.pdf'}")
    assert (tmp_path / "printed.pdf").read_bytes().startswith(b"%PDF")

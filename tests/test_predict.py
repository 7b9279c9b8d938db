"""Adapting a published model to images, and classifying others with it."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import png
from pictures import tiff
from PIL import Image
from registered import DESCRIPTION, PROTONET, WAY, finished_run, publish

from distmeta import cli
from distmeta.data.episodes import Task
from distmeta.data.image_files import LeftOut
from distmeta.data.images import decode
from distmeta.data.inspect import export_episode
from distmeta.data.shards import Dataset
from distmeta.errors import ConfigError, DataError
from distmeta.inference.inputs import network_input
from distmeta.inference.model import Adapted, Model
from distmeta.inference.predict import FileReader, Prediction, Score, Support, adapt_to_folder, predict_files, query_files, wrong_first
from distmeta.learners import build_learner
from distmeta.models import build_model
from distmeta.registry import versions
from distmeta.report.explain import draw
from distmeta.training.run_folder import RunFolder

MAMLPP = DESCRIPTION | {"learner": {"name": "maml++", "inner_steps": 2}}
GROUP = DESCRIPTION | {"model": DESCRIPTION["model"] | {"norm": "group"}, "norm": "group"}
LEARNERS = {"maml": DESCRIPTION, "protonet": PROTONET, "maml++": MAMLPP, "group": GROUP}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def published(uri: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, versions.Published]:
    home = tmp_path_factory.mktemp("runs")
    return {name: publish(uri, home / name, name.replace("+", "p"), description=about) for name, about in LEARNERS.items()}


@pytest.fixture(scope="module")
def loaded(uri: str, published: dict[str, versions.Published]) -> dict[str, Model]:
    return {name: versions.load_model(uri, version.uri) for name, version in published.items()}


@pytest.fixture
def episode(dataset: Dataset, tmp_path: Path) -> Path:
    export_episode(dataset, "test", Task(WAY, 2, 3), 0, tmp_path / "episode")
    return tmp_path / "episode"


def predict(model: Model, support: Path, query: Path, steps: int | None = None) -> list[Prediction]:
    adapted, shown = adapt_to_folder(model, support, steps)

    def refused(error: DataError) -> None:
        raise error

    return list(predict_files(adapted, query_files(query, io.StringIO()), shown, refused))


@pytest.mark.parametrize("learner", LEARNERS)
def test_law_8_alone_shuffled_and_in_company(learner: str, loaded: dict[str, Model], episode: Path, tmp_path: Path) -> None:
    model = loaded[learner]
    together = {p.file: p for p in predict(model, episode / "support", episode / "query")}
    assert len(together) == WAY * 3
    for file, prediction in together.items():
        assert predict(model, episode / "support", file) == [prediction]
        assert prediction.label in {path.name for path in (episode / "support").iterdir()}
        assert 1 / WAY <= prediction.probability <= 1
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
    adapted, shown = adapt_to_folder(model, episode / "support")
    shuffled = sorted(together, reverse=True) * 8 + list(together)[:3]  # 75: several chunks, in another order
    (tmp_path / "broken.png").write_bytes(b"no image")
    bad: list[DataError] = []
    beside_a_broken_one = list(predict_files(adapted, [*shuffled[:20], tmp_path / "broken.png", *shuffled[20:]], shown, bad.append))
    assert beside_a_broken_one == [together[file] for file in shuffled]
    assert [error.message.partition(" ")[0] for error in bad] == [str(tmp_path / "broken.png")]
    in_sevens = torch.cat([adapted.predict(shuffled[i : i + 7]) for i in range(0, 75, 7)])
    assert torch.equal(adapted.predict(shuffled), in_sevens)


@pytest.mark.parametrize("learner", LEARNERS)
def test_an_adapted_model_is_plain_torch(learner: str, loaded: dict[str, Model], episode: Path, tmp_path: Path) -> None:
    adapted, _ = adapt_to_folder(loaded[learner], episode / "support")
    queries = list(query_files(episode / "query", io.StringIO()))
    probabilities = adapted.predict(queries)
    adapted.save(tmp_path / "adapted")
    again = Adapted.load(tmp_path / "adapted")
    assert again.classes == adapted.classes
    assert torch.equal(again.predict(queries), probabilities)
    assert [path.name for path in (tmp_path / "adapted").iterdir()] == ["adapted.safetensors"]
    # Its state alone, through torch.save, into a module made from other images of other classes.
    torch.save(adapted.state_dict(), tmp_path / "state.pt")
    other, _ = adapt_to_folder(loaded[learner], episode / "query")
    assert not torch.equal(other.predict(queries), probabilities)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other.predict(queries), probabilities)
    # And it is a module like any other: logits of a batch, the same as image by image.
    inputs = network_input(queries, adapted.preprocessing, torch.zeros(()))
    torch.testing.assert_close(adapted(inputs).softmax(1), probabilities)
    with pytest.raises(DataError, match="holds no adapted model"):
        Adapted.load(episode)


@pytest.mark.slow  # the exporter takes seconds to import
@pytest.mark.parametrize("learner", LEARNERS)
def test_an_adapted_model_in_onnx_says_the_same(learner: str, loaded: dict[str, Model], episode: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    adapted, _ = adapt_to_folder(loaded[learner], episode / "support")
    adapted.export_onnx(tmp_path / "adapted.onnx")
    inputs = network_input(list(query_files(episode / "query", io.StringIO())), adapted.preprocessing, torch.zeros(()))
    (logits,) = ReferenceEvaluator(str(tmp_path / "adapted.onnx")).run(None, {"images": inputs.contiguous().numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), adapted(inputs), rtol=1e-4, atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "adapted.onnx").metadata_props}
    assert json.loads(metadata["classes"]) == adapted.classes
    assert json.loads(metadata["preprocessing"])["image_size"] == 16


def test_every_kind_of_image_is_the_same_image(loaded: dict[str, Model], episode: Path) -> None:
    model = loaded["maml"]
    files = sorted((episode / "support").rglob("*.png"))
    labels = [path.parent.name for path in files]
    queries = list(query_files(episode / "query", io.StringIO()))
    expected = model.adapt(files, labels).predict(queries)
    pixels = np.stack([decode(path.read_bytes(), model.preprocessing, "") for path in files])[:, 0]
    normalised = model.preprocessing.network_input(pixels[:, None])
    rgb = [np.repeat(image[..., None], 3, 2) for image in pixels]
    for images in ([p.read_bytes() for p in files], [str(p) for p in files], pixels, pixels[..., None], list(pixels), rgb, normalised):
        assert torch.equal(model.adapt(images, labels).predict(queries), expected)
    numbered = model.adapt(files, torch.tensor([labels.index(label) for label in labels]))
    assert torch.equal(numbered.predict(queries), expected)
    for bad in (pixels.astype(np.float64), pixels[:, None, None], np.zeros((6, 0, 4), np.uint8), normalised[:, :, 1:]):
        with pytest.raises(DataError, match="is needed\n"):
            model.adapt(bad, labels)
    with pytest.raises(DataError, match="5 images but 6 labels"):
        model.adapt(files[1:], labels)
    with pytest.raises(DataError, match="the support set has 2 classes but the model was trained for 3-way"):
        model.adapt(files[:4], labels[:4])


def test_inner_steps_are_free_where_the_learner_can(loaded: dict[str, Model], episode: Path) -> None:
    support, query = episode / "support", episode / "query"
    assert predict(loaded["maml"], support, query, 2) == predict(loaded["maml"], support, query)
    assert predict(loaded["maml"], support, query, 9) != predict(loaded["maml"], support, query)
    assert loaded["maml"].learner.inner_steps_eval == 2, "the model itself was changed"
    for learner, steps, message in (
        ("protonet", 2, "ProtoNet adapts without any"),
        ("maml++", 3, "3 inner steps: 2 inner_lr of each"),
        ("maml", 0, "at least one"),
    ):
        with pytest.raises(ConfigError, match=message):
            predict(loaded[learner], support, query, steps)


def test_way_and_shot_are_free_where_the_learner_can(loaded: dict[str, Model], dataset: Dataset, tmp_path: Path) -> None:
    export_episode(dataset, "test", Task(5, 3, 2), 0, tmp_path / "wide")
    assert len(predict(loaded["protonet"], tmp_path / "wide" / "support", tmp_path / "wide" / "query")) == 10
    with pytest.raises(DataError, match=r"has 5 classes but the model was trained for 3-way tasks \(maml adapts a head.*\ngive 3 classes"):
        adapt_to_folder(loaded["maml"], tmp_path / "wide" / "support")


def test_bad_support_and_query_folders(loaded: dict[str, Model], episode: Path, tmp_path: Path) -> None:
    model = loaded["maml"]

    def refused(support: Path, query: Path, message: str) -> None:
        with pytest.raises(DataError, match=message):
            predict(model, support, query)

    support, query = episode / "support", episode / "query"
    refused(tmp_path / "absent", query, "does not exist\ngive a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, query, "holds no class folder with images")
    refused(support, empty, "holds no image to classify")
    (empty / "cat").mkdir()
    refused(empty, query, "holds no class folder with images")
    shutil.copy(next(support.rglob("*.png")), empty / "cat")
    refused(empty, query, "has one class folder, 'cat'; at least two")
    (empty / "dog").mkdir()
    refused(empty, query, "class folder .*dog holds no image")
    refused(support, support, "is in both the support and the query folder")
    refused(support, episode, "is in both the support and the query folder")
    refused(support, empty, "cat/.*png is a copy of the support image .*; its prediction would be meaningless")
    (query / "broken.png").write_bytes(b"no image")
    refused(support, query, "broken.png does not decode")
    next(support.rglob("*.png")).write_bytes(b"no image")
    refused(support, query / "test-0", "does not decode")


def test_other_sizes_and_modes_are_understood(loaded: dict[str, Model], episode: Path) -> None:
    query = episode / "modes"
    query.mkdir()
    original = Image.open(next((episode / "query").rglob("*.png")))
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1"):
        original.convert(mode).save(query / f"{mode}.png")
    original.convert("CMYK").save(query / "CMYK.jpg")
    original.save(query / "animated.gif", save_all=True, append_images=[Image.new("L", original.size)])
    (query / "16 bit.png").write_bytes(png(np.asarray(original).astype(np.uint16) * 257))
    original.resize((50, 31)).save(query / "wide.png")
    answers = {p.file.stem: p.probability for p in predict(loaded["maml"], episode / "support", query)}
    assert len(answers) == 10
    for mode in ("RGB", "RGBA", "LA", "16 bit", "animated"):
        assert answers[mode] == pytest.approx(answers["L"], abs=1e-6), mode


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["distmeta", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_the_verb_predicts_in_every_format(
    uri: str,
    published: dict[str, versions.Published],
    loaded: dict[str, Model],
    episode: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    ask = ["predict", "--tracking-uri", uri, "--model", published["maml"].uri, "--support", episode / "support"]
    expected = [p.as_dict() for p in predict(loaded["maml"], episode / "support", episode / "query")]
    right = sum(Path(p["file"]).parent.name == p["class"] for p in expected)
    code, out, err = call(monkeypatch, capsys, *ask, "--query", episode / "query", "--json")
    assert (code, json.loads(out)) == (0, expected)
    assert f"{right} of 9 right, 95% interval" in err
    # The same from a list on standard input, as lines of JSON.
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(p["file"] for p in expected)))
    code, out, _ = call(monkeypatch, capsys, *ask, "--query", "-", "--format", "jsonl")
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, expected)
    # A broken file is named and left out; without labels nothing is said of accuracy. A name may hold anything.
    loose = tmp_path / "loose"
    loose.mkdir()
    strange = loose / 'a,"b"\n$x_{$ <b>.png'
    shutil.copy(expected[0]["file"], strange)
    (loose / "bomb.png").write_bytes(bomb())
    (loose / "broken.png").write_bytes(b"no image")
    picture = tmp_path / "explained.png"
    code, out, err = call(monkeypatch, capsys, *ask, "--query", loose, "--format", "csv", "--explain", picture)
    assert code == 1
    assert (
        out == "file,class,probability,truth,right,rejected\n"
        f'"{str(strange).replace(chr(34), chr(34) * 2)}",{expected[0]["class"]},{expected[0]["probability"]},,,false\n'
    )
    reason, remedy = err.splitlines()[-2:]
    assert reason.startswith(f"distmeta: 2 of 3 images were left out; the first: {loose / 'bomb.png'} does not decode")
    assert remedy == "  replace or remove that file"
    assert "accuracy is unknown: no query is in a folder named like a class of the support set\n" in err
    assert Image.open(picture).size[0] > 1000


def test_wrong_predictions_come_first_and_alone_if_that_is_asked(
    uri: str,
    published: dict[str, versions.Published],
    loaded: dict[str, Model],
    episode: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The queries' folders are named like the classes, each image but the first of a folder under another class's name."""
    swapped, names = tmp_path / "swapped", sorted(folder.name for folder in (episode / "query").iterdir())
    for name, other in zip(names, [*names[1:], names[0]], strict=True):
        for number, file in enumerate(sorted((episode / "query" / name).iterdir())):
            target = swapped / (other if number else name) / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    predictions = predict(loaded["maml"], episode / "support", swapped)
    wrong = [p for p in predictions if p.label != p.file.parent.name]
    assert 0 < len(wrong) < len(predictions)
    assert [(p.truth, p.right) for p in predictions] == [(p.file.parent.name, p.label == p.file.parent.name) for p in predictions]
    assert wrong_first(predictions) == sorted(wrong, key=lambda p: -p.probability) + [p for p in predictions if p not in wrong]
    ask = ["predict", "--tracking-uri", uri, "--model", published["maml"].uri, "--support", episode / "support"]
    code, out, err = call(monkeypatch, capsys, *ask, "--query", swapped, "--wrong-only", "--format", "csv")
    assert code == 0
    assert [row[-3:-1] for row in csv.reader(out.splitlines()[1:])] == [[p.truth, "false"] for p in wrong]
    assert f"{len(predictions) - len(wrong)} of {len(predictions)} right" in err
    code, out, _ = call(monkeypatch, capsys, *ask, "--query", swapped)
    marks = re.findall(r"│ (right|wrong) *│", out, re.MULTILINE)
    assert marks == ["wrong"] * len(wrong) + ["right"] * (len(predictions) - len(wrong))
    assert re.findall(r"probabilities are uncalibrated", err)
    code, out, err = call(monkeypatch, capsys, *ask, "--query", wrong[0].file, "--wrong-only", "--json")
    assert (code, json.loads(out)[0]["right"]) == (0, False)
    loose = tmp_path / "loose.png"
    shutil.copy(wrong[0].file, loose)
    code, _, err = call(monkeypatch, capsys, *ask, "--query", loose, "--wrong-only")
    assert (code, err.splitlines()[-2]) == (1, "distmeta: --wrong-only: the truth is known of no query")


def test_unlikely_answers_can_be_rejected(
    uri: str, episode: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """They are marked, not counted, and the cost on the validation episodes is stated from the model's record."""
    coverage, accuracy = [1.0] + [0.4] * 100, [0.6] + [0.9] * 100
    held = {"way": WAY, "shot": 2, "inner_steps": 2, "temperature": 1.0, "episodes": 100, "coverage": coverage, "accuracy": accuracy}
    address = publish(uri, tmp_path / "run", "rejecting", description=DESCRIPTION | {"calibration": [held]}).uri
    predictions = predict(versions.load_model(uri, address), episode / "support", episode / "query")
    limit = sorted(p.probability for p in predictions)[4]
    ask = ["predict", "--tracking-uri", uri, "--model", address, "--support", episode / "support", "--query", episode / "query"]
    code, out, err = call(monkeypatch, capsys, *ask, "--reject-below", limit, "--json")
    assert code == 0
    answers = json.loads(out)
    assert [answer["rejected"] for answer in answers] == [p.probability < limit for p in predictions]
    assert sum(answer["rejected"] for answer in answers) == 4
    right = sum(p.right is True for p in predictions if p.probability >= limit)
    assert f"rejected 4 of 9 queries\naccuracy {100 * right / 5:.1f} %: {right} of 5 right" in err
    assert (
        f"on the validation episodes 40.0 % of queries reach {limit:g}, and 90.0 % of these are right; without a limit 60.0 % of all are"
        in err
    )
    assert "probabilities are calibrated by 100 validation episodes, 3-way 2-shot (temperature 1)\n" in err
    code, out, _ = call(monkeypatch, capsys, *ask, "--reject-below", "1.0", "--wrong-only", "--format", "csv")
    assert (code, out.splitlines()[1:]) == (0, []), "a rejected answer is not a wrong one"


def answer(file: str, truth: str | None, label: str, probability: float = 0.5, rejected: bool = False) -> Prediction:
    return Prediction(Path(file), label, probability, {label: probability}, truth, rejected)


def test_classes_are_counted_and_the_worst_comes_first() -> None:
    score = Score()
    given = [("cat", "cat"), ("cat", "dog"), ("cat", "dog"), ("cat", "emu"), ("dog", "dog"), ("emu", "dog"), (None, "emu")]
    assert len(list(score.count([*(answer("x", *pair) for pair in given), answer("x", "dog", "cat", rejected=True)]))) == 8
    assert score.by_class(["cat", "dog", "emu", "fox"]) == [
        ("emu", 1, 0, 2, [("dog", 1)]),
        ("cat", 4, 1, 1, [("dog", 2), ("emu", 1)]),
        ("dog", 1, 1, 4, []),
        ("fox", 0, 0, 0, []),
    ]
    assert (score.asked, score.rejected, score.labelled, score.right) == (8, 1, 6, 2)


def test_explain_draws_all_supports_whole_names_and_wrong_ones_of_every_class_first(
    dataset: Dataset, loaded: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    drawn: list[Path] = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda _, x, y, text, **__: texts.append(text))
    monkeypatch.setattr(FileReader, "read", lambda _, path: (drawn.append(path), (np.zeros((4, 4, 1), np.uint8), b""))[1])
    names = ["a very long name_of_a_class without an end " + letter for letter in "abc"]
    support = Support({name: [Path(f"{name}/{i}") for i in range(7)] for name in names}, set(), {}, [])
    wrong = [answer(f"wrong-{name}-{i}", name, names[0], 0.9 - i / 100) for name in names[1:] for i in range(20)]
    right = [answer(f"right-{i}", names[0], names[0]) for i in range(50)]
    draw(support, [*right, *wrong], tmp_path / "x.png", FileReader(loaded["maml"].preprocessing))
    assert drawn[:21] == [path for files in support.classes.values() for path in files]
    queries = [path.name for path in drawn[21:]]
    assert queries[:4] == [f"wrong-{names[1]}-0", f"wrong-{names[2]}-0", f"wrong-{names[1]}-1", f"wrong-{names[2]}-1"]
    assert queries[40:] == [f"right-{i}" for i in range(20)]
    assert texts[0] == "support"
    assert [text.replace("\n", " ") for text in texts[1:22]] == [" ".join(textwrap.wrap(name, 15)) for name in names for _ in range(7)]
    assert texts[22] == "queries, wrong ones first (60 of 90)"
    assert "× is a very" in texts[23]
    assert "…" not in "".join(texts)


def run_with_pairs(folder: Path, uri: str, learner: str) -> RunFolder:
    """A finished run of a network with low-rank pairs, away from their start."""
    lora = {"rank": 2, "alpha": 4.0, "modules": ["blocks.*"]}
    about = DESCRIPTION | {"model": DESCRIPTION["model"] | {"lora": lora}, "learner": {"name": learner}}
    made = build_learner(model=build_model(**about["model"]), **about["learner"])
    names = {name: value.requires_grad for name, value in made.model.named_parameters()}
    about |= {"frozen": [name for name, free in names.items() if not free], "adapted": made.adapted}
    run_folder = finished_run(folder, uri, description=about)
    weights = {name: torch.randn_like(value) if name.endswith(".B") else value for name, value in run_folder.best.load_params().items()}
    run_folder.save_best(10, weights, run_folder.best.read_description())
    return run_folder


def test_merged_pairs_leave_a_plain_network_that_predicts_the_same(
    uri: str, episode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = run_with_pairs(tmp_path / "run", uri, "protonet")
    plain = versions.publish(uri, run_folder, "pairs")
    publish_verb = ["publish", run_folder.path, "--name", "pairs", "--tracking-uri", uri, "--merge", "--json"]
    code, out, err = call(monkeypatch, capsys, *publish_verb)
    assert code == 0, err
    models = [versions.load_model(uri, address) for address in (plain.uri, f"models:/pairs/{json.loads(out)['version']}")]
    assert [any(".parametrizations." in name for name in model.meta_params) for model in models] == [True, False]
    own = build_model(**DESCRIPTION["model"]).state_dict()
    assert models[1].meta_params.keys() == {name for name in own if not name.startswith("head.")}
    answers = [[p.probabilities for p in predict(model, episode / "support", episode / "query")] for model in models]
    assert answers[0] == answers[1]
    for learner, message in (("maml", "the inner loop of maml adapts low-rank pairs"), (None, "the model has no low-rank pairs")):
        refused = run_with_pairs(tmp_path / learner, uri, learner) if learner else finished_run(tmp_path / "none", uri)
        code, _, err = call(monkeypatch, capsys, "publish", refused.path, "--tracking-uri", uri, "--merge")
        assert code == 2
        assert err.splitlines()[-2].startswith(f"distmeta: --merge: {message}")


def bomb() -> bytes:
    """A PNG of a few bytes that says it unpacks to 10 gigapixels."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_predictions_of_any_number_of_queries_stream(loaded: dict[str, Model], episode: Path) -> None:
    """Nothing is read far ahead, nothing is kept."""
    asked = 0
    file = next((episode / "query").rglob("*.png"))

    def files() -> Iterator[Path]:
        nonlocal asked
        while True:
            asked += 1
            yield file

    adapted, shown = adapt_to_folder(loaded["maml"], episode / "support")
    score = Score()
    predictions = score.count(predict_files(adapted, files(), shown, pytest.fail))
    for _ in range(100):
        next(predictions)
    assert 100 <= asked <= 116
    assert score.asked == 100


def test_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/2.png", "b.png", "b/a/1.JPG", "B.gif", "a/.hidden.png", "a b/1.png", "b/notes.txt", "c.png/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop.png").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to(tmp_path / "b.png")
    left_out = LeftOut()
    found = list(query_files(tmp_path, io.StringIO(), left_out))
    assert left_out.counts == {"hidden files or folders": 1, "files not named as images": 1, "links to a folder above them": 1}
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        *("B.gif", "a b/1.png", "b/2.png", "b/a/1.JPG", "b.png", "c.png/1.png", "linked.png")
    ]
    assert found == sorted(found)


@pytest.mark.slow  # minutes
def test_a_hundred_thousand_files(uri: str, published: dict[str, versions.Published], episode: Path, tmp_path: Path) -> None:
    """The command itself, over so many that whatever it kept of each would show; some are broken."""
    images = sorted((episode / "query").rglob("*.png"))
    broken = {0, 7, 8, 499, 999}

    def ask(count: int) -> tuple[int, list[list[str]], str, int]:
        """Exit code, rows, messages, and peak memory in kilobytes."""
        folder = tmp_path / str(count)
        for i in range(count):
            image = images[i % len(images)]
            path = folder / image.parent.name / f"{i:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no image") if i in broken else os.link(image, path)
        command = ["predict", "--tracking-uri", uri, "--model", published["maml"].uri, "--support", episode / "support", "--query", folder]
        with (tmp_path / "out.csv").open("w+") as out, (tmp_path / "err.txt").open("w+") as err:
            process = subprocess.Popen(
                [sys.executable, "-c", "from distmeta.cli import main; main()", *map(str, command), "--format", "csv"],
                stdout=out,
                stderr=err,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            err.seek(0)
            return process.returncode, list(csv.reader(out))[1:], err.read(), used.ru_maxrss

    (*_, few), (code, rows, err, many) = ask(1_000), ask(100_000)
    assert code == 1
    assert len(rows) == 99_995
    assert f"distmeta: {len(broken)} of 100000 images were left out; the first: " in err
    for i in broken:
        assert len(re.findall(rf"^\S*/{i:06d}.png does not decode", err, re.MULTILINE)) == 1
    answers: dict[int, set[tuple[str, ...]]] = {}
    for file, *answer in rows:
        answers.setdefault(int(Path(file).stem) % len(images), set()).add(tuple(answer))
    assert [len(answers[i]) for i in range(len(images))] == [1] * len(images), "an image's answer depends on its company"
    assert many < 1.1 * few, "memory grows with the queries"


STRANGER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "webdataset", "typer", "fontTools", "s3fs"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
import json
import mlflow, numpy as np, pandas as pd
uri, model_uri, rows = json.load(open(sys.argv[1]))
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(model_uri)
table = pd.DataFrame([{"image": open(path, "rb").read(), "label": label} for path, label in rows])
answer = model.predict(table).to_dict("records")
shuffled = pd.concat([table[table.label.notna()], table[table.label.isna()][::-1]])
import distmeta
others = [model.predict(shuffled), model.predict(table, params={"inner_steps": 1})]
try:
    model.predict(table[2:])  # without the two images of one class
except mlflow.exceptions.MlflowException as error:
    refused = str(error)
print(json.dumps([answer, *(other.to_dict("records") for other in others), refused, distmeta.__file__]))
"""


def test_a_stranger_who_knows_only_mlflow(
    uri: str, published: dict[str, versions.Published], loaded: dict[str, Model], episode: Path, tmp_path: Path
) -> None:
    """In a process that has neither Ray nor our package: the model brings its code along. Law 8 holds there, too."""
    support, queries = sorted((episode / "support").rglob("*.png")), sorted((episode / "query").rglob("*.png"))
    rows = [(str(path), path.parent.name) for path in support] + [(str(path), None) for path in queries]
    (tmp_path / "stranger.py").write_text(STRANGER)
    (tmp_path / "ask.json").write_text(json.dumps([uri, published["maml"].uri, rows]))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "stranger.py", "ask.json"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    answer, shuffled, one_step, refused, code = json.loads(done.stdout.splitlines()[-1])
    expected = predict(loaded["maml"], episode / "support", episode / "query")
    assert [(row["class"], row["probability"], row["probabilities"]) for row in answer] == [p[1:4] for p in expected]
    assert shuffled == answer[::-1]
    assert one_step != answer
    assert "the support set has 2 classes but the model was trained for 3-way tasks" in refused
    assert Path(code).parts[-3:] == ("code", "distmeta", "__init__.py")


def test_a_copy_of_a_support_image_is_refused_under_any_name(loaded: dict[str, Model], episode: Path) -> None:
    original = next((episode / "support").rglob("*.png"))
    shutil.copy(original, episode / "query" / "another name.png")
    with pytest.raises(DataError, match=rf"another name\.png is a copy of the support image {original}; its prediction"):
        predict(loaded["maml"], episode / "support", episode / "query")


def test_copies_among_support_images_are_known(loaded: dict[str, Model], episode: Path) -> None:
    first, *_, last = sorted((episode / "support").rglob("*.png"))
    shutil.copy(first, last.parent / "z.png")
    _, support = adapt_to_folder(loaded["maml"], episode / "support")
    assert support.copies == [(first, last.parent / "z.png")]


def test_the_part_that_is_labelled_is_said(
    uri: str,
    published: dict[str, versions.Published],
    episode: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask = [
        "predict",
        "--tracking-uri",
        uri,
        "--model",
        published["maml"].uri,
        "--support",
        episode / "support",
        "--query",
        episode / "query",
    ]
    sorted((episode / "query").iterdir())[0].rename(episode / "query" / "unknown")
    (episode / "query" / "unknown" / "notes.txt").write_text("")
    _, out, err = call(monkeypatch, capsys, *ask, "--json")
    assert len(json.loads(out)) == 9
    assert "of 6 right, 95% interval" in err
    assert "; 6 of 9 labelled" in err
    assert f"left out 1 files not named as images ({episode}/query/unknown/notes.txt)" in err


def test_categories_need_not_be_repeated_among_the_queries(
    uri: str,
    published: dict[str, versions.Published],
    episode: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Support images are in CATEGORY/CLASS, queries in CLASS: a class of the same name in two categories is not known."""
    support, names = episode / "support", sorted(path.name for path in (episode / "support").iterdir())
    for category, name, renamed in (("a", names[0], "one"), ("a", names[1], "two"), ("b", names[2], "two")):
        (support / category).mkdir(exist_ok=True)
        (support / name).rename(support / category / renamed)
    for name, place in zip(names, ("one", "two", "b/two"), strict=True):
        (episode / "query" / place).parent.mkdir(exist_ok=True)
        (episode / "query" / name).rename(episode / "query" / place)
    ask = ["predict", "--tracking-uri", uri, "--model", published["maml"].uri, "--support", support, "--query"]
    _, out, err = call(monkeypatch, capsys, *ask, episode / "query", "--json")
    truths = {str(Path(row["file"]).relative_to(episode / "query").parent): row["truth"] for row in json.loads(out)}
    assert truths == {"one": "a/one", "two": None, "b/two": "b/two"}
    assert "; 6 of 9 labelled" in err
    _, _, err = call(monkeypatch, capsys, *ask, episode / "query" / "two")
    assert "accuracy is unknown: no query is in a folder named like a class of the support set" in err


def test_a_list_of_files_may_come_from_windows_and_a_file_may_be_named_like_it(
    episode: Path, monkeypatch: pytest.MonkeyPatch, loaded: dict[str, Model]
) -> None:
    files = sorted((episode / "query").rglob("*.png"))
    listed = io.StringIO("".join(f"{file}\r\n" for file in files) + "\r\n", newline="")
    assert list(query_files("-", listed)) == files
    monkeypatch.chdir(episode)
    (episode / "-").write_bytes(files[0].read_bytes())
    assert list(query_files("./-", io.StringIO())) == [Path("-")]
    (answer,) = predict(loaded["maml"], episode / "support", Path("-"))
    assert answer.file == Path("-")


def test_predict_works_with_one_version_though_its_alias_moves(
    uri: str,
    published: dict[str, versions.Published],
    episode: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    versions.promote(uri, f"models:/protonet/{published['protonet'].version}", "moving")
    ask = ["predict", "--tracking-uri", uri, "--support", episode / "support", "--query", episode / "query", "--json", "--model"]
    _, expected, _ = call(monkeypatch, capsys, *ask, "models:/protonet/1")
    monkeypatch.setattr(
        "distmeta.registry.adapted.load_adapted",
        lambda at, model, own: versions.client(at).delete_registered_model_alias("protonet", "moving"),
    )
    code, found, err = call(monkeypatch, capsys, *ask, "models:/protonet@moving")
    assert (code, found) == (0, expected), err


def test_a_class_is_known_by_its_name_in_any_unicode_form(loaded: dict[str, Model], episode: Path) -> None:
    for role, name in (("support", "\u00e9te"), ("query", "e\u0301te")):
        sorted((episode / role).iterdir())[0].rename(episode / role / name)
    truths = {p.truth for p in predict(loaded["maml"], episode / "support", episode / "query")}
    assert truths == {path.name for path in (episode / "support").iterdir()}


def test_pictures_as_phones_and_microscopes_store_them_are_the_same_picture(loaded: dict[str, Model], episode: Path) -> None:
    """A query stored lying on its side, in another format or depth has the answer of the plain one."""
    query = episode / "stored"
    query.mkdir()
    original = Image.open(next((episode / "query").rglob("*.png"))).convert("L")
    exif = Image.Exif()
    exif[274] = 6
    original.transpose(Image.Transpose.ROTATE_90).save(query / "phone.png", exif=exif)
    original.save(query / "plain.pgm")
    original.save(query / "page.tiff", save_all=True, append_images=[Image.new("L", original.size)])
    original.convert("RGB").save(query / "lossless.webp", lossless=True)
    (query / "deep.tif").write_bytes(tiff(np.asarray(original).astype(np.uint16) * 257))
    adapted, shown = adapt_to_folder(loaded["maml"], episode / "support")
    reader = FileReader(adapted.preprocessing)
    (expected,) = adapted.predict([original]).tolist()
    answers = list(predict_files(adapted, query_files(query, io.StringIO()), shown, pytest.fail, reader))
    assert len(answers) == 5
    for answer in answers:
        assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-6), answer.file
    assert reader.several == 1
    # What has no range of its own is named, and understood where the model, or the user, knows one.
    (query / "float.tif").write_bytes(tiff(np.asarray(original).astype(np.float32) / 255))
    bad: list[DataError] = []
    assert len(list(predict_files(adapted, query_files(query, io.StringIO()), shown, bad.append))) == 5
    assert "float.tif has float values" in bad[0].message
    ranged = loaded["maml"].with_value_range((0.0, 1.0))
    assert ranged.description["preprocessing"]["value_range"] == (0.0, 1.0)
    (answer,) = predict(ranged, episode / "support", query / "float.tif")
    assert list(answer.probabilities.values()) == pytest.approx(expected, abs=1e-6)


def test_a_pipe_among_the_queries_does_not_hang(loaded: dict[str, Model], episode: Path) -> None:
    os.mkfifo(episode / "query" / "pipe.png")
    assert len(predict(loaded["maml"], episode / "support", episode / "query")) == 9
    adapted, shown = adapt_to_folder(loaded["maml"], episode / "support")
    bad: list[DataError] = []
    listed = io.StringIO(f"/dev/zero\n{episode}/query/pipe.png\n")
    assert list(predict_files(adapted, query_files("-", listed), shown, bad.append)) == []
    assert [error.message.split(": ")[1] for error in bad] == ["it is a pipe or device, not a file"] * 2


def test_explain_shows_what_the_network_saw(
    loaded: dict[str, Model], episode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown_images = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda _, pixels, **__: shown_images.append(pixels))
    exif = Image.Exif()
    exif[274] = 6
    file = next((episode / "query").rglob("*.png"))
    upright = Image.open(file).convert("L")
    upright.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    adapted, support = adapt_to_folder(loaded["maml"], episode / "support")
    predictions = list(predict_files(adapted, [file], support, pytest.fail))
    draw(support, predictions, tmp_path / "x.png", FileReader(adapted.preprocessing))
    assert (shown_images[-1] == np.asarray(upright)).all()

"""Classifiers that are adapted to their classes once: registered, loaded, served, batched."""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from registered import DESCRIPTION, PROTONET, WAY, publish
from test_cli import call

from distmeta.data.episodes import Task
from distmeta.data.inspect import export_episode
from distmeta.data.shards import Dataset
from distmeta.errors import ConfigError, RegistryError
from distmeta.inference.batching import Batching
from distmeta.inference.predict import adapt_to_folder
from distmeta.registry import versions
from distmeta.registry.adapted import _own_code, load_adapted, publish_adapted
from distmeta.registry.listing import list_models


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def model(uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(uri, tmp_path_factory.mktemp("run"), "few-shot", description=PROTONET).uri


@pytest.fixture
def episode(dataset: Dataset, tmp_path: Path) -> Path:
    export_episode(dataset, "test", Task(WAY, 2, 3), 0, tmp_path / "episode")
    return tmp_path / "episode"


@pytest.fixture
def served(uri: str, model: str, episode: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What MLflow loads of a classifier that was registered, with the same classifier as distmeta has it."""
    adapted, _ = adapt_to_folder(versions.load_model(uri, model), episode / "support")
    address = publish_adapted(uri, model, adapted, "pets")
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None, raising=False)
    mlflow.set_tracking_uri(uri)
    return mlflow.pyfunc.load_model(address), adapted


def files_in(episode: Path) -> list[Path]:
    return sorted((episode / "query").rglob("*.png"))


def test_the_verb_registers_a_classifier_and_predict_takes_it_without_support_images(
    uri: str, model: str, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ["--tracking-uri", uri]
    asked = ["predict", *at, "--query", episode / "query", "--json"]
    code, out, _ = call(monkeypatch, capsys, *map(str, asked), "--model", model, "--support", str(episode / "support"))
    assert code == 0
    expected = json.loads(out)
    publishing = ["publish-adapted", *at, "--model", model, "--support", episode / "support", "--name", "verb", "--alias", "live", "--json"]
    code, out, err = call(monkeypatch, capsys, *map(str, publishing))
    classes = sorted(folder.name for folder in (episode / "support").iterdir())
    assert (code, json.loads(out)) == (0, {"model": "models:/verb/1", "classes": classes})
    assert "mlflow models serve --model-uri models:/verb/1 --env-manager local" in err
    code, out, _ = call(monkeypatch, capsys, *map(str, asked), "--model", "models:/verb@live", "--explain", str(tmp_path / "x.png"))
    assert (code, json.loads(out)) == (0, expected)
    assert (tmp_path / "x.png").stat().st_size > 1000
    for more, message in (
        (["--support", str(episode / "support")], "--support: models:/verb/1 is adapted"),
        (["--steps", "3"], "--steps: "),
    ):
        code, _, err = call(monkeypatch, capsys, *map(str, asked), "--model", "models:/verb/1", *more)
        assert code == 2
        assert message in err
    code, _, err = call(monkeypatch, capsys, *map(str, asked), "--model", model)
    assert (code, err.splitlines()[-2]) == (2, f"distmeta: {model} adapts to labelled images, but --support is missing")


def test_a_name_holds_models_of_one_kind(uri: str, model: str, episode: Path, tmp_path: Path) -> None:
    adapted, _ = adapt_to_folder(versions.load_model(uri, model), episode / "support")
    with pytest.raises(ConfigError, match="few-shot holds models that are not adapted yet\nchoose another name"):
        publish_adapted(uri, model, adapted, "few-shot")
    address = publish_adapted(uri, model, adapted, "kind", "live")
    assert publish_adapted(uri, model, adapted, "kind") == "models:/kind/2"
    with pytest.raises(ConfigError, match=r"tracking.model=kind holds adapted classifiers"):
        publish(uri, tmp_path / "other", "kind", description=DESCRIPTION)
    with pytest.raises(
        RegistryError, match=r"models:/kind/1 is adapted to its classes already\ngive what it came from: models:/few-shot/1"
    ):
        versions.load_model(uri, address)
    row = next(row for row in list_models(uri) if row["uri"] == address)
    assert (row["aliases"], row["way"], row["shot"], row["learner"]) == (["live"], WAY, 2, "protonet")
    assert load_adapted(uri, model) is None


def test_what_was_left_out_is_said_and_the_version_that_was_adapted_is_named(
    uri: str, model: str, episode: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The alias is gone once the model is loaded: what is registered came from the version that was."""
    (episode / "support" / "notes.txt").write_text("")
    versions.promote(uri, model, "moving")
    load = versions.load_model

    def and_move(*asked: Any) -> Any:
        loaded = load(*asked)
        versions.client(uri).delete_registered_model_alias("few-shot", "moving")
        return loaded

    monkeypatch.setattr(versions, "load_model", and_move)
    ask = (
        "publish-adapted",
        "--tracking-uri",
        uri,
        "--support",
        episode / "support",
        "--name",
        "moved",
        "--model",
        "models:/few-shot@moving",
    )
    code, _, err = call(monkeypatch, capsys, *map(str, ask))
    assert code == 0, err
    assert f"left out 1 files outside class folders ({episode}/support/notes.txt)" in err
    assert MlflowClient(uri).get_model_version("moved", "1").tags["adapted_from"] == "models:/few-shot/1"


def test_a_changed_classifier_is_refused(uri: str, model: str, episode: Path) -> None:
    adapted, _ = adapt_to_folder(versions.load_model(uri, model), episode / "support")
    address = publish_adapted(uri, model, adapted, "tampered")
    source = MlflowClient(uri).get_model_version("tampered", "1").source.removeprefix("file://")
    file = Path(source) / "artifacts" / "adapted.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RegistryError, match=r"adapted.safetensors of models:/tampered/1 is not what was published"):
        load_adapted(uri, address)


def test_mlflow_serves_the_same_answers_without_support_images(served: Any, episode: Path) -> None:
    classifier, adapted = served
    files = files_in(episode)
    expected = adapted.predict(files)
    answer = classifier.predict(pd.DataFrame({"image": [file.read_bytes() for file in files]}))
    given = torch.tensor([list(row.values()) for row in answer["probabilities"]])
    torch.testing.assert_close(given, expected, check_dtype=False)
    assert list(answer["class"]) == [adapted.classes[row.argmax()] for row in expected]
    records = [{"image": base64.b64encode(file.read_bytes()).decode()} for file in files]
    with TestClient(scoring_server.init(classifier)) as client:
        replies: list[Any] = []
        with ThreadPoolExecutor(4) as threads:
            for reply in threads.map(lambda record: client.post("/invocations", json={"dataframe_records": [record]}), records):
                replies += reply.json()["predictions"]
        assert [reply["class"] for reply in replies] == list(answer["class"])
        bad = client.post("/invocations", json={"dataframe_records": [{"image": "no image"}]})
    assert bad.status_code == 400
    assert "image 0 is text that is not base64" in bad.text


def test_bad_images_are_refused_by_number_and_the_others_are_still_answered(served: Any, episode: Path) -> None:
    classifier, _ = served
    image = files_in(episode)[0].read_bytes()
    with pytest.raises(MlflowException, match="image 1"):
        classifier.predict(pd.DataFrame({"image": [image, b"no image"]}))
    assert len(classifier.predict(pd.DataFrame({"image": [image]}))) == 1


def test_a_request_without_images_gets_an_answer_without_classes(served: Any) -> None:
    """As a model that adapts in every request answers one without queries."""
    classifier, _ = served
    with TestClient(scoring_server.init(classifier)) as client:
        reply = client.post("/invocations", json={"dataframe_split": {"columns": ["image"], "data": []}})
    assert (reply.status_code, reply.json()) == (200, {"predictions": []})


def test_requests_that_come_together_are_computed_together() -> None:
    """The first is held while five others come; they are then computed in one batch, and everybody is answered what they asked."""
    sizes: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def compute(inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        begun.set()
        assert go_on.wait(30)
        return inputs * 2

    batching = Batching(compute, 8)
    requests = [torch.full((count, 1), float(number)) for number, count in enumerate((1, 1, 2, 1, 2, 1))]
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(batching, requests[0])
        assert begun.wait(30)
        others = [threads.submit(batching, request) for request in requests[1:]]
        while len(batching._waiting) < 5:
            threading.Event().wait(0.001)
        go_on.set()
        answers = [future.result(30) for future in (first, *others)]
    assert sizes == [1, 7]
    assert all(torch.equal(answer, request * 2) for answer, request in zip(answers, requests, strict=True))


def test_a_large_request_is_computed_in_parts_and_a_failure_reaches_all_who_asked_for_it() -> None:
    sizes: list[int] = []

    def compute(inputs: torch.Tensor) -> torch.Tensor:
        sizes.append(len(inputs))
        if inputs.isnan().any():
            raise ValueError("no number")
        return inputs

    batching = Batching(compute, 4)
    assert torch.equal(batching(torch.arange(10.0)), torch.arange(10.0))
    assert sizes == [4, 4, 2]
    with pytest.raises(ValueError, match="no number"):
        batching(torch.tensor([torch.nan]))
    assert torch.equal(batching(torch.ones(1)), torch.ones(1))


def test_the_users_own_modules_go_with_a_classifier_and_installed_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_module.py").write_text("")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    own = ["my_module.Network", "my_package.part.Learner", "torch.nn.Linear"]
    assert _own_code(own) == [tmp_path / "my_module.py", tmp_path / "my_package"]


def test_one_at_a_time_and_together_agree(uri: str, model: str, episode: Path) -> None:
    adapted, _ = adapt_to_folder(versions.load_model(uri, model), episode / "support")
    from distmeta.inference.inputs import network_input

    inputs = network_input(files_in(episode), adapted.preprocessing, adapted.like)
    torch.testing.assert_close(adapted.probabilities(inputs), adapted.predict(files_in(episode)))
    assert np.array_equal(adapted.probabilities(inputs).argmax(1), adapted.predict(files_in(episode)).argmax(1))

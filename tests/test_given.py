"""What is given to a model, in Python, over HTTP and on the command line: understood or refused by name; NaN never comes out."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import patterns, png
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from PIL import Image
from registered import DESCRIPTION, WAY, finished_run, publish
from safetensors.torch import load_file, save_file

from distmeta.assembly.classification import Classification
from distmeta.config import validate
from distmeta.data.shards import Dataset
from distmeta.errors import ConfigError, DataError, RegistryError, RunError
from distmeta.inference.inputs import class_labels
from distmeta.inference.limits import Limits, limits, variable
from distmeta.inference.model import Adapted, Model
from distmeta.learners import build_learner
from distmeta.learners.params import unusable
from distmeta.models import build_model
from distmeta.registry import versions
from distmeta.show import print_json

FILES = [image.image for image in patterns(images_per_class=2, classes=(WAY, 1, 1))][: 2 * WAY]
SUPPORT, QUERIES = FILES[::2], FILES[1::2]
LABELS = ["ant", "bee", "cow"]


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def model() -> Model:
    return drawn_model()


def drawn_model() -> Model:
    """The same network each time, the one that `server` serves."""
    torch.manual_seed(0)
    learner = build_learner(model=build_model(**DESCRIPTION["model"]), **DESCRIPTION["learner"])
    return Model("", DESCRIPTION, learner, learner.initial_params())


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def server(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """MLflow's own scoring server around a published model."""
    torch.manual_seed(0)
    published = publish(uri, tmp_path_factory.mktemp("runs") / "maml", "maml")
    mlflow.set_tracking_uri(uri)
    with TestClient(scoring_server.init(mlflow.pyfunc.load_model(published.uri)), raise_server_exceptions=False) as client:
        yield client


def ask(server: TestClient, rows: list[dict[str, Any]], **params: Any) -> tuple[int, Any]:
    answer = server.post("/invocations", json={"dataframe_records": rows} | ({"params": params} if params else {}))
    assert "Traceback" not in answer.text, answer.text
    assert '"stack_trace"' not in answer.text, answer.text
    found = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return answer.status_code, found["predictions"] if answer.status_code == 200 else found["message"]


def rows(support: list[Any] | None = None, labels: list[Any] = LABELS, queries: list[Any] | None = None) -> list[dict[str, Any]]:
    given = [{"image": image, "label": label} for image, label in zip(support or map(text, SUPPORT), labels, strict=True)]
    return given + [{"image": image, "label": ""} for image in queries or map(text, QUERIES)]


def pixels(content: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)))


def test_every_way_to_send_the_same_pictures_has_the_same_answer(server: TestClient, model: Model) -> None:
    code, expected = ask(server, rows())
    assert code == 200
    probabilities = model.adapt(SUPPORT, LABELS).predict(QUERIES)
    assert [list(row["probabilities"].values()) for row in expected] == [pytest.approx(row) for row in probabilities.tolist()]
    with_breaks = [base64.encodebytes(content).decode().replace("\n", "\r\n ") for content in SUPPORT]
    lists = [pixels(content).tolist() for content in QUERIES]
    deep = [pixels(content)[..., None].tolist() for content in QUERIES]
    for sent in (rows(with_breaks), rows(queries=lists), rows(queries=deep)):
        assert ask(server, sent) == (200, expected)
    without_key = [row if row["label"] else {"image": row["image"], "label": None} for row in rows()]
    assert ask(server, without_key) == (200, expected)
    for labels in ([1, 2, 3], [1.0, 2.0, 3.0]):
        _, numbered = ask(server, rows(labels=labels))
        assert [row["probability"] for row in numbered] == [row["probability"] for row in expected]
        assert {row["class"] for row in numbered} <= {"1", "2", "3"}


def test_a_phones_picture_is_read_upright_wherever_it_is_sent(server: TestClient, model: Model) -> None:
    import io

    from PIL import Image

    exif, turned = Image.Exif(), io.BytesIO()
    exif[274] = 6
    Image.open(io.BytesIO(QUERIES[0])).transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    assert ask(server, rows(queries=[text(turned.getvalue())])) == ask(server, rows(queries=[text(QUERIES[0])]))
    adapted = model.adapt(SUPPORT, LABELS)
    plain = adapted.predict(QUERIES[:1])
    assert torch.equal(adapted.predict([turned.getvalue()]), plain)
    assert torch.equal(adapted.predict([Image.open(turned)]), plain)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((pixels(QUERIES[0]) / 255).tolist(), "image 3 is an array of float64"),
        ((pixels(QUERIES[0]) / 127.5 - 1).tolist(), "image 3 is an array of float64"),
        (pixels(QUERIES[0]).astype(float).tolist(), "image 3 is an array of float64"),
        ((pixels(QUERIES[0]) > 100).tolist(), "image 3 is an array of boolean"),
        ([[1, True], [0, 3]], "image 3 is an array of boolean"),
        ([["1", "2"], ["3", "4"]], "image 3 is an array of"),
        ([[1, 256]], "image 3 has pixel values from 1 to 256"),
        ([[-1, 5]], "image 3 has pixel values from -1 to 5"),
        ([[1, 2], [3]], "its rows differ in length"),
        ([[1, None]], "image 3 is an array of object"),
        ([], "image 3 is an array of"),
        (5, "image 3 is an array of"),
        (None, "image 3 is an array of"),
        ({"a": 1}, "image 3 is an array of"),
        ("not base64!", "image 3 is text that is not base64"),
        ("ünïcode", "image 3 is text that is not base64"),
        ("", "image 3 does not decode"),
        (text(b"%!PS-Adobe-3.0 EPSF-3.0"), "image 3 does not decode"),
        ([[[1, 2], [3, 4]]], "is an array of uint8"),
    ],
    ids=str,
)
def test_pictures_that_cannot_be_understood_are_refused_by_number(server: TestClient, query: Any, message: str) -> None:
    code, answer = ask(server, rows(queries=[query]))
    assert code == 400
    assert message in answer


def test_requests_that_cannot_be_answered_say_why(server: TestClient) -> None:
    for sent, message in (
        ([{"image": text(QUERIES[0])}], "no row has a label"),
        ([{"image": text(QUERIES[0]), "label": ""}], "no row has a label"),
        (rows(labels=["ant", "bee", ["x"]]), "a label is ['x']"),
        (rows(labels=["ant", "bee", "bee"]), "the support set has 2 classes"),
        ([{"picture": "x", "label": "y"}], "image"),
    ):
        code, answer = ask(server, sent)
        assert code == 400
        assert message in answer
    for content in (b"", b"{", b'{"dataframe_records": 5}', b"[" * 10_000, b'{"inputs": NaN}'):
        answer = server.post("/invocations", content=content, headers={"content-type": "application/json"})
        assert answer.status_code >= 400
        assert "Traceback" not in answer.text
    answer = ask(server, rows(), inner_steps="many")
    assert answer[0] == 400


def test_only_support_rows_are_answered_by_nothing(server: TestClient) -> None:
    assert ask(server, rows()[:WAY]) == (200, [])


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [
        ("inner_steps", 5, "6 inner steps; at most 5 are allowed"),
        ("images", 5, "6 images; at most 5 are allowed"),
        ("pixels", 16 * 16 * 5, "1,536 pixels; at most 1,280 are allowed"),
        ("bytes", 1000, "bytes; at most 1,000 are allowed"),
    ],
)
def test_limits_of_a_request_are_kept_and_may_be_set(
    server: TestClient, name: str, limit: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(server, rows(), inner_steps=6)[0] == 200
    monkeypatch.setenv(variable(name), str(limit))
    code, answer = ask(server, rows(), inner_steps=6)
    assert code == 400
    assert message in answer
    assert variable(name) in answer


def test_endless_inner_steps_are_refused_everywhere(server: TestClient, model: Model) -> None:
    assert ask(server, rows(), inner_steps=2_000_000_000)[0] == 400
    with pytest.raises(DataError, match=r"1,000,000,000,000 inner steps; at most 1,000 are allowed\n.*DISTMETA_MAX_INNER_STEPS"):
        model.adapt(SUPPORT, LABELS, 10**12)


@pytest.mark.parametrize("value", ["", "-1", "0", "many", "1.5", "9" * 30, "²"])
def test_a_limit_is_a_positive_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTMETA_MAX_IMAGES", value)
    with pytest.raises(ConfigError, match="is not a positive whole number"):
        limits()
    monkeypatch.delenv("DISTMETA_MAX_IMAGES")
    assert limits() == Limits()


@pytest.mark.parametrize(
    "labels",
    [
        np.arange(3),
        list(np.arange(3)),
        np.array(["a", "b", "c"]),
        list(np.array(["a", "b", "c"])),
        torch.arange(3),
        list(torch.arange(3)),
        pd.Series(["a", "b", "c"]),
        pd.Categorical(["a", "b", "c"]),
        [1.5, 2.5, 3.5],
        list(np.float32([1, 2, 3])),
        (i for i in range(3)),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_labels_of_any_plain_kind_work_and_are_saved(labels: Any, model: Model, tmp_path: Path) -> None:
    adapted = model.adapt(SUPPORT, labels)
    assert {type(name) for name in adapted.classes} <= {str, int, float}
    adapted.save(tmp_path / "adapted")
    again = Adapted.load(tmp_path / "adapted")
    assert again.classes == adapted.classes
    assert torch.equal(again.predict(QUERIES), adapted.predict(QUERIES))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "c"], r"label 1 is missing \(None\)"),
        (["a", "b", float("nan")], r"label 2 is missing \(nan\)"),
        (["a", "b", ""], r"label 2 is missing \(''\)"),
        (pd.Series(["a", None, "c"]), "label 1 is missing"),
        (pd.Series([1, None, 3], dtype="Int64"), "label 1 is missing"),
        ([pd.NaT, 1, 2], "label 0 is missing"),
        (["a", 1, "c"], "labels of different kinds: label 0 is 'a' and label 1 is 1"),
        ([1, True, 2], "labels of different kinds: label 0 is 1 and label 1 is True"),
        ([("a",), "b", "c"], "label 0, .*, is not text or a number"),
        ([b"a", b"b", b"c"], "label 0, .*, is not text or a number"),
        ([1.0, float("inf"), 2.0], "label 1, inf, is not text or a number"),
        (torch.eye(3), "label 0, .*, is not text or a number"),
        (["a", "b"], "3 images but 2 labels"),
    ],
)
def test_mixed_and_missing_labels_are_refused_by_name(labels: Any, message: str, model: Model) -> None:
    with pytest.raises(DataError, match=message):
        model.adapt(SUPPORT, labels)
    if len(labels) == 3:
        with pytest.raises(DataError):
            class_labels(labels)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tensors_that_are_not_finite_are_refused(bad: float, model: Model) -> None:
    tensor = torch.zeros(3, 1, 16, 16)
    tensor[1, 0, 2, 3] = bad
    with pytest.raises(DataError, match="image 1 holds values that are not finite"):
        model.adapt(tensor, LABELS)
    with pytest.raises(DataError, match="image 1 holds values that are not finite"):
        model.adapt(SUPPORT, LABELS).predict(tensor)


TENSORS = {
    "sparse": torch.zeros(3, 1, 16, 16).to_sparse(),
    "nested": torch.nested.nested_tensor([torch.zeros(1, 16, 16)] * 3),
    "quantized": torch.quantize_per_tensor(torch.zeros(3, 1, 16, 16), 1.0, 0, torch.quint8),
    "without values": torch.zeros(3, 1, 16, 16, device="meta"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_without_plain_values_are_refused(kind: str, model: Model) -> None:
    adapted = model.adapt(SUPPORT, LABELS)
    for ask in (lambda: model.adapt(TENSORS[kind], LABELS), lambda: adapted.predict(TENSORS[kind])):
        with pytest.raises(DataError, match=f"images are a tensor that is {kind}"):
            ask()
    with pytest.raises(DataError, match=f"labels are a tensor that is {kind}"):
        model.adapt(SUPPORT, TENSORS[kind])


def test_inputs_of_any_float_type_are_converted(model: Model) -> None:
    images = torch.rand(3, 1, 16, 16)
    expected = model.adapt(images.to(torch.float8_e5m2).float(), LABELS).predict(images)
    assert torch.equal(model.adapt(images.to(torch.float8_e5m2), LABELS).predict(images), expected)


@pytest.mark.parametrize("labels", [5, None, "abc", b"abc", {"ant", "bee", "cow"}, {"ant": 0, "bee": 1, "cow": 2}, np.array(3)])
def test_labels_are_a_list(labels: Any, model: Model) -> None:
    with pytest.raises(DataError, match=r"labels is \w+; a list with a label for each image is needed"):
        model.adapt(SUPPORT, labels)


def test_a_label_is_one_class_in_any_unicode_form(model: Model) -> None:
    images = [SUPPORT[0], SUPPORT[0], *SUPPORT[1:]]
    adapted = model.adapt(images, ["\u00e9te", "e\u0301te", "bee", "cow"])
    assert adapted.classes == ["bee", "cow", "\u00e9te"]


def test_arrays_that_are_not_pixels_are_refused(model: Model) -> None:
    for images in ([[[1, 2], [3]]] * 3, [object()] * 3, np.zeros((3, 16, 16), bool), np.full((3, 16, 16), "a")):
        with pytest.raises(DataError, match=r"is needed|is not an array"):
            model.adapt(images, LABELS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((16, 16, 1), np.uint8),
        torch.zeros(16, 16, 3, dtype=torch.uint8),
        torch.tensor(1.0),
        Image.new("L", (16, 16)),
        Path("x.png"),
        "x.png",
        b"x",
        {0: "x.png"},
        None,
        5,
        iter(()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_one_picture_is_not_taken_for_many(images: Any, model: Model) -> None:
    adapted = model.adapt(SUPPORT, LABELS)
    for ask in (adapted.predict, lambda given: model.adapt(given, LABELS)):
        with pytest.raises(DataError, match=r"a list of pictures is needed\ngive one picture as a list"):
            ask(images)


def test_a_picture_without_pixels_is_refused(model: Model) -> None:
    with pytest.raises(DataError, match="image 0 has no pixels: 0 x 5"):
        model.adapt(SUPPORT, LABELS).predict([Image.new("L", (0, 5))])


@pytest.mark.parametrize("steps", [1.5, "2", [1], float("nan"), True])
def test_inner_steps_are_a_whole_number(steps: Any, model: Model) -> None:
    with pytest.raises(DataError, match="inner steps; a whole number is needed"):
        model.adapt(SUPPORT, LABELS, inner_steps=steps)


def test_what_diverges_is_not_answered_by_nan(model: Model) -> None:
    wild = DESCRIPTION | {"learner": DESCRIPTION["learner"] | {"inner_lr": 1e30}}
    learner = build_learner(model=build_model(**wild["model"]), **wild["learner"])
    with pytest.raises(DataError, match=r"adapting by 2 inner steps diverged: .*\ngive fewer inner steps"):
        Model("", wild, learner, model.meta_params).adapt(SUPPORT, LABELS)


@pytest.mark.parametrize(
    ("value", "problem"), [(float("nan"), "not finite"), (float("inf"), "not finite"), (1e30, "a value of size 1e\\+30")]
)
def test_weights_that_are_useless_are_not_published_and_not_loaded(
    value: float, problem: str, uri: str, model: Model, tmp_path: Path
) -> None:
    name = next(name for name in model.meta_params if name.endswith("weight"))
    weights = {key: tensor.clone() for key, tensor in model.meta_params.items()}
    assert unusable(weights) == ""
    weights[name].view(-1)[0] = value
    assert name in unusable(weights)
    with pytest.raises(RegistryError, match=f"the weights of x cannot be used: {name} holds .*{problem}"):
        versions.check_weights(model.learner, weights, "x")
    adapted = model.adapt(SUPPORT, LABELS)
    adapted.save(tmp_path / "adapted")
    file = tmp_path / "adapted" / "adapted.safetensors"
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] = value
    save_file(tensors, file, about)
    with pytest.raises(DataError, match="holds no adapted model"):
        Adapted.load(tmp_path / "adapted")


def test_a_run_whose_best_model_is_nan_is_not_published(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner_type = type(build_learner(model=build_model(**DESCRIPTION["model"]), **DESCRIPTION["learner"]))
    drawn = learner_type.initial_params
    monkeypatch.setattr(learner_type, "initial_params", lambda self: {name: value * float("nan") for name, value in drawn(self).items()})
    folder = finished_run(tmp_path / "run", uri)
    with pytest.raises(RunError, match=r"the best model of .* cannot be used: .* not finite"):
        versions.publish(uri, folder, "nan")


def test_a_folder_that_is_saved_over_holds_all_of_the_old_or_all_of_the_new(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "adapted"
    old, new = model.adapt(SUPPORT, LABELS), model.adapt(SUPPORT[::-1], ["x", "y", "z"])
    old.save(folder)
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_given
adapted = test_given.drawn_model().adapt(test_given.SUPPORT[::-1], ["x", "y", "z"])
replace, count = os.replace, 0
def killed(*arguments):
    if sys.argv[1] == "after":
        replace(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed
adapted.save({str(folder)!r})
"""
    for when, expected in (("before", old), ("after", new)):
        done = subprocess.run([sys.executable, "-c", program, when], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
        found = Adapted.load(folder)
        assert found.classes == expected.classes
        assert torch.equal(found.predict(QUERIES), expected.predict(QUERIES))


def test_a_folder_saved_by_an_earlier_version_loads(model: Model, tmp_path: Path) -> None:
    adapted = model.adapt(SUPPORT, LABELS)
    save_file({name: value.contiguous() for name, value in adapted.tensors().items()}, tmp_path / "adapted.safetensors")
    (tmp_path / "adapted.json").write_text(json.dumps({"classes": adapted.classes, "description": adapted.description}))
    assert torch.equal(Adapted.load(tmp_path).predict(QUERIES), adapted.predict(QUERIES))
    adapted.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapted.safetensors"]
    with pytest.raises(DataError, match="cannot be written"):
        adapted.save(tmp_path / "adapted.safetensors" / "x")


@pytest.mark.parametrize("data", [{"way": 1}, {"eval": {"way": 1}}])
def test_a_task_of_one_class_is_refused(data: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    config = validate({"run_folder": str(tmp_path), "data": {"shards": dataset.location, "shot": 1, "queries": 2} | data}, "test")
    with pytest.raises(ConfigError, match=r"way=1: a task needs at least two classes\nset data\.(eval\.)?way to 2 or more"):
        Classification(config).check()


def test_nan_is_not_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1.0, float("nan")], "b": ({"c": float("inf")},), "d": "nan"})
    assert json.loads(capsys.readouterr().out) == {"a": [1.0, None], "b": [{"c": None}], "d": "nan"}


def test_pngs_of_any_size_may_be_sent(server: TestClient) -> None:
    assert ask(server, rows(queries=[text(png(np.zeros((300, 5), np.uint8)))]))[0] == 200

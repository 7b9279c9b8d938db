"""Publishing, looking up and predicting, against a real MLflow store in SQLite."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from conftest import png
from mlflow import MlflowClient

from distmeta.config import Config, validate
from distmeta.data.episodes import Task
from distmeta.data.inspect import export_episode
from distmeta.data.shards import Dataset
from distmeta.errors import ConfigError, DataError, RegistryError
from distmeta.learners.params import initial_params
from distmeta.models import build_model
from distmeta.registry import models, tracking
from distmeta.registry.predict import predict_folder
from distmeta.train.checkpoint import save_best

WAY = 3
TEST = {"accuracy": 0.6, "ci95": 0.01, "accuracy_inductive": 0.5, "ci95_inductive": 0.01, "episodes": 600, "queries": 15, "seed": 0}
ON = {"episodes": 20, "seed": 0, "way": WAY, "shot": 1, "queries": 15}
DESCRIPTION = {
    "model": {"name": "conv4", "input_shape": [1, 16, 16], "outputs": WAY, "filters": 4, "downsample": "max-pool"},
    "learner": {"name": "maml", "inner_lr": 0.1, "inner_steps": 1, "inner_steps_eval": 2},
    "preprocessing": {"image_size": 16, "channels": 1, "resize": "squash", "mean": [0.5], "std": [0.2]},
    "norm": "batch",
    "dataset": "patterns",
    "fingerprint": "f" * 64,
    "task": {"way": WAY, "shot": 1, "queries": 15},
}


def config(folder: Path, uri: str) -> Config:
    return validate({"run_folder": str(folder), "data": {"shards": "x"}, "tracking": {"uri": uri}}, "test")


def best_of_a_run(run_folder: Path, accuracy_inductive: float, seed: int = 0) -> Path:
    meta_params = initial_params(build_model(**DESCRIPTION["model"]), seed)
    save_best(meta_params, DESCRIPTION | {"step": 10, "validation": ON | {"accuracy_inductive": accuracy_inductive}}, run_folder)
    (run_folder / "config.yaml").write_text("{}")
    return run_folder / "best"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def publish(uri: str, folder: Path, name: str, accuracy_inductive: float = 0.5) -> models.Published:
    best = best_of_a_run(folder, accuracy_inductive)
    return models.publish(uri, tracking.start_run(config(folder, uri), folder, {}), best, name, TEST)


@pytest.fixture(scope="module")
def published(uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return publish(uri, tmp_path_factory.mktemp("run"), "patterns-3way-1shot").uri


@pytest.fixture
def episode(dataset: Dataset, tmp_path: Path) -> Path:
    export_episode(dataset, "test", Task(WAY, 2, 3), 0, tmp_path / "episode")
    return tmp_path / "episode"


def test_law_8_alone_shuffled_and_in_company(uri: str, published: str, episode: Path, tmp_path: Path) -> None:
    model = models.load_model(uri, published)
    together = {p["file"]: p for p in predict_folder(model, episode / "support", episode / "query")}
    assert len(together) == WAY * 3
    for file, prediction in together.items():
        assert list(predict_folder(model, episode / "support", Path(file))) == [prediction]
        assert prediction["class"] in {path.name for path in (episode / "support").iterdir()}
        assert 1 / WAY <= prediction["probability"] <= 1
    crowd = tmp_path / "crowd"
    for i, file in enumerate(sorted(together, reverse=True)):
        for copy in range(20):  # more than one chunk, in another order
            crowd.mkdir(exist_ok=True)
            shutil.copy(file, crowd / f"{i:02d}-{copy:02d}.png")
    for prediction in predict_folder(model, episode / "support", crowd):
        original = together[sorted(together, reverse=True)[int(Path(prediction["file"]).name[:2])]]
        assert (prediction["class"], prediction["probability"]) == (original["class"], original["probability"])


def test_champion_goes_to_the_best_inductive_validation_accuracy(uri: str, tmp_path: Path) -> None:
    published = [publish(uri, tmp_path / str(i), "race", accuracy) for i, accuracy in enumerate((0.5, 0.4, 0.6, 0.6))]
    assert [p.champion for p in published] == [True, False, True, False]
    assert MlflowClient(uri).get_model_version_by_alias("race", "champion").version == int(published[2].version)
    row = next(row for row in models.list_models(uri) if row["uri"] == f"models:/race/{published[2].version}")
    assert (row["aliases"], row["accuracy"], row["ci95"]) == (["champion"], 0.6, 0.01)


def test_a_name_belongs_to_one_dataset_and_task(uri: str, published: str) -> None:
    name = "patterns-3way-1shot"
    models.check_name(uri, name, DESCRIPTION)
    models.check_name(uri, "fresh", DESCRIPTION | {"fingerprint": "0" * 64})
    with pytest.raises(
        ConfigError, match=r"holds models with fingerprint ffffffffffff; this run has fingerprint 000000000000\nchoose another"
    ):
        models.check_name(uri, name, DESCRIPTION | {"fingerprint": "0" * 64})
    with pytest.raises(ConfigError, match="holds models with way 3; this run has way 5"):
        models.check_name(uri, name, DESCRIPTION | {"task": {"way": 5, "shot": 1, "queries": 15}})
    for bad in ("", "../x", "a/b", "a b", "x" * 200, "-x'"):
        with pytest.raises(ConfigError, match="is no model name"):
            models.check_name(uri, bad, DESCRIPTION)


@pytest.mark.parametrize(
    ("model_uri", "error", "message"),
    [
        ("models:/nobody@champion", RegistryError, r"no model 'nobody' is registered \(there are: .*patterns-3way-1shot"),
        ("models:/patterns-3way-1shot@winner", RegistryError, r"no alias 'winner' \(it has: champion\)"),
        ("models:/patterns-3way-1shot/77", RegistryError, r"no version 77"),
        ("patterns", ConfigError, r"is no registry address\nwrite models:/NAME@ALIAS"),
    ],
)
def test_names_that_are_not_there(model_uri: str, error: type[Exception], message: str, uri: str, published: str) -> None:
    with pytest.raises(error, match=message):
        models.load_model(uri, model_uri)


@pytest.mark.parametrize("file", ["meta_params.safetensors", "model.json"])
def test_a_changed_artifact_is_refused(file: str, uri: str, tmp_path: Path) -> None:
    published = publish(uri, tmp_path / "run", f"tampered-{hashlib.sha256(file.encode()).hexdigest()[:6]}")
    source = Path(MlflowClient(uri).get_model_version(published.name, published.version).source.removeprefix("file://"))
    content = bytearray((source / file).read_bytes())
    content[-2] ^= 1
    (source / file).write_bytes(content)
    with pytest.raises(RegistryError, match=f"{file} of .* is not what was published"):
        models.load_model(uri, published.uri)


def test_bad_support_and_query_folders(uri: str, published: str, episode: Path, tmp_path: Path) -> None:
    model = models.load_model(uri, published)

    def refused(support: Path, query: Path, message: str) -> None:
        with pytest.raises(DataError, match=message):
            list(predict_folder(model, support, query))

    support, query = episode / "support", episode / "query"
    refused(tmp_path / "absent", query, "does not exist\ngive a folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, query, "has no class folder; at least two are needed")
    refused(support, empty, "holds no image to classify")
    (empty / "cat").mkdir()
    refused(empty, query, "has one class folder, 'cat'; at least two")
    (empty / "dog").mkdir()
    refused(empty, query, "class folder .*cat holds no image")
    shutil.copytree(support, tmp_path / "more")
    shutil.copytree(next(support.iterdir()), tmp_path / "more" / "extra")
    refused(tmp_path / "more", query, "has 4 classes but the model was trained for 3-way tasks\ngive 3 classes")
    (query / "broken.png").write_bytes(b"no image")
    refused(support, query, "broken.png does not decode")


def test_other_sizes_and_modes_are_understood(uri: str, published: str, episode: Path) -> None:
    import numpy as np
    from PIL import Image

    model = models.load_model(uri, published)
    query = episode / "modes"
    query.mkdir()
    original = Image.open(next((episode / "query").rglob("*.png")))
    for mode in ("L", "RGB", "RGBA", "LA", "P", "1"):
        original.convert(mode).save(query / f"{mode}.png")
    original.convert("CMYK").save(query / "CMYK.jpg")
    (query / "16 bit.png").write_bytes(png(np.asarray(original).astype(np.uint16) * 257))
    original.resize((50, 31)).save(query / "wide.png")
    answers = {Path(p["file"]).stem: p for p in predict_folder(model, episode / "support", query)}
    assert len(answers) == 9
    for mode in ("RGB", "RGBA", "LA", "16 bit"):
        assert answers[mode]["probability"] == pytest.approx(answers["L"]["probability"], abs=1e-6), mode


def test_mlflow_out_of_reach_is_said_in_seconds(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"MLflow at http://127.0.0.1:9/: .*\ncheck tracking.uri"):
        models.list_models("http://user:secret@127.0.0.1:9/")


def test_credentials_are_not_shown() -> None:
    assert tracking.without_credentials("https://me:secret@host:8080/x") == "https://host:8080/x"
    assert tracking.without_credentials("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db"


def test_a_model_json_with_another_learner_is_refused(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    best = best_of_a_run(folder, 0.5)
    content = json.loads((best / "model.json").read_text())
    (best / "model.json").write_text(json.dumps(content | {"learner": content["learner"] | {"name": "future"}}))
    published = models.publish(uri, tracking.start_run(config(folder, uri), folder, {}), best, "from-the-future", TEST)
    with pytest.raises(RegistryError, match=r"uses learner 'future', unknown to distmeta .*\nupdate distmeta"):
        models.load_model(uri, published.uri)

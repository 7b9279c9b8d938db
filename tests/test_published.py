"""Models published by distmeta 0.1 answer with today's package: `published/` holds the code that they brought along and a description."""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import png
from safetensors.torch import save_file

from distmeta.inference.model import Model, build
from distmeta.learners import build_learner
from distmeta.models import build_model
from distmeta.seeds import generator

PUBLISHED = Path(__file__).parent / "published"
DESCRIPTION: dict[str, Any] = json.loads((PUBLISHED / "model_of_0.1.json").read_text())


def test_the_code_of_a_model_of_0_1_gives_the_predictions_that_our_own_verbs_give(tmp_path: Path) -> None:
    """As MLflow runs it where a later distmeta was imported before: `mlflow.pyfunc` beside the new package."""
    learner = build_learner("maml", build_model(**DESCRIPTION["model"], seed=1), inner_lr=0.2)
    weights = {name: value.contiguous() for name, value in learner.initial_params().items()}
    save_file(weights, tmp_path / "meta_params.safetensors")
    images = [png(generator(3, "published", i).integers(0, 256, (28, 28)).astype(np.uint8)) for i in range(8)]
    labels = [f"class {i}" for i in range(5)]
    shutil.copy(PUBLISHED / "pyfunc_of_0.1.txt", tmp_path / "pyfunc.py")

    classifier = runpy.run_path(str(tmp_path / "pyfunc.py"))["FewShotClassifier"]()
    artifacts = {"model": str(PUBLISHED / "model_of_0.1.json"), "meta_params": str(tmp_path / "meta_params.safetensors")}
    classifier.load_context(SimpleNamespace(artifacts=artifacts))
    answer = classifier.predict(None, pd.DataFrame({"image": images, "label": labels + [""] * 3}))

    ours = Model("", DESCRIPTION, build(DESCRIPTION, weights), weights).adapt(images[:5], labels).predict(images[5:])
    assert np.array([list(row.values()) for row in answer["probabilities"]]) == pytest.approx(ours.numpy())


@pytest.mark.parametrize("name", ["Adapted", "Model", "Picture", "Pictures", "build"])
def test_models_of_earlier_commits_find_what_they_import_under_its_old_address(name: str) -> None:
    import distmeta.registry.model as before

    assert hasattr(before, name)

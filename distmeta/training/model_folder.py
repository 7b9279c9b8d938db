"""A model as files: weights in safetensors, their description in JSON. It is kept in a run folder, published to a registry, and fetched
from there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator
from safetensors.torch import load as deserialised
from safetensors.torch import save as serialised

from distmeta import files
from distmeta.errors import RunError
from distmeta.learners.description import Description
from distmeta.learners.params import Params
from distmeta.training.sealed import SealedFolder
from distmeta.training.storage import read_json

WEIGHTS = "meta_params.safetensors"
MODEL = "model.json"
TEST_EPISODES = "test_episodes.json"  # of a published model: every test episode's scores, for paired comparisons
_LARGEST = 1 << 40  # bytes of weights
PUBLISHED = (WEIGHTS, MODEL, TEST_EPISODES)

Rows = Sequence[Sequence[float | None]]
"""A row of scores for each episode; None is a score that is not finite."""


def _of_one_length(rows: list[list[float | None]]) -> list[list[float | None]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("all rows must have the same length")
    return rows


STORED_ROWS = Annotated[list[list[float | None]], AfterValidator(_of_one_length)]


class ModelFolder(SealedFolder):
    """A model's weights, and the `description` from which its network and learner can be rebuilt."""

    def save(self, meta_params: Params, description: dict[str, Any]) -> None:
        with self.filling() as folder:
            save_params(meta_params, folder / WEIGHTS)
            (folder / MODEL).write_text(json.dumps(description, indent=1))

    def load_params(self) -> Params:
        """Raises RunError."""
        return load_params(self.path / WEIGHTS)

    def read_description(self) -> dict[str, Any]:
        """Read the model. Raises RunError if it is missing, damaged or of a format that this version does not know."""
        return self._json(MODEL, Description)

    def read_test_episodes(self) -> Rows:
        """The scores of a published model's test episodes. Raises RunError."""
        return self._json(TEST_EPISODES, STORED_ROWS)

    def _json(self, name: str, kind: Any) -> Any:
        try:
            return read_json(self.path / name, kind)
        except OSError as error:
            raise RunError(f"{self} holds no model: {error}", "give the folder of a run that ended with its test") from None

    def write_published(self, folder: Path, description: dict[str, Any], by_episode: Rows) -> None:
        """Write the files of a published model into the new local folder `folder`: these weights, with a longer description."""
        folder.mkdir()
        (folder / WEIGHTS).write_bytes((self.path / WEIGHTS).read_bytes())
        (folder / MODEL).write_text(json.dumps(description, indent=1))
        (folder / TEST_EPISODES).write_text(json.dumps(by_episode))


def save_params(params: Params, path: Path) -> None:
    # Not save_file, because its errors have no errno from which a full disk could be recognised.
    path.write_bytes(serialised({name: value.detach().contiguous() for name, value in params.items()}))


def load_params(path: Path) -> Params:
    """Raises RunError if the file does not hold tensors."""
    try:
        return deserialised(files.read_bytes(path, _LARGEST))
    except Exception as error:  # a damaged header can raise nearly any exception
        raise RunError(f"{path} cannot be read: {error}", "start the run again in a new run_folder") from None

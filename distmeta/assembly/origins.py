"""Copies the models that a run starts from, or is compared with, into its folder."""

from distmeta.assembly.build import fetch_weights
from distmeta.assembly.run import Run
from distmeta.config import is_registered
from distmeta.data.location import Reading
from distmeta.registry import versions


def fetch_models(run: Run, uri: str) -> None:
    """Copy the models that `run` starts from or is compared with into its folder, and seal its first weights there.

    They are copied once, because aliases may move. Raises RegistryError if a model is not in the registry at `uri`, ConfigError if it does
    not fit.
    """
    config, folder = run.config, run.folder
    beside = config.data.eval.beside
    wanted = [(folder.beside(number), origin) for number, origin in enumerate(beside)]
    if config.init_from is not None:
        wanted.append((folder.init_from, config.init_from))
    for model, origin in wanted:
        if not model.is_whole:
            with model.filling() as new:
                if is_registered(origin):
                    versions.download(uri, origin, new)
                else:
                    fetch_weights(origin, new, Reading(config.data.read_timeout_s, config.data.read_attempts))
    if not folder.initial.is_whole:
        folder.initial.save(run.learner.whole(run.start()), run.description)
    for number in range(len(beside)):
        run.beside(number)  # called to raise ConfigError if it does not fit

"""Builds objects from a config: the network and its learner, the outer update, and the description in a published model."""

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distmeta.assembly.code import libraries
from distmeta.assembly.domain import Domain
from distmeta.assembly.received import import_paths
from distmeta.config import Config
from distmeta.data.episodes import EpisodeBatch
from distmeta.data.location import Location, Reading
from distmeta.errors import ConfigError, DataError
from distmeta.inference.model import build
from distmeta.learners import build_learner, check_settings, learner_class
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.masking import masked
from distmeta.models import MODELS, build_model, native
from distmeta.models.call import outputs_of
from distmeta.models.contract import check_forward, freeze_unreached, no_vmap
from distmeta.models.function import check_function
from distmeta.models.head import HEAD, features
from distmeta.models.native.library import KernelsUnavailable, library
from distmeta.models.norm import BatchNorm2d, FrozenBatchNorm, RunningBatchNorm2d
from distmeta.models.pretrained import read_weights
from distmeta.seeds import torch_seed
from distmeta.training.devices import device_of
from distmeta.training.model_folder import WEIGHTS, ModelFolder, save_params
from distmeta.training.outer import OuterUpdate, schedule
from distmeta.training.promp import ProMP
from distmeta.training.run_folder import RunFolder
from distmeta.training.sealed import sha256
from distmeta.training.trpo import TRPO

SOURCE = "source.json"  # stored beside weights from a file: the file's name and SHA-256


def model_settings(config: Config, domain: Domain) -> dict[str, Any]:
    """What `build_model` takes. Raises ConfigError if the network has an argument that the config has no key for."""
    for key in ("seed", "allow_import"):
        if key in config.model.own:
            raise ConfigError(
                f"model.{key} cannot be given: distmeta seeds and imports networks by arguments of that name",
                "name the constructor's argument otherwise, or bind it in a function of your own that model.name names",
            )
    shape = {"input_shape": list(_network_shape(config.learner.name, domain)), "outputs": domain.outputs}
    parts = {"head": config.model.head} if config.model.head != HEAD else {}
    lora = {"lora": config.model.lora.model_dump()} if config.model.lora else {}
    return {"name": config.model.name, "norm": config.model.norm} | shape | parts | lora | config.model.own


def _network_shape(learner: str, domain: Domain, allow_import: bool = True) -> tuple[int, ...]:
    """The shape of one input of the network: the domain's, unless the learner derives other inputs from it."""
    return learner_class(learner, allow_import).network_shape(domain.input_shape, domain.outputs)


def learner_of(
    config: Config, domain: Domain, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, drawn: bool = True
) -> Learner:
    """The learner that `config` names, with its network.

    The run's seed draws the network's weights, on the CPU in float32 for every later device and type, so that all workers start with equal
    weights. Without `drawn` only shapes are right. Raises ConfigError if a setting is not accepted, or the network breaks a rule of
    docs/extending.md.
    """
    settings = check_settings(config.learner.name, config.learner.settings, allow_import=True)
    seed = torch_seed(config.seed, "initial weights") if drawn else None
    network = build_model(**model_settings(config, domain), allow_import=True, seed=seed)
    learner = build_learner(
        config.learner.name,
        network,
        objective=domain.objective,
        allow_import=True,
        seed=config.seed,
        bfloat16=config.train.precision == "bfloat16",
        **settings,
    )
    if config.model.name not in MODELS:
        _try_out(config, domain, learner, drawn)
    if config.outer.train is not None:
        learner.train_only(config.outer.train)
    if not learner.initial_params():
        raise ConfigError(
            f"learner {config.learner.name} has nothing to train: every parameter of {config.model.name} is frozen",
            "keep requires_grad=True for some of them; with outer.steps=0 they do not change either",
        )
    if learner.inner_steps_eval and not learner.adapted:
        raise ConfigError(
            f"learner {config.learner.name} adapts no parameter",
            "leave some trainable; your own learner names them in its property `adapted`",
        )
    learner.check_names()
    learner.constant_body = learner.leaves_features(torch.zeros(2, *_network_shape(config.learner.name, domain)))
    device_of(torch.device(device)).place(learner.model, dtype)
    return learner


def _try_out(config: Config, domain: Domain, learner: Learner, new: bool) -> None:
    """Freeze what the network does not use, and find out whether torch.vmap can batch its tasks. Raises ConfigError.

    Where the network is `new`, and not one that a run has begun with, it is also checked to be a function of its inputs.
    """
    inputs = two_inputs(config, domain)
    check_forward(config.model.name, learner.model, inputs, domain.outputs)
    if new:
        check_function(config.model.name, learner.model, _three_inputs(config, domain))
    map_ = features if learner.method == "features" else outputs_of
    freeze_unreached(learner.model, inputs, map_)
    if learner.task_batching == "auto":
        learner.no_vmap = no_vmap(learner.model, inputs, map_)


def two_inputs(config: Config, domain: Domain) -> torch.Tensor:
    """Zeros (2, …) with the shape and type of the network's inputs."""
    return torch.zeros(2, *_network_shape(config.learner.name, domain), dtype=domain.input_type)


def _three_inputs(config: Config, domain: Domain) -> torch.Tensor:
    """Inputs (3, …) with the shape and type of the network's; integers, such as token ids, are those of an example, because not all are
    valid.
    """
    if domain.input_type.is_floating_point:
        return torch.zeros(3, *_network_shape(config.learner.name, domain))
    example = domain.example(1)
    inputs = example.query_images[0][:3] if isinstance(example, EpisodeBatch) else two_inputs(config, domain)
    return inputs[torch.arange(3) % len(inputs)]


def notes_of(learner: Learner) -> list[str]:
    """Sentences for users about how their own network was changed and is computed."""
    model, notes = learner.model, []
    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d | FrozenBatchNorm)]
    if norms:
        kinds = {BatchNorm2d: "batch", RunningBatchNorm2d: "running", FrozenBatchNorm: "frozen"}
        notes.append(f"{len(norms)} batch norms take statistics as model.norm={kinds[type(norms[0])]} says")
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    learned = sum(value.numel() for value in learner.initial_params().values())
    if frozen:
        more = f" and {len(frozen) - 3} more" if len(frozen) > 3 else ""
        notes.append(f"frozen: {', '.join(frozen[:3])}{more}; {learned} values are meta-trained")
    if learner.no_vmap is not None:
        notes.append(f"tasks are computed one after another: {learner.no_vmap}")
    return notes


def started_from(config: Config, learner: Learner) -> Params:
    """meta_params at step 0. With config.init_from, its weights (already in the run folder) replace the learner's own. Raises ConfigError
    if they do not fit.
    """
    if config.init_from is None:
        return learner.initial_params()
    return learner.start_from(RunFolder(config.run_folder).init_from.load_params(), masked(config.init_from), config.init_prefix)[0]


def fetch_weights(origin: str, folder: Path, reading: Reading) -> None:
    """Copy the tensors of the file at a path or URL into `folder` on this machine, with the file's name and SHA-256. Raises DataError if it
    cannot be read or holds no weights.
    """
    name = masked(origin)
    place, _, file = origin.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / f"weights{Path(origin.partition('?')[0]).suffix.lower()}"
        location = Location(place or "/", reading)
        here = location.local(file)
        try:
            if here is not None:
                shutil.copyfile(here, copy)
            else:
                location.download(file, location.size(file), copy)
        except FileNotFoundError:
            raise DataError(f"init_from={name} does not exist", "give the path or URL of a file of weights") from None
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            raise DataError(f"init_from={name} cannot be read: {error.strerror}", "give the path or URL of a file of weights") from None
        save_params({key: value.clone() for key, value in read_weights(copy, f"init_from={name}").items()}, folder / WEIGHTS)
        (folder / SOURCE).write_text(json.dumps({"origin": name, "sha256": sha256(copy)}))


def published_learner(folder: ModelFolder, domain: Domain, origin: str, like: torch.Tensor) -> tuple[Learner, Params, str]:
    """The learner, meta_params and norm of the registered model in `folder`, on `like`'s device and in its type.

    Raises ConfigError if the model's inputs are not the domain's. No code in the folder is executed; a user's network is imported only if
    the config names it.
    """
    description = folder.read_description()
    own = {domain.config.model.name, domain.config.learner.name}
    learner = description["learner"]["name"]
    reads, wanted = tuple(description["model"]["input_shape"]), _network_shape(learner, domain, allow_import=learner in own)
    if reads != wanted:
        raise ConfigError(f"{origin} reads inputs of shape {reads}; this run has {wanted}", "leave it out of data.eval.beside")
    weights = {name: value.to(like.device, like.dtype) for name, value in folder.load_params().items()}
    return build(description, weights, own, domain.objective), weights, description["norm"]


def outer_of(config: Config, meta_params: Params, statistics: Params) -> OuterUpdate:
    outer = config.outer
    lr = schedule(outer.schedule, outer.lr, outer.steps, outer.milestones, outer.decay)
    of_optimizer: dict[str, Any] = {
        "meta_params": meta_params,
        "optimizer": outer.optimizer,
        "lr": lr,
        "momentum": outer.momentum,
        "weight_decay": outer.weight_decay,
        "clip_norm": outer.clip_norm,
        "clip_value": outer.clip_value,
        "statistics": statistics.keys(),
    }
    if outer.update == "promp":
        return ProMP(outer.epochs, **of_optimizer)
    if outer.update == "trpo":
        return TRPO(outer.max_divergence, **of_optimizer)
    return OuterUpdate(**of_optimizer)


def model_description(config: Config, domain: Domain, learner: Learner) -> dict[str, Any]:
    """Names and constructor arguments, from which the network and its learner can be rebuilt, and the data they were trained on."""
    more: dict[str, Any] = {"published": config.published.model_dump()} if config.published else {}
    more |= {"metric": config.data.eval.metric} if config.data.eval.metric else {}
    more |= {"adapted": learner.adapted} if config.model.lora else {}
    task = domain.train_task
    return more | {
        "model": model_settings(config, domain),
        "learner": {"name": config.learner.name} | learner.settings,
        "preprocessing": domain.preprocessing and domain.preprocessing.model_dump(),
        "norm": config.model.norm,
        "notes": notes_of(learner),
        "libraries": libraries(import_paths(config), learner, *learner.model.modules()),
        "frozen": sorted(name for name, value in learner.model.named_parameters() if not value.requires_grad),
        "domain": {"name": config.data.domain, "settings": domain.settings.model_dump(mode="json")},
        "dataset": domain.name,
        "fingerprint": domain.fingerprint,
        "task": {"way": task.way, "shot": task.shot, "queries": task.queries},
        "training_seed": config.seed,
    }


def use_kernels(config: Config, learner: Learner, dtype: str) -> None:
    """Use the run's kernels if this machine has them. It may be a machine without workers."""
    if config.train.kernels == "native":
        with suppress(KernelsUnavailable):
            native.use(learner.model, library(dtype))

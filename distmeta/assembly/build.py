"""Builds objects from a config: the network and its learner, the outer update, and the description in a published model."""

import json
import shutil
import tempfile
from contextlib import suppress
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch

from distmeta.assembly.domain import Domain
from distmeta.config import Config
from distmeta.data.episodes import Batch
from distmeta.data.location import Location, Reading
from distmeta.errors import ConfigError, DataError, DistmetaError
from distmeta.inference.model import build
from distmeta.learners import build_learner, check_settings, learner_class
from distmeta.learners.learner import Learner
from distmeta.learners.memory import predicted_bytes
from distmeta.learners.params import Params, fill, floating, floating_parameter, state
from distmeta.masking import masked
from distmeta.models import MODELS, build_model, native
from distmeta.models.call import twice_differentiable
from distmeta.models.construct import seeded
from distmeta.models.contract import check_forward, freeze_unreached, no_vmap, outputs_of
from distmeta.models.convert import set_training
from distmeta.models.head import HEAD, features
from distmeta.models.native.library import KernelsUnavailable, library
from distmeta.models.norm import BatchNorm2d, FrozenBatchNorm, RunningBatchNorm2d
from distmeta.models.pretrained import read_weights
from distmeta.seeds import torch_seed
from distmeta.training.model_folder import WEIGHTS, ModelFolder, save_params
from distmeta.training.outer import OuterUpdate, schedule
from distmeta.training.promp import ProMP
from distmeta.training.run_folder import RunFolder
from distmeta.training.sealed import sha256
from distmeta.training.trpo import TRPO

SOURCE = "source.json"  # stored beside weights from a file: the file's name and SHA-256


def model_settings(config: Config, domain: Domain) -> dict[str, Any]:
    """What `build_model` takes."""
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
        _try_out(config, domain, learner)
    if config.outer.train is not None:
        learner.train_only(config.outer.train)
    if not learner.initial_params():
        raise ConfigError(
            f"learner {config.learner.name} has nothing to train: every parameter of {config.model.name} is frozen",
            "keep requires_grad=True for some of them; with outer.steps=0 they do not change either",
        )
    if learner.inner_steps_eval and not learner.adapted:
        raise ConfigError(f"learner {config.learner.name} adapts no parameter: all are frozen", "leave some of them trainable")
    learner.constant_body = learner.leaves_features(torch.zeros(2, *_network_shape(config.learner.name, domain)))
    learner.model.to(device, dtype)
    return learner


def _try_out(config: Config, domain: Domain, learner: Learner) -> None:
    """Freeze unused parameters, and find out whether torch.vmap can batch the network's tasks. Raises ConfigError."""
    inputs = _two_inputs(config, domain)
    check_forward(config.model.name, learner.model, inputs, domain.outputs)
    map_ = features if learner.method == "features" else outputs_of
    freeze_unreached(learner.model, inputs, map_)
    if learner.task_batching == "auto":
        learner.no_vmap = no_vmap(learner.model, inputs, map_)


def _two_inputs(config: Config, domain: Domain) -> torch.Tensor:
    """Zeros (2, …) with the shape and type of the network's inputs."""
    return torch.zeros(2, *_network_shape(config.learner.name, domain), dtype=domain.input_type)


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


def libraries_of(learner: Learner) -> dict[str, str]:
    """The installed packages, except torch and distmeta, that define classes of the learner and its network: name → version."""
    parts = (learner, *learner.model.modules())
    modules = {type(part).__module__.partition(".")[0] for part in parts} - {"torch", "distmeta"}
    packages = packages_distributions() if modules else {}
    return {name: version(name) for name in sorted({name for module in modules for name in packages.get(module, ())})}


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
        "libraries": libraries_of(learner),
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


def worker_bytes(config: Config, domain: Domain, device: str, slots: int) -> int | None:
    """Predicted peak memory in bytes of the tensors of a worker's step with `slots` slots on `device`.

    The step is run on tensors without values. None if the domain has no example for it, or if the user's network reads values. Raises
    ConfigError if a parameter of the network does not reach the loss.
    """
    learner = learner_of(config, domain)
    use_kernels(config, learner, "float32")
    learner.constant_body = False  # the first step takes the most memory, because no features are cached yet
    params = learner.initial_params()
    batched = learner.batches_tasks(torch.device(device))
    learner.task_batching = "vmap" if batched else "loop"
    tasks = min(slots, learner.tasks_per_chunk) if batched else 1
    like = floating(params)
    scale = torch.finfo(getattr(torch, config.train.weights)).bits // 32
    gradients = slots * sum(value.numel() * value.element_size() for value in params.values())
    example = domain.example(tasks)
    if example is None:
        return None
    try:
        return scale * (predicted_bytes(learner, params, example.like(like)) + gradients)
    except DistmetaError:
        raise
    except Exception:  # a user's forward may read values, which these tensors do not have
        _step_once(config, learner, params, example.take([0] * tasks).like(like))
        return None


def _step_once(config: Config, learner: Learner, params: Params, example: Batch) -> None:
    """Raises ConfigError if the meta-gradient of an example cannot be computed, for example if a second derivative is missing."""
    try:
        learner.slot_gradients(params, example)
    except DistmetaError:
        raise
    except Exception as error:  # a user's network may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"learner {config.learner.name} cannot differentiate model.name={config.model.name}: {type(error).__name__}: {reason}",
            "choose learner.name=fomaml, or layers that have a second derivative",
        ) from error


def check_outputs(config: Config, domain: Domain, learner: Learner) -> None:
    """Try the network on two inputs. Raises ConfigError if it breaks a rule of docs/extending.md."""
    like, inputs = floating_parameter(learner.model), _two_inputs(config, domain)
    inputs = inputs.to(like.device, like.dtype if inputs.is_floating_point() else None)
    check_forward(config.model.name, learner.model, inputs, domain.outputs)
    learner.check_network(inputs)
    if config.model.name not in MODELS:
        _check_carried(config, domain, learner, inputs)


def _check_carried(config: Config, domain: Domain, learner: Learner, inputs: torch.Tensor) -> None:
    """Raises ConfigError unless a second instance computes the same with the network's parameters and persistent buffers.

    Workers and published models construct the network anew and load these values.
    """
    again = build_model(**model_settings(config, domain), allow_import=True).to(inputs.device, floating_parameter(learner.model).dtype)
    fill(again, state(learner.model))
    if inputs.is_floating_point():
        inputs = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
    outputs = []
    for network in (learner.model, again):
        set_training(network, False)
        with torch.no_grad(), seeded(0), twice_differentiable():
            outputs.append(network(inputs))
    if not torch.allclose(outputs[0], outputs[1], rtol=0, atol=0, equal_nan=True):
        raise ConfigError(
            f"another instance of model.name={config.model.name} gives other outputs with the same parameters and buffers",
            "register every value that its constructor draws as a parameter or a persistent buffer",
        )

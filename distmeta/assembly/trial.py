"""Tries a network and its learner out before a run begins, so that a mistake is refused by name, and not in a worker."""

import tempfile
import threading
from contextlib import chdir, nullcontext

import torch
from torch import nn

from distmeta.assembly.build import learner_of, model_settings, two_inputs, use_kernels
from distmeta.assembly.domain import Domain
from distmeta.config import Config
from distmeta.data.episodes import Batch, EpisodeBatch
from distmeta.errors import ConfigError, DistmetaError
from distmeta.learners import LEARNERS
from distmeta.learners.learner import Learner, SlotMetrics
from distmeta.learners.maml import MAML
from distmeta.learners.memory import predicted_bytes
from distmeta.learners.params import Params, fill, floating, floating_parameter, state
from distmeta.models import MODELS, build_model
from distmeta.models.call import twice_differentiable
from distmeta.models.construct import seeded
from distmeta.models.contract import check_device, check_forward
from distmeta.models.convert import set_training
from distmeta.models.function import elsewhere


def worker_bytes(config: Config, domain: Domain, device: str, slots: int) -> int | None:
    """Predicted peak memory in bytes of the tensors of a worker's step with `slots` slots on `device`.

    The step is run on tensors without values. None if the domain has no example for it, or if the user's network reads values.

    Raises ConfigError if a parameter of the network does not reach the loss, or its forward cannot run on `device`.
    """
    learner = learner_of(config, domain, drawn=False)
    if device != "cpu" and config.model.name not in MODELS:
        check_device(config.model.name, learner.model, two_inputs(config, domain), device)
    use_kernels(config, learner, "float32")
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
    found = _step_bytes(config, learner, params, example.like(like))
    return None if found is None else scale * (found + gradients)


def check_step(config: Config, domain: Domain, learner: Learner) -> None:
    """Raises ConfigError unless the learner can compute the meta-gradient of an example and, if the learner is the user's, adapt to one."""
    example = domain.example(1)
    if example is None:
        return
    params = learner.initial_params()
    batch = example.like(floating(params))
    if config.outer.steps:
        _step_bytes(config, learner, params, batch)
    if config.learner.name not in LEARNERS:
        _check_repeats(config, domain, learner, params, batch)


def _check_repeats(config: Config, domain: Domain, learner: Learner, params: Params, batch: Batch) -> None:
    """Raises ConfigError unless the user's own learner finds the same when it is asked again, and another instance of it does."""
    name, again = config.learner.name, learner_of(config, domain, drawn=False)
    fill(again.model, state(learner.model))
    found: list[list[torch.Tensor]] = []
    for number, one in enumerate((learner, again, learner)):
        with seeded(number):
            gradients, metrics = _step_once(config, one, params, batch) if config.outer.steps else (torch.zeros(0), ())
            found.append([gradients, *metrics, *([_adapts(name, one, params, batch)] if isinstance(batch, EpisodeBatch) else [])])
    if not all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for other in found[1:] for a, b in zip(found[0], other, strict=True)):
        raise ConfigError(
            f"learner {name} finds something else when it is asked again, or in another instance",
            "draw random numbers by distmeta.seeds.generator(self.seed, NAME, batch.step, slot); keep nothing from one call to the next",
        )


def _adapts(name: str, learner: Learner, params: Params, episode: EpisodeBatch) -> torch.Tensor:
    """The outputs for the episode's queries after adapting. Raises ConfigError."""
    try:
        outputs = learner.predict(learner.adapt(params, episode), episode.query_images[0]).inductive
    except DistmetaError:
        raise
    except Exception as error:  # a user's learner may raise anything
        raise ConfigError(f"learner {name} cannot adapt to an episode: {type(error).__name__}: {_told(error)}", _REMEDY) from error
    if outputs.dim() != 2 or len(outputs) != episode.query_images.shape[1]:
        raise ConfigError(f"learner {name} gives outputs {tuple(outputs.shape)} for {episode.query_images.shape[1]} queries", _REMEDY)
    return outputs


_REMEDY = "fix its adaptation; docs/extending.md says what it returns"


def _step_bytes(config: Config, learner: Learner, params: Params, batch: Batch) -> int | None:
    """The result of `predicted_bytes`, or None if a forward reads values. Raises ConfigError like `_step_once`."""
    keeps, learner.constant_body = learner.constant_body, False  # the first step takes the most memory, because no features are cached yet
    try:
        return predicted_bytes(learner, params, batch)
    except DistmetaError:
        raise
    except Exception:  # a user's forward may read values, which these tensors do not have
        _step_once(config, learner, params, batch)
        return None
    finally:
        learner.constant_body = keeps


def _step_once(config: Config, learner: Learner, params: Params, example: Batch) -> tuple[torch.Tensor, SlotMetrics]:
    """Meta-gradients of an example. Raises ConfigError if they cannot be computed, such as where a second derivative is missing."""
    try:
        return learner.slot_gradients(params, example)
    except DistmetaError:
        raise
    except Exception as error:  # a user's network may raise anything
        own = config.learner.name not in LEARNERS
        second = isinstance(learner, MAML) and not learner.first_order
        remedy = "fix its task_gradients, or the network's forward" if own else "leave out the layer whose derivative torch lacks"
        raise ConfigError(
            f"learner {config.learner.name} cannot differentiate model.name={config.model.name}: {type(error).__name__}: {_told(error)}",
            "choose learner.name=fomaml, or layers that have a second derivative" if second and not own else remedy,
        ) from error


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _built_elsewhere(config: Config, domain: Domain) -> nn.Module:
    """Another instance of the network, built in another working folder, as workers build theirs. Raises ConfigError."""
    alone = threading.current_thread() is threading.main_thread()  # others may use the process's one working folder now
    try:
        with tempfile.TemporaryDirectory(prefix="distmeta-") as folder, chdir(folder) if alone else nullcontext():
            return build_model(**model_settings(config, domain), allow_import=True)
    except ConfigError as error:  # it was built before
        raise ConfigError(
            f"{error.message}, in another working folder than this one, as workers have",
            "find its files by their whole path, such as Path(__file__).with_name(FILE)",
        ) from error


def check_outputs(config: Config, domain: Domain, learner: Learner) -> None:
    """Try the network on two inputs. Raises ConfigError if it breaks a rule of docs/extending.md."""
    like, inputs = floating_parameter(learner.model), two_inputs(config, domain)
    inputs = inputs.to(like.device, like.dtype if inputs.is_floating_point() else None)
    check_forward(config.model.name, learner.model, inputs, domain.outputs)
    learner.check_network(inputs)
    if config.model.name not in MODELS:
        _check_carried(config, domain, learner, inputs)


def _check_carried(config: Config, domain: Domain, learner: Learner, inputs: torch.Tensor) -> None:
    """Raises ConfigError unless a second instance computes the same with the network's parameters and persistent buffers.

    Workers and published models construct the network again and load these values.
    """
    again = _built_elsewhere(config, domain).to(inputs.device, floating_parameter(learner.model).dtype)
    own, others = state(learner.model), elsewhere(learner.model)
    kept = {name: own[name].clone() for name in others}
    fill(again, own | others)
    if inputs.is_floating_point():
        inputs = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
    outputs = []
    fill(learner.model, others)  # anything that a forward kept of the first values is now wrong
    for network in (learner.model, again):
        set_training(network, False)
        with torch.no_grad(), seeded(0), twice_differentiable():
            outputs.append(network(inputs))
    fill(learner.model, kept)
    if not torch.allclose(outputs[0], outputs[1], rtol=0, atol=0, equal_nan=True):
        raise ConfigError(
            f"another instance of model.name={config.model.name} gives other outputs with the same parameters and buffers",
            "register every value its constructor draws as a parameter or persistent buffer; keep nothing that a forward computed",
        )

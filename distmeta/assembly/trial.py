"""Tries a network and its learner out before a run begins, so that a mistake is refused by name, and not in a worker."""

import torch

from distmeta.assembly.build import learner_of, model_settings, two_inputs, use_kernels
from distmeta.assembly.domain import Domain
from distmeta.config import Config
from distmeta.data.episodes import Batch, EpisodeBatch
from distmeta.errors import ConfigError, DistmetaError
from distmeta.learners import LEARNERS
from distmeta.learners.learner import Learner
from distmeta.learners.maml import MAML
from distmeta.learners.memory import predicted_bytes
from distmeta.learners.params import Params, fill, floating, floating_parameter, state
from distmeta.models import MODELS, build_model
from distmeta.models.call import twice_differentiable
from distmeta.models.construct import seeded
from distmeta.models.contract import check_forward, elsewhere
from distmeta.models.convert import set_training


def worker_bytes(config: Config, domain: Domain, device: str, slots: int) -> int | None:
    """Predicted peak memory in bytes of the tensors of a worker's step with `slots` slots on `device`.

    The step is run on tensors without values. None if the domain has no example for it, or if the user's network reads values.

    Raises ConfigError if a parameter of the network does not reach the loss.
    """
    learner = learner_of(config, domain, drawn=False)
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
    if config.learner.name not in LEARNERS and isinstance(batch, EpisodeBatch):
        _check_adapts(config.learner.name, learner, params, batch)


def _check_adapts(name: str, learner: Learner, params: Params, episode: EpisodeBatch) -> None:
    try:
        outputs = learner.predict(learner.adapt(params, episode), episode.query_images[0]).inductive
    except DistmetaError:
        raise
    except Exception as error:  # a user's learner may raise anything
        raise ConfigError(f"learner {name} cannot adapt to an episode: {type(error).__name__}: {_told(error)}", _REMEDY) from error
    if outputs.dim() != 2 or len(outputs) != episode.query_images.shape[1]:
        raise ConfigError(f"learner {name} gives outputs {tuple(outputs.shape)} for {episode.query_images.shape[1]} queries", _REMEDY)


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


def _step_once(config: Config, learner: Learner, params: Params, example: Batch) -> None:
    """Raises ConfigError if the meta-gradient of an example cannot be computed, for example if a second derivative is missing."""
    try:
        learner.slot_gradients(params, example)
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
    again = build_model(**model_settings(config, domain), allow_import=True).to(inputs.device, floating_parameter(learner.model).dtype)
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

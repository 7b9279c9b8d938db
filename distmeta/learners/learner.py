"""What every learner is: something that adapts to a support set, and turns episodes into meta-gradients, one for each slot."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distmeta.bounds import Positive
from distmeta.data.episodes import Batch, EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward, Method, Noise, frozen, support_statistics
from distmeta.learners.inner import MetaGradients
from distmeta.learners.kept import KeptFeatures
from distmeta.learners.objective import CrossEntropy, Objective
from distmeta.learners.params import Params, constants, leaves, trainable, weights_sha256
from distmeta.models.contract import draws
from distmeta.models.convert import batch_norms, statistics
from distmeta.models.head import has_head, is_head
from distmeta.models.norm import RunningBatchNorm2d
from distmeta.models.patterns import matching
from distmeta.models.pretrained import Loaded, load_into

TaskBatching = Literal["loop", "vmap", "auto"]


class SlotMetrics(NamedTuple):
    """Per slot: mean loss (B,), training score (B,) and the learner's own metrics (B, E) in float64, NaN where there is none."""

    loss: Tensor
    score: Tensor
    own: Tensor


class Logits(NamedTuple):
    """Outputs (M, N) for the queries of one task: all normalised together, and each by the support set's statistics alone."""

    transductive: Tensor
    inductive: Tensor


class Chunk(NamedTuple):
    """Tasks that are computed together: meta_params as leaves for them, the network, the tasks, and the places of those that count."""

    params: Params
    forward: Forward
    tasks: Any
    places: list[int]


class Learner(ABC):
    """Base of all learners. What is learned is in meta_params; `model` holds what nobody changes: frozen parameters and its own buffers.

    `objective` gives the losses of tasks (default: cross-entropy, for classification).

    task_batching says how the slots of a step are computed: one after another ("loop"), `tasks_per_chunk` at a time ("vmap"), or by what is
    faster here ("auto": vmap on CUDA and for networks without convolutions).
    """

    trains_on: ClassVar[Literal["episodes", "labelled batches"]] = "episodes"
    any_way: ClassVar[bool] = False
    """Whether it adapts to any number of classes; otherwise only to as many as the network's head is wide."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names of further numbers that `task_gradients` returns for each task, for records, MLflow and the report."""
    method: ClassVar[Method] = "forward"
    """What training computes of the network: its outputs, or the features that flow into its head."""
    inner_steps_eval: int = 0
    """Inner steps in evaluation and prediction."""
    settings: dict[str, Any]
    """The constructor's arguments, as `build_learner` gave them."""
    no_vmap: str | None = None
    """Why torch.vmap cannot batch this network's tasks, if it was tried and cannot."""
    constant_body: bool = False
    """Whether training leaves an image's features as they are (`leaves_features`), so that they are computed once."""
    seed: int = 0
    """Decides dropout's masks and whatever else the network draws in training."""
    bfloat16: bool = False
    """Whether training computes its outer pass (the query loss; without an inner loop, everything) in that type; the rest stays exact."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | None = None,
        task_batching: TaskBatching = "auto",
        tasks_per_chunk: Positive = 4,
    ) -> None:
        self.objective = objective or CrossEntropy()
        self.model = self.objective.network(model)
        self.task_batching = task_batching
        self.tasks_per_chunk = tasks_per_chunk
        self._fixed: set[str] = set()
        self._kept: KeptFeatures | None = None  # those that the present block uses
        self._features, self._features_body = KeptFeatures(), ""  # those there are, and the hash of the body that they are of

    @property
    def statistics(self) -> Params:
        """The network's running statistics as they stand, by name."""
        return statistics(self.model)

    @classmethod
    def network_shape(cls, input_shape: tuple[int, ...], outputs: int) -> tuple[int, ...]:
        """The shape of one input of the network, where a domain's inputs have `input_shape` and its targets `outputs` values or classes.

        Default: the domain's.
        """
        return input_shape

    @property
    def adapted(self) -> list[str]:
        """Names of the parameters that an inner loop changes."""
        return []

    @property
    def not_frozen(self) -> list[str]:
        """Names of the network's parameters that require a gradient."""
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def chosen(self, key: str, patterns: Sequence[str]) -> list[str]:
        """Names of the parameters that match one of `patterns` and are not frozen.

        Raises ConfigError, naming `key`, if a pattern matches no parameter, or frozen ones alone.
        """
        free, names = set(self.not_frozen), [name for name, _ in self.model.named_parameters()]
        for pattern in patterns:
            matched = matching([pattern], names, key)
            if free.isdisjoint(matched):
                raise ConfigError(
                    f"{key}={pattern!r} matches only frozen parameters, such as {matched[0]}",
                    f"leave it out of {key}, or let the network use that parameter and require its gradient",
                )
        return [name for name in matching(patterns, names, key) if name in free]

    def train_only(self, patterns: Sequence[str]) -> None:
        """Meta-train the parameters that match `patterns` alone. Others that adapt start from the network's own values in every episode;
        all the rest is frozen. Raises ConfigError as `chosen`."""
        kept, adapted = set(self.chosen("outer.train", patterns)), set(self.adapted)
        for name, parameter in self.model.named_parameters():
            if name in kept or not parameter.requires_grad:
                continue
            if name in adapted:
                self._fixed.add(name)
            else:
                parameter.requires_grad_(False)

    def with_fixed(self, params: Params) -> Params:
        """`params` with the starting values of parameters that adapt but are not meta-trained, where it lacks them."""
        return {name: self.model.get_parameter(name).detach() for name in sorted(self._fixed - params.keys())} | params

    def trained(self, params: Params) -> Params:
        """Those of `params` that a meta-gradient is taken of: all but running statistics and what only adapts."""
        return {name: value for name, value in params.items() if name not in self.statistics and name not in self._fixed}

    def initial_params(self) -> Params:
        """meta_params at step 0: the network's parameters and running statistics as they stand, and what else the learner learns."""
        values = {name: value for name, value in trainable(self.model).items() if name not in self._fixed}
        return values | {name: buffer.detach().clone() for name, buffer in self.statistics.items()}

    def start_from(self, given: Params, origin: str, prefix: str | None = None) -> tuple[Params, Loaded]:
        """meta_params at step 0 with the values of `given`, and what was taken; also the network's frozen values become those of `given`.

        What a learner learns beside the network (inner_lr.…, temperature) is taken where name and shape agree. Raises ConfigError as
        `distmeta.models.pretrained.load_into`.
        """
        loaded = load_into(self.model, given, origin, prefix)
        params = self.initial_params()
        beside = {name: value for name, value in given.items() if name in params and value.shape == params[name].shape}
        return params | {name: torch.empty_like(params[name]).copy_(value) for name, value in beside.items()}, loaded

    def whole(self, meta_params: Params) -> Params:
        """meta_params with all else that a prediction uses: frozen parameters and the network's own persistent buffers."""
        return constants(self.model, meta_params) | self.with_fixed(meta_params)

    def slot_gradients(self, meta_params: Params, batch: Batch) -> tuple[Tensor, SlotMetrics]:
        """One meta-gradient for each slot, (B, P) in the order of meta_params, and their metrics: what `each_slot` finds, together."""
        gradients, metrics = zip(*self.each_slot(meta_params, batch), strict=True)
        return torch.cat(gradients), SlotMetrics(*(torch.cat(columns) for columns in zip(*metrics, strict=True)))

    def each_slot(self, meta_params: Params, batch: Batch) -> Iterator[tuple[Tensor, SlotMetrics]]:
        """The meta-gradients (n, P) and metrics of the next n slots, in turn. A slot's bits never depend on its neighbours.

        The entries of running statistics hold (present value - the slot's own), so that the outer update moves them by a plain step.
        """
        for params, forward, chunk, places in self.chunks(meta_params, batch):
            computed = self.task_gradients(params, forward, chunk)
            gradients = computed.gradients | {name: params[name].detach() - seen for name, seen in forward.statistics.items()}
            flat = torch.cat([gradients[name].reshape(len(chunk), -1) for name in meta_params], dim=1)
            kept = slice(None) if places == list(range(len(chunk))) else places  # a slice copies nothing
            yield flat[kept], SlotMetrics(*(column[kept] for column in self._slot_metrics(computed)))

    def chunks(self, meta_params: Params, batch: Batch) -> Iterator["Chunk"]:
        """The batch's tasks in chunks of one size, which `Batch.chunks` fills up."""
        batched = self.batches_tasks(next(iter(meta_params.values())).device)
        size = self.tasks_per_chunk if batched else 1
        features = self._features_of(meta_params) if self.constant_body else None
        for chunk, places in batch.chunks(size):
            params = _task_params(self.with_fixed(meta_params), size if batched else None)
            forward = Forward(self.model, batched, Noise(self.seed, batch.step, chunk.slots), bfloat16=self.bfloat16, kept=features)
            yield Chunk(params, forward, chunk, places)

    def _slot_metrics(self, computed: MetaGradients) -> SlotMetrics:
        """Raises ConfigError if the learner returns a metric that it does not name."""
        losses = computed.losses.detach()
        nothing = torch.full_like(losses, torch.nan, dtype=torch.float64)
        unnamed = sorted(computed.metrics.keys() - set(self.metrics))
        if unnamed:
            raise ConfigError(
                f"{type(self).__name__} returns the metric {unnamed[0]}, which it does not name",
                f"add {unnamed[0]!r} to the tuple `metrics` of the class",
            )
        own = [computed.metrics[name].detach().double() if name in computed.metrics else nothing for name in self.metrics]
        scores = nothing if computed.scores is None else computed.scores.detach().double()
        return SlotMetrics(losses, scores, torch.stack(own, 1) if own else nothing.new_empty(len(losses), 0))

    def batches_tasks(self, device: torch.device) -> bool:
        """Whether slots are computed several at a time on `device`."""
        if self.task_batching == "auto":
            if self.no_vmap is not None:
                return False
            return device.type == "cuda" or not any(isinstance(module, nn.Conv2d) for module in self.model.modules())
        return self.task_batching == "vmap"

    @abstractmethod
    def task_gradients(self, params: Params, forward: Forward, batch: Any) -> MetaGradients:
        """The meta-gradients of the T tasks of `batch`; `params` are meta_params ({name: (T, …)} if `forward` is batched), as leaves."""

    @abstractmethod
    def adaptation(self, meta_params: Params, episode: Any, steps: int | None = None) -> Iterator[Params]:
        """The network after 0, 1, … `steps` (inner_steps_eval if None) inner steps on the support data of one task, a batch of one."""

    def adapt(self, meta_params: Params, episode: EpisodeBatch) -> Params:
        """What `predict` needs for one task: the network after the last inner step, with the support set's norm statistics."""
        *_, adapted = self.adaptation(meta_params, episode)
        return self.with_statistics(adapted, episode.support_images[0])

    @torch.no_grad()
    def with_statistics(self, adapted: Params, inputs: Tensor) -> Params:
        return adapted | support_statistics(self.forward(), adapted, inputs)

    @torch.no_grad()
    def predict(self, adapted: Params, queries: Tensor) -> Logits:
        """Outputs for queries (M, …) under what `adapt` returned."""
        with frozen(self.model, running_only=True):
            transductive = self.outputs(adapted, queries)
        if not self.transductive:
            return Logits(transductive, transductive)
        with frozen(self.model):
            return Logits(transductive, self.outputs(adapted, queries))

    def check_network(self, inputs: Tensor) -> None:
        """Raises ConfigError unless the network, which reads inputs (M, …), does what else the learner asks of it. Default: no more."""
        return None

    def check_steps(self, meta_params: Params, steps: int) -> None:
        """Raises ConfigError unless the learner can adapt by `steps` inner steps."""
        if self.inner_steps_eval == 0:
            raise ConfigError(f"{steps} inner steps: {type(self).__name__} adapts without any", "leave the inner steps out")
        if steps < 1:
            raise ConfigError(f"{steps} inner steps: at least one is needed to adapt", "give 1 or more")

    def outputs(self, adapted: Params, queries: Tensor) -> Tensor:
        """Outputs (M, N) in the present mode of the network's norms."""
        return self.forward()(adapted, queries[None])[0]

    def forward(self) -> Forward:
        """The network for one task, without dropout."""
        return Forward(self.model, batched=False, kept=self._kept)

    @contextmanager
    def keeping_features(self, meta_params: Params) -> Iterator[None]:
        """In this block meta_params stay these, so that features are computed once for each image, if they depend on nothing else: if
        only the head adapts, and no norm takes its statistics from a batch. They are kept until another block has other values."""
        fixed = not self.transductive and all(is_head(self.model, name) for name in self.adapted)
        self._kept = self._features_of(meta_params) if fixed else None
        try:
            yield
        finally:
            self._kept = None

    @property
    def transductive(self) -> bool:
        """Whether a norm takes its statistics from the queries when they are classified together."""
        return any(not isinstance(norm, RunningBatchNorm2d) for norm in batch_norms(self.model).values())

    def leaves_features(self, inputs: Tensor) -> bool:
        """Whether training leaves the features of inputs (M, …) as they are: all before the head is frozen, and draws nothing."""
        moved = self.body(self.initial_params() | dict.fromkeys(self._fixed, inputs))
        if moved or batch_norms(self.model) or not has_head(self.model):
            return False
        return not draws(self.model, inputs)

    def body(self, params: Params) -> Params:
        """Those of `params` that are parameters or buffers of the network before its head."""
        own = self.model.state_dict()
        return {name: value for name, value in params.items() if name in own and not is_head(self.model, name)}

    def _features_of(self, meta_params: Params) -> KeptFeatures:
        """The features kept for the body in meta_params; none yet if it is another one than before."""
        body = weights_sha256(self.body(meta_params))
        if body != self._features_body:
            self._features, self._features_body = KeptFeatures(), body
        return self._features


def _task_params(meta_params: Params, tasks: int | None) -> Params:
    """meta_params as leaves to differentiate by: the same tensors, or a copy for each task."""
    if tasks is None:
        return leaves(meta_params)
    return leaves({name: value.detach().expand(tasks, *value.shape).clone() for name, value in meta_params.items()})

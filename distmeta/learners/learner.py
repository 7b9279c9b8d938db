"""The interface of learners: adapting to a support set, and turning episodes into meta-gradients, one for each slot."""

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
    """Outputs (M, N) for the queries of one task: all normalised together (transductive), and each with the support set's statistics alone
    (inductive).
    """

    transductive: Tensor
    inductive: Tensor


class Chunk(NamedTuple):
    """Tasks that are computed together: meta_params as leaves, the network, the tasks, and the places of real (not repeated) tasks."""

    params: Params
    forward: Forward
    tasks: Any
    places: list[int]


class Learner(ABC):
    """Base of all learners. Learned values are in meta_params; `model` holds the constant ones: frozen parameters and persistent buffers.

    `objective` gives the losses of tasks (default: cross-entropy, for classification).

    task_batching is the way the slots of a step are computed: one after another ("loop"), `tasks_per_chunk` at a time ("vmap"), or the
    faster of both ("auto": vmap on CUDA and for networks without convolutions).
    """

    trains_on: ClassVar[Literal["episodes", "labelled batches"]] = "episodes"
    any_way: ClassVar[bool] = False
    """Whether it adapts to any number of classes. Otherwise their number must be the width of the network's head."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Names of extra numbers that `task_gradients` returns for each task. They appear in records, MLflow and the report."""
    method: ClassVar[Method] = "forward"
    """The part of the network that training computes: its outputs, or the features before its head."""
    inner_steps_eval: int = 0
    """Inner steps in evaluation and prediction."""
    settings: dict[str, Any]
    """The constructor's arguments, as `build_learner` gave them."""
    no_vmap: str | None = None
    """Why torch.vmap cannot batch this network's tasks, or None."""
    constant_body: bool = False
    """Whether an image's features do not change in training (`leaves_features`), so that they are computed once."""
    seed: int = 0
    """Seed of dropout's masks and all other random numbers of the network in training."""
    bfloat16: bool = False
    """Whether training computes its outer pass (the query loss; without an inner loop, everything) in bfloat16. The rest stays exact."""

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
        self._kept: KeptFeatures | None = None  # the features used in the present block
        self._features, self._features_body = KeptFeatures(), ""  # the cached features, and the hash of their body

    @property
    def statistics(self) -> Params:
        """The network's present running statistics, by name."""
        return statistics(self.model)

    @classmethod
    def network_shape(cls, input_shape: tuple[int, ...], outputs: int) -> tuple[int, ...]:
        """The shape of one input of the network, given the domain's `input_shape` and its number `outputs` of target values or classes.
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

        Raises ConfigError, naming `key`, if a pattern matches no parameter, or only frozen ones.
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
        """Meta-train only the parameters that match `patterns`. Other adapted parameters start from the network's values in every episode;
        the rest is frozen. Raises ConfigError as `chosen`.
        """
        kept, adapted = set(self.chosen("outer.train", patterns)), set(self.adapted)
        for name, parameter in self.model.named_parameters():
            if name in kept or not parameter.requires_grad:
                continue
            if name in adapted:
                self._fixed.add(name)
            else:
                parameter.requires_grad_(False)

    def with_fixed(self, params: Params) -> Params:
        """`params` with the starting values of parameters that adapt but are not meta-trained added."""
        return {name: self.model.get_parameter(name).detach() for name in sorted(self._fixed - params.keys())} | params

    def trained(self, params: Params) -> Params:
        """The `params` that have a meta-gradient: all except running statistics and parameters that only adapt."""
        left_out = self.statistics.keys() | self._fixed
        return {name: value for name, value in params.items() if name not in left_out}

    def initial_params(self) -> Params:
        """meta_params at step 0: the network's present parameters and running statistics, and the learner's other learned values."""
        values = {name: value for name, value in trainable(self.model).items() if name not in self._fixed}
        return values | {name: buffer.detach().clone() for name, buffer in self.statistics.items()}

    def start_from(self, given: Params, origin: str, prefix: str | None = None) -> tuple[Params, Loaded]:
        """meta_params at step 0 with the values of `given`, and a summary of the values used. The network's frozen values are also set from
        `given`. A learner's other learned values (inner_lr.…, temperature) are used if name and shape agree. Raises ConfigError as
        `distmeta.models.pretrained.load_into`.
        """
        loaded = load_into(self.model, given, origin, prefix)
        params = self.initial_params()
        beside = {name: value for name, value in given.items() if name in params and value.shape == params[name].shape}
        return params | {name: torch.empty_like(params[name]).copy_(value) for name, value in beside.items()}, loaded

    def check_names(self) -> None:
        """Raises ConfigError if what the learner learns beside the network bears the name of one of the network's parameters."""
        network = Learner.initial_params(self)
        for name, value in self.initial_params().items():
            if name in network and not (value.shape == network[name].shape and torch.equal(value, network[name])):
                raise ConfigError(
                    f"{name} is a parameter of the network, and what {type(self).__name__} learns beside it has that name, too",
                    "rename the network's parameter",
                )

    def whole(self, meta_params: Params) -> Params:
        """meta_params and everything else that a prediction uses: frozen parameters and the network's persistent buffers."""
        return constants(self.model, meta_params) | self.with_fixed(meta_params)

    def slot_gradients(self, meta_params: Params, batch: Batch) -> tuple[Tensor, SlotMetrics]:
        """One meta-gradient for each slot, (B, P) in the order of meta_params, and their metrics: the results of `each_slot`,
        concatenated.
        """
        gradients, metrics = zip(*self.each_slot(meta_params, batch), strict=True)
        return torch.cat(gradients), SlotMetrics(*(torch.cat(columns) for columns in zip(*metrics, strict=True)))

    def each_slot(self, meta_params: Params, batch: Batch) -> Iterator[tuple[Tensor, SlotMetrics]]:
        """The meta-gradients (n, P) and metrics of the next n slots, in turn. A slot's bits never depend on its neighbours.

        The entries of running statistics are (present value - the slot's value), so that the outer update moves them by a plain step.
        """
        for params, forward, chunk, places in self.chunks(meta_params, batch):
            computed = self.task_gradients(params, forward, chunk)
            gradients = computed.gradients | {name: params[name].detach() - seen for name, seen in forward.statistics.items()}
            self._check_gradients(gradients, meta_params, len(chunk))
            flat = torch.cat([gradients[name].reshape(len(chunk), -1) for name in meta_params], dim=1)
            kept = slice(None) if places == list(range(len(chunk))) else places  # a slice copies nothing
            yield flat[kept], SlotMetrics(*(column[kept] for column in self._slot_metrics(computed)))

    def _check_gradients(self, gradients: Params, meta_params: Params, tasks: int) -> None:
        """Raises ConfigError if `task_gradients` gave no gradient of one of meta_params, or one of another shape."""
        for name, value in meta_params.items():
            found = tuple(gradients[name].shape) if name in gradients else None
            if found != (tasks, *value.shape) and (tasks > 1 or found != tuple(value.shape)):  # one task's may be bare
                gave = "no gradient" if found is None else f"a gradient {found}"
                raise ConfigError(
                    f"{type(self).__name__} gives {gave} for {name}; {(tasks, *value.shape)} is needed, a row for each task",
                    "let task_gradients return one for each entry of self.trained(params)",
                )

    def chunks(self, meta_params: Params, batch: Batch) -> Iterator["Chunk"]:
        """The batch's tasks in chunks of equal size, filled up by `Batch.chunks`."""
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
        """Whether several slots are computed at a time on `device`."""
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
        """The parameters for `predict` in one task: after the last inner step, with the support set's norm statistics."""
        *_, adapted = self.adaptation(meta_params, episode)
        return self.with_statistics(adapted, episode.support_images[0])

    @torch.no_grad()
    def with_statistics(self, adapted: Params, inputs: Tensor) -> Params:
        """`adapted` with the batch statistics of `inputs`, by which predictions are normalised."""
        return adapted | support_statistics(self.forward(), adapted, inputs)

    @torch.no_grad()
    def predict(self, adapted: Params, queries: Tensor) -> Logits:
        """Outputs for queries (M, …) with the parameters returned by `adapt`."""
        with frozen(self.model, running_only=True):
            transductive = self.outputs(adapted, queries)
        if not self.transductive:
            return Logits(transductive, transductive)
        with frozen(self.model):
            return Logits(transductive, self.outputs(adapted, queries))

    def check_network(self, inputs: Tensor) -> None:
        """Raises ConfigError unless the network, which reads inputs (M, …), meets the learner's further requirements. Default: none."""
        return None

    def check_steps(self, meta_params: Params, steps: int) -> None:
        """Raises ConfigError unless the learner can adapt by `steps` inner steps."""
        if self.inner_steps_eval == 0:
            raise ConfigError(f"{steps} inner steps: {type(self).__name__} adapts without any", "remove the inner steps")
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
        """Declare that meta_params stay unchanged in this block.

        Features are then computed once for each image if they depend on nothing else, that is, if only the head adapts and no norm takes
        its statistics from a batch. They are kept until a block with other values.
        """
        fixed = not self.transductive and all(is_head(self.model, name) for name in self.adapted)
        self._kept = self._features_of(meta_params) if fixed else None
        try:
            yield
        finally:
            self._kept = None

    @property
    def transductive(self) -> bool:
        """Whether a norm takes its statistics from queries that are classified together."""
        return any(not isinstance(norm, RunningBatchNorm2d) for norm in batch_norms(self.model).values())

    def leaves_features(self, inputs: Tensor) -> bool:
        """Whether the features of inputs (M, …) do not change in training: everything before the head is frozen and draws no random
        numbers.
        """
        moved = self.body(self.initial_params() | dict.fromkeys(self._fixed, inputs))
        if moved or batch_norms(self.model) or not has_head(self.model):
            return False
        return not draws(self.model, inputs)

    def body(self, params: Params) -> Params:
        """The `params` that belong to the network before its head."""
        own = self.model.state_dict()
        return {name: value for name, value in params.items() if name in own and not is_head(self.model, name)}

    def _features_of(self, meta_params: Params) -> KeptFeatures:
        """The cached features for the body in meta_params; an empty cache if the body changed."""
        body = weights_sha256(self.body(meta_params))
        if body != self._features_body:
            self._features, self._features_body = KeptFeatures(), body
        return self._features


def _task_params(meta_params: Params, tasks: int | None) -> Params:
    """meta_params as leaves for differentiation: the same tensors, or a copy for each task."""
    if tasks is None:
        return leaves(meta_params)
    return leaves({name: value.detach().expand(tasks, *value.shape).clone() for name, value in meta_params.items()})

"""What a run is: every key of a config file, with its unit and meaning. YAML, with `--set a.b=c` on top."""

import difflib
import math
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from distmeta import yaml12
from distmeta.bounds import Count, Fraction, Positive, PositiveFloat
from distmeta.errors import ConfigError
from distmeta.files import read_text
from distmeta.masking import is_printable, masked_tree

Steps = Annotated[int, Field(ge=1, le=10**9)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Seconds = Annotated[float, Field(gt=0, le=10**7)]

_LONGEST_TEXT = 4096
_LONGEST_VALUE = 300  # characters shown of a value that is refused

LOCATION = Field(json_schema_extra={"location": True})  # marks keys that hold a path or URL; a submitted job must be able to reach it


class Change(Enum):
    """When the value of a key may change. A key's own mark counts before its section's mark; without either it is BETWEEN_TRIALS."""

    ON_RESUME = "also when a run is resumed, because the result does not depend on it; all trials of a sweep share it"
    BETWEEN_RUNS = "in another run only; all trials of a sweep share it"
    BETWEEN_TRIALS = "in another run, or in another trial of a sweep"
    IN_TRAINING = "also while a trial trains (sweep.search=pbt), because a checkpoint can be trained on with another value"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_typed(cls, value: Any, info: ValidationInfo) -> Any:
        """Text must be printable and not empty. true and false are refused as numbers; pydantic alone would convert them."""
        kinds = _kinds(cls.model_fields[info.field_name].annotation) if info.field_name else set()
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool) and not kinds & {bool, Any}:
                raise PydanticCustomError("not_a_number", "true and false are not valid here")
            if isinstance(item, str) and (not item.strip() or len(item) > _LONGEST_TEXT or not is_printable(item)):
                raise PydanticCustomError("not_text", "printable text of 1 to {most} characters is needed", {"most": _LONGEST_TEXT})
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that a value, or a list's item, may have."""
    if get_origin(annotation) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*map(_kinds, inner))


class EvalConfig(Section):
    way: Positive | None = None
    """Classes per evaluation episode (default: data.way)."""
    shot: Positive | None = None
    """Support images per class (default: data.shot)."""
    queries: Positive | None = None
    """Query images per class (default: data.queries)."""
    episodes: Positive = 600
    """Episodes of the final test."""
    val_episodes: Positive = 200
    """Episodes of each validation during training."""
    seed: Count = 0
    """Seed of validation and test episodes. It is independent of the training seed."""
    metric: str | None = None
    """Import path of your own Metric, which then decides the best step, trial and model (default: the domain's, such as accuracy)."""
    beside: list[str] = []
    """Other registered models to evaluate on the same test episodes. The paired difference to this run is reported."""


class CacheConfig(Section):
    folder: Annotated[str | None, LOCATION] = None
    """Folder on each node where workers share shards read from a URL, in its subfolder distmeta-shards (default: no cache)."""
    limit_gb: PositiveFloat = 20.0
    """Maximum size of distmeta-shards (GB, 10⁹ bytes). The least recently used shards are removed first."""


class AugmentConfig(Section):
    rotation: Fraction = 0.0
    """Probability that all images of an episode are turned together by 90° or 270°."""
    flip: Fraction = 0.0
    """Probability that an image is mirrored left to right."""
    crop: Annotated[int, Field(ge=0, le=4096)] = 0
    """Maximum shift of an image in each direction (pixels). The border is reflected."""
    resized_crop: Fraction = 0.0
    """Smallest share of an image's area that a random crop keeps, which is then scaled to the full size (0: no such crop)."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Brightness, contrast and saturation of each image are multiplied by numbers between 1 - jitter and 1 + jitter."""


class DataConfig(Section):
    shards: Annotated[str | None, LOCATION, Change.ON_RESUME] = None
    """A packed dataset: a folder, a URL (http, https, s3, gs), or `pipe:` and a shell command with {name} for a file's name.

    A run is resumed with the same dataset (compared by its fingerprint), wherever that is.
    """
    functions: Annotated[Literal["sinusoid", "linear-sigmoid", "sinusoid-sequence"] | None, Change.BETWEEN_RUNS] = None
    """Regression instead of shards: every task is a function of this family, and way * shot of its points are the support set."""
    domain: Annotated[str | None, Change.BETWEEN_RUNS] = None
    """What is learned: classification (of shards), regression (of functions), reinforcement (in an environment: docs/reinforcement.md),
    or the import path of your own Domain class.

    Default: classification if data.shards is set, regression if data.functions is.
    """
    settings: dict[str, Any] = {}
    """Settings of the domain, checked by it (docs/extending.md)."""
    way: Positive = 5
    """N: classes in an episode."""
    shot: Positive = 1
    """K: support images per class."""
    queries: Positive = 15
    """Q: query images per class in training episodes."""
    image_size: Pixels | None = None
    """Side of the network's input (pixels; default: the packed size)."""
    channels: Literal[1, 3] | None = None
    """Channels of the network's input (default: as packed). Grey images are repeated for 3; colour images become grey for 1."""
    mean: list[float] | None = None
    """Mean to subtract from each channel (0 to 1; default: the packed dataset's). Set a pretrained network's here."""
    std: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """Standard deviation to divide each channel by (0 to 1; default: the packed dataset's)."""
    class_rotations: bool = False
    """In training, a class turned by 90°, 180° or 270° counts as another class."""
    augment: Annotated[AugmentConfig, Change.IN_TRAINING] = AugmentConfig()
    """Augmentation of training images."""
    max_bad_fraction: Annotated[Fraction, Change.ON_RESUME] = 0.0
    """Share of images that may fail to decode. Each is replaced by another image of its class."""
    read_timeout_s: Annotated[Seconds, Change.ON_RESUME] = 60.0
    """Time without an answer after which a connection is closed (seconds). For a `pipe:` command, its whole duration."""
    read_attempts: Annotated[Positive, Change.ON_RESUME] = 5
    """Attempts to read a file if an error can be temporary."""
    cache: Annotated[CacheConfig, Change.ON_RESUME] = CacheConfig()
    """Shards from a URL, kept on each node."""
    eval: Annotated[EvalConfig, Change.BETWEEN_RUNS] = EvalConfig()
    """Validation and test episodes."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if self.shards is None and self.functions is None and self.domain is None:
            raise PydanticCustomError("no_source", "a source of data is needed")
        if self.shards is not None and self.functions is not None:
            raise PydanticCustomError("two_sources", "data.shards and data.functions exclude each other")
        return self


class LoraConfig(Section):
    rank: Positive
    """Rank of the low-rank pairs."""
    alpha: PositiveFloat = 1.0
    """The product of a pair is scaled by alpha / rank."""
    modules: Annotated[list[str], Field(min_length=1)]
    """Shell patterns over the names of linear and convolution layers, such as "*.attention.*"."""


class ModelConfig(Section):
    model_config = ConfigDict(extra="allow")  # the network's own arguments, checked against its constructor when it is built

    name: str = "conv4"
    """Network: conv4, resnet12, vgg, mlp, … or an import path. Other keys are arguments of its constructor."""
    norm: Literal["batch", "running", "frozen", "group", "none"] = "batch"
    """Normalisation by the episode's statistics (batch), running averages, a trained network's constants (frozen), channel groups, or none.

    Default: frozen if init_from is a file or URL and the network is your own, else batch.
    """
    head: str = "head"
    """Name of the last layer. A linear layer of another width than the task is replaced. Its input are the features."""
    lora: LoraConfig | None = None
    """Low-rank adaptation. The pairs and the head are trained; everything else is frozen."""

    @property
    def own(self) -> dict[str, Any]:
        """The network's own arguments."""
        return self.model_extra or {}


class LearnerConfig(Section):
    model_config = ConfigDict(extra="allow")  # the learner's own arguments, checked against its constructor when it is built

    name: Annotated[str, Change.BETWEEN_TRIALS] = "maml"
    """Meta-learning algorithm: maml, fomaml, anil, … or an import path. Other keys are arguments of its constructor."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting but the name."""
        return {key: value for key, value in (self.model_extra or {}).items() if value is not None}


class OuterConfig(Section):
    update: Literal["gradient", "promp", "trpo"] = "gradient"
    """How a step changes meta_params. gradient: the optimiser, once. For policies also promp: the optimiser, `epochs` times with the same
    trajectories; and trpo: a line search along the natural gradient, without optimiser and lr."""
    epochs: Positive = 5
    """Updates of a step by promp."""
    clip_ratio: PositiveFloat = 0.3
    """promp gains nothing by making an action likelier or less likely than by this ratio."""
    max_divergence: PositiveFloat = 0.01
    """Largest KL divergence (nats) of adapted policies in a step by trpo."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """torch's optimiser for meta_params."""
    lr: Annotated[PositiveFloat, Change.IN_TRAINING] = 1e-3
    """β: outer-loop learning rate."""
    momentum: Fraction = 0.0
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0), Change.IN_TRAINING] = 0.0
    """L2 penalty, as torch.optim counts it."""
    schedule: Literal["constant", "linear", "cosine", "milestones"] = "constant"
    """Schedule of lr over the steps. linear and cosine end at zero."""
    milestones: list[Steps] = []
    """Steps at which lr is multiplied by decay."""
    decay: PositiveFloat = 0.1
    """Factor that lr is multiplied by at each milestone."""
    clip_norm: Annotated[PositiveFloat | None, Change.IN_TRAINING] = None
    """Maximum norm of the meta-gradient. Longer ones are scaled down."""
    clip_value: Annotated[PositiveFloat | None, Change.IN_TRAINING] = None
    """Maximum magnitude of each entry of the meta-gradient."""
    steps: Annotated[int, Field(ge=0, le=10**9), Change.BETWEEN_RUNS] = 1000
    """Outer updates. With 0, the initial network is validated, tested and published."""
    train: Annotated[list[str], Field(min_length=1)] | None = None
    """Shell patterns that select the parameters to meta-train (default: all that are not frozen)."""
    meta_batch_size: Positive = 4
    """Episodes per step, over all workers."""


class TrainConfig(Section):
    workers: Annotated[Positive | tuple[Positive, Positive], Change.ON_RESUME] = 1
    """Ray Train workers. The result does not depend on their number. [fewest, most]: as many as the cluster can place at any time."""
    cpus_per_worker: Annotated[PositiveFloat, Change.ON_RESUME] = 1.0
    """CPUs that Ray reserves per worker. Fractions are allowed."""
    gpus_per_worker: Annotated[Annotated[float, Field(ge=0)] | None, Change.ON_RESUME] = None
    """GPUs that Ray reserves per worker (default: 1 on cuda, 0 on cpu)."""
    accelerator_type: Annotated[str | None, Change.ON_RESUME] = None
    """Kind of GPU for workers, by Ray's name (A100, H100, …; default: any)."""
    threads_per_worker: Positive = 1
    """CPU threads of torch per worker."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Change.ON_RESUME] = "auto"
    """auto: cuda if the cluster has a GPU for every worker, else cpu."""
    precision: Literal["float32", "float64", "bfloat16", "tf32"] = "float32"
    """Type of weights and images. bfloat16 and tf32 keep both in float32: bfloat16 computes the outer pass (query loss) in that type, for
    GPUs and CPUs with its instructions; tf32 lets a GPU's convolutions and matrix products round their factors to 10 bits."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """Kernels of Conv-4's blocks on CPU: C++ compiled at first use (native), or torch. auto: native if every node can build them."""
    reduction: Literal["exact", "fast"] = "exact"
    """Sum of meta-gradients. exact: integers, the same bits on any number of workers. fast: floats by the backend, half the bytes."""

    @model_validator(mode="after")
    def _fewest_first(self) -> "TrainConfig":
        if self.fewest > self.most:
            raise PydanticCustomError("fewest_first", "train.workers is [fewest, most]; the first is the larger")
        return self

    @property
    def fewest(self) -> int:
        """Minimum number of workers."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def weights(self) -> Literal["float32", "float64"]:
        """Type of weights and images."""
        return "float64" if self.precision == "float64" else "float32"

    checkpoint_every: Annotated[Steps, Change.ON_RESUME] = 100
    """Steps between checkpoints."""
    validate_every: Steps = 100
    """Steps between validations. The best validation decides which model is kept."""
    max_failures: Annotated[Count, Change.ON_RESUME] = 3
    """Worker failures after which the run still resumes from its last checkpoint."""
    max_bad_steps: Annotated[Positive, Change.ON_RESUME] = 5
    """Number of successive steps with a non-finite meta-gradient that ends the run."""
    collective_timeout_s: Annotated[Seconds, Change.ON_RESUME] = 120.0
    """Time after which a worker that does not answer counts as lost (seconds)."""
    start_timeout_s: Annotated[Seconds, Change.ON_RESUME] = 120.0
    """Time limit for the start of the workers, and before that for nodes that an autoscaler adds (seconds). In a sweep: for each stage of a
    trial's start."""


class TrackingConfig(Section):
    uri: Annotated[str | None, LOCATION] = None
    """MLflow tracking URI (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working folder)."""
    experiment: str = "distmeta"
    """MLflow experiment."""
    model: str | None = None
    """Name in the model registry (default: <dataset>-<way>way-<shot>shot)."""


class Values(Section):
    """The values that a key takes in a sweep: one of these."""

    uniform: tuple[float, float] | None = None
    """[lowest, highest], evenly."""
    loguniform: tuple[float, float] | None = None
    """[lowest, highest], both above 0, evenly in the logarithm."""
    integers: tuple[int, int] | None = None
    """[lowest, highest], both included."""
    choice: list[Any] | None = None
    """One of a list."""

    @model_validator(mode="after")
    def _not_empty(self) -> "Values":
        given = self.model_dump(exclude_none=True)
        if len(given) != 1:
            raise PydanticCustomError("one_kind", "give one of uniform, loguniform, integers, choice")
        ((kind, values),) = given.items()
        if not values or (kind != "choice" and values[0] >= values[1]):
            raise PydanticCustomError(
                "empty", "the range is empty: [lowest, highest] with lowest below highest, or a list of choices, is needed"
            )
        if kind == "loguniform" and values[0] <= 0:
            raise PydanticCustomError("no_logarithm", "both bounds of loguniform must be above 0")
        if kind == "choice" and len({repr(value) for value in values}) < len(values):
            raise PydanticCustomError("twice", "a choice appears twice")
        return self

    @property
    def extremes(self) -> list[Any]:
        """Values to check: if these are valid, so are all others."""
        return list(next(iter(self.model_dump(exclude_none=True).values())))


class SweepConfig(Section):
    space: dict[str, Values]
    """Dotted key → its values: {learner.inner_lr: {loguniform: [1e-3, 1]}, learner.inner_steps: {choice: [1, 3, 5]}}."""
    trials: Annotated[Positive | None, Change.ON_RESUME] = None
    """Number of trials (default: 16, or every point of the grid)."""
    search: Literal["random", "grid", "optuna", "pbt"] = "random"
    """How trials are chosen: at random, every combination of the choices (grid), or near values that did well (Optuna's TPE).

    pbt: after every `grace` steps the worst quarter of trials copies checkpoints of the best quarter and perturbs their values.
    """
    baseline: bool = True
    """Trial 0 uses the config without changes, and the winner is compared with it."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: at each rung (grace, grace * reduction, … steps) only the best 1/reduction of the trials continue. pbt stops no trial."""
    grace: Steps | None = None
    """Minimum steps of every trial, and steps of a pbt generation (default: train.validate_every)."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """ASHA reduction factor: one in this many trials survives each rung."""
    fresh_episodes: Annotated[Positive, Change.ON_RESUME] = 600
    """Number of fresh validation episodes on which the winner and trial 0 are compared at the end."""
    seeds: Annotated[list[Count], Change.ON_RESUME] = []
    """Training seeds: at the end the winner's config and trial 0's are trained, tested and registered once for each, and compared over
    them (default: none, the trials themselves are compared)."""
    promote: Annotated[Literal["best", "retrain", "none"], Change.ON_RESUME] = "best"
    """What is tested and registered: the winning trial (best), a new run with its config (retrain), or nothing (none)."""
    retrain_steps: Annotated[Steps | None, Change.ON_RESUME] = None
    """Steps of the retrained run (default: outer.steps, which reproduces the winning trial bit for bit)."""

    @property
    def grid_points(self) -> int:
        return math.prod(len(values.choice or ()) for values in self.space.values())

    @property
    def stops_early(self) -> bool:
        return self.scheduler == "asha" and self.search != "pbt"

    @property
    def total(self) -> int:
        """How many trials there are."""
        return self.trials or (self.grid_points + self.baseline if self.search == "grid" else 16)

    @model_validator(mode="after")
    def _coherent(self) -> "SweepConfig":
        if not self.space:
            raise PydanticCustomError("empty_space", "sweep.space names no key")
        if self.seeds and len(set(self.seeds)) < max(2, len(self.seeds)):
            raise PydanticCustomError("several_seeds", "sweep.seeds holds two or more different seeds")
        if self.search == "pbt" and self.total < 4:
            raise PydanticCustomError("small_population", "search: pbt needs 4 trials or more: the worst quarter follows the best")
        ranges = [key for key, values in self.space.items() if values.choice is None]
        if self.search == "grid" and ranges:
            raise PydanticCustomError("range_in_grid", "search: grid needs choices, but {key} is a range", {"key": ranges[0]})
        if self.search == "grid" and self.trials is not None and self.trials > self.grid_points + self.baseline:
            raise PydanticCustomError(
                "small_grid", "sweep.trials is more than the grid's {count} points and trial 0", {"count": self.grid_points}
            )
        return self


def is_registered(origin: str) -> bool:
    """Whether init_from names a registered model rather than a file."""
    return origin.startswith(("models:", "runs:"))


class PublishedConfig(Section):
    source: str
    """Paper and table, such as "Finn et al. 2017, table 1"."""
    figure: float
    """The published value, in the unit that distmeta prints (accuracy: %)."""
    ci95: Annotated[float, Field(ge=0)] | None = None
    """Half-width of the published interval."""


class Config(Section):
    """One run."""

    run_folder: Annotated[str, LOCATION, Change.ON_RESUME]
    """Folder that holds everything the run writes."""
    seed: Annotated[Count, Change.BETWEEN_RUNS] = 0
    """Seed of initial weights and training episodes."""
    init_from: str | None = None
    """Weights that training starts from: a file (.safetensors, or a state dict in .pt, .pth or .bin), the URL of one, or a registered model
    (models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID/model).

    A head of another width is drawn at random.
    """
    init_prefix: str | None = None
    """Prefix to remove from names in init_from, such as "backbone."."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    learner: Annotated[LearnerConfig, Change.IN_TRAINING] = LearnerConfig()
    outer: OuterConfig = OuterConfig()
    train: Annotated[TrainConfig, Change.BETWEEN_RUNS] = TrainConfig()
    tracking: Annotated[TrackingConfig, Change.ON_RESUME] = TrackingConfig()
    published: Annotated[PublishedConfig | None, Change.ON_RESUME] = None
    """The figure of a paper whose recipe this is; `distmeta table` shows it beside ours."""
    sweep: Annotated[SweepConfig | None, Change.BETWEEN_RUNS] = None
    """What `distmeta sweep` varies. `distmeta train` ignores it."""

    @model_validator(mode="before")
    @classmethod
    def _norm_of_a_pretrained_network(cls, content: Any) -> Any:
        """A user's network that starts from a file keeps the statistics in that file, unless model.norm is given."""
        model = content.get("model") if isinstance(content, dict) else None
        if not isinstance(model, dict) or "norm" in model or "." not in str(model.get("name", "")):
            return content
        if content.get("init_from") is None or is_registered(str(content["init_from"])):
            return content
        return content | {"model": model | {"norm": "frozen"}}

    def shown(self) -> dict[str, Any]:
        """Every key and value as plain data, with possible secrets masked."""
        return masked_tree(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The config with possible secrets masked, so that it can be written anywhere."""
        return yaml12.dump(self.shown())


def secrets_of(config: Config) -> dict[str, Any]:
    """The values that `shown` masks, by dotted key."""
    return {key: value for key, value in flat(config.model_dump(mode="json")).items() if masked_tree(value) != value}


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def locations(section: Section, prefix: str = "") -> dict[str, str]:
    """The paths and URLs that a config names, by dotted key; keys without a value are left out."""
    result: dict[str, str] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            result |= locations(value, f"{prefix}{name}.")
        elif value is not None and isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("location"):
            result[prefix + name] = value
    return result


def is_relative(location: str) -> bool:
    """Whether a path or URL leads to another place in another working folder."""
    scheme, is_url, path = location.partition("://")
    if is_url and scheme.startswith(("sqlite", "file")):
        return not path.startswith("/" if scheme == "file" else "//")
    if is_url or location.startswith(("pipe:", "databricks")):
        return False
    return not Path(location.removeprefix("file:")).is_absolute()


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config; each override is "dotted.key=value" with the value in YAML, or verbatim if the key holds text.

    `run_folder` is runs/<file name> unless the file says otherwise. Raises ConfigError naming the key, the value and the rule.
    """
    try:
        content = _sections(read_text(path), str(path))
    except (OSError, ValueError) as error:  # ValueError: it is not text, or no regular file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"config {path} cannot be read: {reason}", "give the path of a YAML file, such as those in configs/") from None
    content.setdefault("run_folder", f"runs/{path.stem}")
    for override in overrides or []:
        _set(content, override)
    return validate(content, str(path))


def origins(config: Config, path: Path, overrides: list[str] | None = None) -> dict[str, str]:
    """The source of each value of `config` (the result of `load_config(path, overrides)`), by dotted key."""
    given = {path.name: flat(_sections(read_text(path), str(path)))}
    given["--set"] = dict.fromkeys(override.partition("=")[0].strip() for override in overrides or [])
    sources = dict.fromkeys(flat(config.shown()), "default")
    for source, names in given.items():  # --set comes last, because it overrides the file
        for key in sources:
            if any(key == name or key.startswith(f"{name}.") for name in names):
                sources[key] = source
    return sources


def parse(text: str, origin: str) -> Config:
    """The Config that `to_yaml` wrote. Raises ConfigError; `origin` names the source."""
    return validate(_sections(text, origin), origin)


def _sections(text: str, origin: str) -> dict[str, Any]:
    """The sections and keys in YAML text, not yet checked. Raises ConfigError."""
    try:
        content = yaml12.load(text, _wants_text)
    except ValueError as error:
        raise ConfigError(f"config {origin} is not YAML: {error}", "see configs/ for examples") from None
    if content is None:
        raise ConfigError(f"config {origin} is empty", "see configs/ for examples")
    if not isinstance(content, dict):
        raise ConfigError(f"config {origin} holds {type(content).__name__}, not sections of keys", "see configs/ for examples")
    return content


def _fields(key: Iterable[str]) -> Iterator[FieldInfo]:
    """The declarations along a dotted key, outermost section first. It ends early at a part that is not declared."""
    section: type[Section] | None = Config
    for name in key:
        field = section.model_fields.get(name) if section else None
        if field is None:
            return
        yield field
        section = section_in(field.annotation)


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a key of this type holds, if it holds one."""
    return next((kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section)), None)


def _annotation_at(place: yaml12.Place) -> Any:
    """The type of the key at this place, or None if there is no such key."""
    fields = list(_fields(place))
    return fields[-1].annotation if len(fields) == len(place) > 0 else None


def change_of(key: str) -> Change:
    """When the value of a dotted key may change. A key that is not declared (an argument of a network or learner) follows its section."""
    marks = [mark for field in _fields(key.split(".")) for mark in field.metadata if isinstance(mark, Change)]
    return marks[-1] if marks else Change.BETWEEN_TRIALS


def _wants_text(place: yaml12.Place) -> bool:
    """Whether a value at this place is read as text, even if it looks like a number: `run_folder: 2024` is a folder."""
    return _kinds(_annotation_at(place)) - {type(None)} == {str}


def _parse(place: yaml12.Place, text: str) -> Any:
    """The value written as `text`. Raises ValueError."""
    annotation = _annotation_at(place)
    of_list = any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))
    absent = text in ("", "~", "null") and type(None) in _kinds(annotation)
    return text if _wants_text(place) and not of_list and not absent else yaml12.load(text, _wants_text, place)


def validate(content: dict[str, Any], origin: str) -> Config:
    """The Config in `content`. Raises ConfigError; for an unknown key it lists the nearest valid ones. `origin` names the source."""
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    else:
        _check_space(config, origin)
        return config
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        raise ConfigError(f"unknown key {key} in {origin}", _nearest(key))
    if first["type"] == "no_source":
        raise ConfigError(f"data.shards is missing in {origin}", "add it, or give --set data.shards=… (for regression: data.functions)")
    if first["type"] == "missing":
        raise ConfigError(f"{key} is missing in {origin}", f"add it, or give --set {key}=…")
    raise ConfigError(f"{key}={_short(repr(first['input']))} in {origin}: {first['msg'][0].lower()}{first['msg'][1:]}", f"change {key}")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _check_space(config: Config, origin: str) -> None:
    for key in config.sweep.space if config.sweep else ():
        if key == "seed":
            raise ConfigError(
                f"sweep.space names {key} in {origin}, which must be equal in all trials: the best of several seeds is a lucky draw",
                "train the config once for each seed and take their mean: distmeta train CONFIG --seeds 0,1,2; or set sweep.seeds=[0,1,2], "
                "which compares the winner with trial 0 over seeds",
            )
        if change_of(key) in (Change.ON_RESUME, Change.BETWEEN_RUNS):
            raise ConfigError(
                f"sweep.space names {key} in {origin}, which must be equal in all trials", "set it for the whole sweep, outside sweep.space"
            )
        sections = {known.rpartition(".")[0] for known in known_keys()}
        if key in sections or (key not in known_keys() and not key.startswith(("model.", "learner.", "data.settings."))):
            raise ConfigError(f"unknown key {key} in sweep.space in {origin}", _nearest(key))


def with_values(config: Config, values: dict[str, Any], origin: str) -> Config:
    """`config` with other values of dotted keys. Raises ConfigError if a value is not valid for its key."""
    content = config.model_dump()
    for key, value in values.items():
        section, _, last = key.rpartition(".")
        _section(content, section.split(".") if section else [], key)[last] = value
    return validate(content, origin)


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key, or None if it has none."""
    content: Any = config.model_dump()
    for part in key.split("."):
        content = content.get(part)
    return content


def _nearest(unknown: str) -> str:
    """The valid keys that `unknown` may have been meant as: similar ones, else all keys of its section."""
    if unknown.startswith("sweep.space."):
        return f"for every key, give one of {', '.join(Values.model_fields)}"
    section = unknown.rpartition(".")[0]
    siblings = [key for key in known_keys() if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(unknown, siblings, n=3, cutoff=0.75) or difflib.get_close_matches(
        unknown, known_keys(), n=3, cutoff=0.75
    )
    last_parts = [key for key in known_keys() if difflib.SequenceMatcher(None, key.rpartition(".")[2], unknown).ratio() > 0.75]
    return f"nearest valid keys: {', '.join(near or last_parts or siblings or Config.model_fields)}"


def known_keys(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of a config."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = section_in(field.annotation)
        if inner and get_origin(field.annotation) is not dict:
            keys += known_keys(inner, f"{prefix}{name}.")
    return keys


def _set(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override} has no value", "write --set dotted.key=value, such as --set outer.lr=0.002")
    *sections, last = key.split(".")
    content = _section(content, sections, f"--set {override}")
    try:
        content[last] = _parse((*sections, last), value)
    except ValueError as error:
        raise ConfigError(f"--set {_short(override)}: the value is not YAML: {error}", "write it as in a config file") from None


def _section(content: dict[str, Any], names: list[str], what: str) -> dict[str, Any]:
    for name in names:
        inside = content.setdefault(name, {})
        if not isinstance(inside, dict):
            raise ConfigError(f"{what}: {name} is not a section", "write --set dotted.key=value, such as --set outer.lr=0.002")
        content = inside
    return content

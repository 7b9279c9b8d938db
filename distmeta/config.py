"""What a run is: every key of a config file, with its unit and meaning. YAML, with `--set a.b=c` on top."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from distmeta.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class EvalConfig(Section):
    way: Positive | None = None
    """Classes in an evaluation episode; data.way if absent."""
    shot: Positive | None = None
    """Support images per class; data.shot if absent."""
    queries: Positive | None = None
    """Query images per class; data.queries if absent."""
    episodes: Positive = 600
    """Episodes of the final test."""
    val_episodes: Positive = 200
    """Episodes of each validation during training."""
    seed: Count = 0
    """Seed of validation and test episodes: they stay the same whatever the training seed."""
    beside: list[str] = []
    """Registered models (models:/NAME@ALIAS) to try on the test's episodes as well, each with its paired difference to the run's own."""


class CacheConfig(Section):
    folder: str | None = None
    """Folder on each node in which its workers share shards read from a URL; none is kept if absent."""
    limit_gb: PositiveFloat = 20.0
    """Size in GB (10⁹ bytes) that the folder may reach; shards used least recently go first."""


class AugmentConfig(Section):
    rotation: Fraction = 0.0
    """Probability that all images of an episode are turned alike, by 90° or 270°."""
    flip: Fraction = 0.0
    """Probability for each image to be mirrored left to right."""
    crop: Count = 0
    """Pixels by which each image may move up, down, left or right, its border reflected."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Brightness, contrast and saturation of each image are multiplied by numbers between 1 - jitter and 1 + jitter."""


class DataConfig(Section):
    shards: str | None = None
    """A packed dataset: a folder, a URL (http, https, s3, gs), or `pipe:` and a shell command with {name} for a file's name."""
    functions: Literal["sinusoid", "linear-sigmoid"] | None = None
    """Instead of shards, regression: every task is a function of this family, and way * shot points of it the support set."""
    way: Positive = 5
    """N: classes in an episode."""
    shot: Positive = 1
    """K: support images per class."""
    queries: Positive = 15
    """Q: query images per class in training episodes."""
    image_size: Positive | None = None
    """Side in pixels that the network sees; the packed size if absent."""
    class_rotations: bool = False
    """In training, a class turned by 90°, 180° or 270° is another class."""
    augment: AugmentConfig = AugmentConfig()
    """Changes to the images of training."""
    max_bad_fraction: Fraction = 0.0
    """Part of the images read that may fail to decode; another image of the class takes the place of each."""
    read_timeout_s: PositiveFloat = 60.0
    """Seconds without an answer after which a connection is cut; of a `pipe:` command, its whole duration."""
    read_attempts: Positive = 5
    """Attempts to read a file when an error may pass."""
    cache: CacheConfig = CacheConfig()
    """Shards from a URL, kept on each node."""
    eval: EvalConfig = EvalConfig()
    """Validation and test episodes."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if self.shards is None and self.functions is None:
            raise PydanticCustomError("no_source", "one of them is needed")
        if self.shards is not None and self.functions is not None:
            raise PydanticCustomError("two_sources", "data.shards and data.functions exclude each other")
        return self


class ModelConfig(Section):
    model_config = ConfigDict(extra="allow")  # the backbone's own arguments, checked against its constructor when it is built

    name: str = "conv4"
    """Backbone: conv4, resnet12, vgg, mlp, or the import path of a class of your own. Further keys are its constructor's arguments."""
    norm: Literal["batch", "running", "group", "none"] = "batch"
    """Normalisation: by the episode's own statistics, by running ones, by groups of channels, or none."""

    @property
    def own(self) -> dict[str, Any]:
        """The backbone's own arguments."""
        return self.model_extra or {}


class LearnerConfig(Section):
    """Keys that are absent take the learner's own default; those that a learner does not take are refused."""

    name: Literal[
        "maml",
        "fomaml",
        "anil",
        "meta-sgd",
        "maml++",
        "reptile",
        "protonet",
        "transfer",
        "classifier-baseline",
        "meta-baseline",
    ] = "maml"
    """Meta-learning algorithm."""
    inner_lr: PositiveFloat | None = None
    """α: inner-loop learning rate, for a loss that is a mean over the support set; 0.05 if absent."""
    inner_steps: Positive | None = None
    """Inner gradient steps in training; 5 if absent."""
    inner_steps_eval: Positive | None = None
    """Inner gradient steps in evaluation and prediction; inner_steps if absent."""
    gradient: Literal["unrolled", "checkpointed"] | None = None
    """maml and its kin: keep every inner step's graph, or one and recompute the others (memory does not grow with inner_steps)."""
    multi_step_loss: Count | None = None
    """maml++: training steps over which the query losses after earlier inner steps fade from the meta-loss."""
    inner_optimizer: Literal["sgd", "adam"] | None = None
    """reptile: optimiser of the inner loop."""
    inner_batch: Positive | None = None
    """reptile: images in an inner step; all of the task if absent."""
    images_per_slot: Positive | None = None
    """classifier-baseline: labelled images in a slot; 32 if absent."""
    temperature: PositiveFloat | None = None
    """meta-baseline: where the learned scale of the cosine begins; 10 if absent."""
    task_batching: Literal["loop", "vmap", "auto"] | None = None
    """How a worker computes its slots: one by one, several at once, or (auto) by what is faster on its device."""
    tasks_per_chunk: Positive | None = None
    """Slots computed at once by vmap; 4 if absent."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was set, beside the name."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class OuterConfig(Section):
    optimizer: Literal["adam", "sgd"] = "adam"
    """torch's optimiser for meta_params."""
    lr: PositiveFloat = 1e-3
    """β: outer-loop learning rate."""
    momentum: Fraction = 0.0
    """Momentum of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty, as torch.optim counts it."""
    schedule: Literal["constant", "linear", "cosine", "milestones"] = "constant"
    """Course of lr over the steps; linear and cosine end at zero."""
    milestones: list[Positive] = []
    """Steps at which lr is multiplied by decay."""
    decay: PositiveFloat = 0.1
    """Factor of lr at each milestone."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the meta-gradient; longer ones are scaled down."""
    clip_value: PositiveFloat | None = None
    """Largest magnitude of each entry of the meta-gradient."""
    steps: Positive = 1000
    """Outer updates."""
    meta_batch_size: Positive = 4
    """Episodes per step, over all workers."""


class TrainConfig(Section):
    workers: Positive = 1
    """Ray Train workers; the result does not depend on how many."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs that Ray reserves for a worker; may be a fraction."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs that Ray reserves for a worker; 1 on cuda and 0 on cpu if absent."""
    threads_per_worker: Positive = 1
    """CPU threads that torch uses in a worker."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if the cluster has a GPU for every worker, else cpu."""
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    """Type of weights and images; bfloat16 keeps both in float32 and computes the outer pass (query loss) in bfloat16, for GPUs."""

    @property
    def weights(self) -> Literal["float32", "float64"]:
        """Type of weights and images."""
        return "float64" if self.precision == "float64" else "float32"

    checkpoint_every: Positive = 100
    """Steps between checkpoints."""
    validate_every: Positive = 100
    """Steps between validations; the best of them is the run's model."""
    max_failures: Count = 3
    """Worker failures after which the run still goes on from its last checkpoint."""
    max_bad_steps: Positive = 5
    """Steps in a row with a non-finite meta-gradient that stop the run."""
    collective_timeout_s: PositiveFloat = 120.0
    """Seconds after which a worker that does not answer counts as lost."""
    start_timeout_s: PositiveFloat = 120.0
    """Seconds that the workers may take to start."""


class TrackingConfig(Section):
    uri: str | None = None
    """MLflow tracking URI; the environment's MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working folder, if absent."""
    experiment: str = "distmeta"
    """MLflow experiment."""
    model: str | None = None
    """Name in the model registry; <dataset>-<way>way-<shot>shot if absent."""


class Config(Section):
    """One run."""

    run_folder: str
    """Folder that holds everything the run writes."""
    seed: Count = 0
    """Decides initial weights and training episodes."""
    init_from: str | None = None
    """Registered model, models:/NAME@ALIAS or models:/NAME/VERSION, whose weights training starts from; a head of other width is drawn."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    learner: LearnerConfig = LearnerConfig()
    outer: OuterConfig = OuterConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config; each override is "dotted.key=value" with the value in YAML.

    `run_folder` is runs/<file name> unless the file says otherwise. Raises ConfigError naming the key, the value and the rule.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            f"config {path} cannot be read: {error.strerror}", "give the path of a YAML file, such as those in configs/"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not YAML: {' '.join(str(error).split())}", "see configs/ for examples") from None
    if not isinstance(content, dict):
        raise ConfigError(f"config {path} holds {type(content).__name__}, not sections of keys", "see configs/ for examples")
    content.setdefault("run_folder", f"runs/{path.stem}")
    for override in overrides or []:
        _set(content, override)
    return validate(content, str(path))


def validate(content: dict[str, Any], origin: str) -> Config:
    """The Config in `content`. Raises ConfigError, with the nearest valid keys where one is unknown; `origin` names the source."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        raise ConfigError(f"unknown key {key} in {origin}", _nearest(key))
    if first["type"] == "no_source":
        raise ConfigError(f"data.shards is missing in {origin}", "add it, or give --set data.shards=… (for regression: data.functions)")
    if first["type"] == "missing":
        raise ConfigError(f"{key} is missing in {origin}", f"add it, or give --set {key}=…")
    raise ConfigError(f"{key}={first['input']!r} in {origin}: {first['msg'][0].lower()}{first['msg'][1:]}", f"mend {key}")


def _nearest(unknown: str) -> str:
    """The valid keys that somebody who wrote `unknown` may have meant: alike ones, else all of its section."""
    section = unknown.rpartition(".")[0]
    siblings = [key for key in known_keys() if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(unknown, siblings, n=3, cutoff=0.75) or difflib.get_close_matches(
        unknown, known_keys(), n=3, cutoff=0.75
    )
    last_parts = [key for key in known_keys() if difflib.SequenceMatcher(None, key.rpartition(".")[2], unknown).ratio() > 0.75]
    return f"nearest valid keys: {', '.join(near or last_parts or siblings)}"


def known_keys(section: type[Section] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of a config."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _set(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override} has no value", "write --set dotted.key=value, such as --set outer.lr=0.002")
    *sections, last = key.split(".")
    for section in sections:
        inside = content.setdefault(section, {})
        if not isinstance(inside, dict):
            raise ConfigError(f"--set {override}: {section} is not a section", "write --set dotted.key=value, such as --set outer.lr=0.002")
        content = inside
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not YAML", "put quotes around it") from None

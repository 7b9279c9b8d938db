"""A config is read whole or refused with key, value, rule and remedy."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distmeta.config import Change, Config, Section, change_of, known_keys, load_config, validate
from distmeta.errors import ConfigError
from distmeta.scale.run import check_run_folder
from distmeta.training.run_folder import RunFolder

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configs_are_valid_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(written(tmp_path, config.to_yaml())) == config


def test_overrides_win(tmp_path: Path) -> None:
    path = written(tmp_path, {"data": {"shards": "x"}, "outer": {"lr": 0.1}})
    config = load_config(path, ["outer.lr=2e-3", "data.eval.way=7", "seed=3", "data.class_rotations=true"])
    assert (config.outer.lr, config.data.eval.way, config.seed, config.data.class_rotations) == (2e-3, 7, 3, True)
    assert config.run_folder == "runs/run"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("outer.learning_rate=1", r"unknown key outer.learning_rate in .*\nnearest valid keys: .*outer.lr"),
        ("worker=2", r"unknown key worker in .*\nnearest valid keys: .*train.workers"),
        ("outer.steps=many", r"outer.steps='many' in .*: input should be a valid integer"),
        ("outer.steps=-1", r"outer.steps=-1 in .*: input should be greater than or equal to 0"),
        ("outer.lr=-1", r"outer.lr=-1 in .*: input should be greater than 0"),
        ("outer.lr=.nan", r"outer.lr=nan in .*: input should be a finite number"),
        ("model.norm=layer", r"model.norm='layer' in .*: input should be 'batch', 'running', 'frozen', 'group' or 'none'"),
        ("data.functions=sinusoid", r"data=.* in .*: data.shards and data.functions exclude each other"),
        ("seed.x=1", r"seed is not a section"),
        ("seed", r"--set seed has no value"),
        ("seed=[", r"the value is not YAML"),
    ],
)
def test_bad_overrides(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, {"data": {"shards": "x"}, "seed": 1}), [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "holds list"),
        ("", "is empty"),
        ("data: {way: 5}", r"data.shards is missing in .*\nadd it, or give --set data.shards=…"),
        ("data: 3", r"data=3 in"),
        ("!!python/object/apply:os.system [id]", "is not YAML"),
    ],
)
def test_bad_files(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, content))


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        load_config(tmp_path / "absent.yaml")


@given(st.dictionaries(st.sampled_from([*known_keys(), "nonsense"]), st.one_of(st.none(), st.integers(), st.text(max_size=3), st.floats())))
def test_no_content_escapes_as_another_error_than_ours(overrides: dict[str, object]) -> None:
    with contextlib.suppress(ConfigError):
        validate({"data": {"shards": "x"}, "run_folder": "r", **overrides}, "test")


def test_every_key_is_documented() -> None:
    def walk(section: type) -> None:
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            nested = isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields")
            if nested:
                walk(field.annotation)
            elif name != "name":
                assert field.description, name

    walk(Config)


def _declarations(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, list[Change]]]:
    """Each key with the marks of its own declaration."""
    for name, field in section.model_fields.items():
        yield prefix + name, [mark for mark in field.metadata if isinstance(mark, Change)]
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from _declarations(kind, f"{prefix}{name}.")


DECLARATIONS = dict(_declarations())
LEAVES = [key for key in known_keys() if not any(other.startswith(f"{key}.") for other in known_keys())]
OWN = ["learner.inner_lr", "model.filters", "data.settings.horizon"]  # keys of a learner, a network and a domain


@pytest.mark.parametrize("key", DECLARATIONS)
def test_a_key_has_one_mark_at_most_and_none_that_its_section_gives_it_already(key: str) -> None:
    marks, section = DECLARATIONS[key], key.rpartition(".")[0]
    assert len(marks) <= 1
    assert marks != [change_of(section) if section else Change.BETWEEN_TRIALS]
    assert change_of(key) in (marks or [change_of(section)])


@pytest.mark.parametrize("key", [*LEAVES, *OWN])
def test_a_sweep_varies_the_keys_that_trials_may_differ_in_and_no_others(key: str) -> None:
    content = {"data": {"shards": "x"}, "run_folder": "r", "sweep": {"space": {key: {"choice": [1, 2]}}}}
    if change_of(key) in (Change.BETWEEN_TRIALS, Change.IN_TRAINING):
        assert list(validate(content, "test").model_dump()["sweep"]["space"]) == [key]
    else:
        with pytest.raises(ConfigError, match=f"sweep.space names {key} in test, which must be equal in all trials"):
            validate(content, "test")


@pytest.mark.parametrize("key", [*LEAVES, *OWN])
def test_a_resumed_run_may_differ_in_what_its_result_does_not_depend_on_and_in_nothing_else(key: str) -> None:
    def config(value: str) -> SimpleNamespace:
        plain = validate({"data": {"shards": "x"}, "run_folder": "r", "train": {"kernels": "torch"}}, "test")
        return SimpleNamespace(**dict(plain), shown=lambda: {key: value})

    folder = SimpleNamespace(
        holds_run=True,
        holds_seeds=False,
        code=RunFolder("r").code,
        read_config=lambda: config("before"),
        read_dataset=lambda: {"fingerprint": "f" * 64},
    )
    resumed: Any = SimpleNamespace(config=config("after"), folder=folder, domain=SimpleNamespace(fingerprint="f" * 64))
    if change_of(key) is Change.ON_RESUME:
        check_run_folder(resumed, resume=True)
    else:
        with pytest.raises(ConfigError, match=f"holds another run: {key} before → after\n"):
            check_run_folder(resumed, resume=True)

"""A run folder that somebody else wrote opens, imports and writes nothing; what the user says himself is followed."""

import sys
from typing import Any

import pytest

from distmeta.assembly.received import followed
from distmeta.config import Config, validate
from distmeta.errors import ConfigError


def config(**sections: Any) -> Config:
    return validate({"run_folder": "run", "data": {"shards": "data/mine", "way": 3}} | sections, "test")


GYMNASIUM = {"domain": "reinforcement", "settings": {"environment": "gymnasium", "options": {"id": "evil:Env-v0"}}}
HOSTILE: dict[str, dict[str, Any]] = {
    "a shell command for shards": {"data": {"shards": "pipe: touch {name} ran", "way": 3}},
    "a URL for shards": {"data": {"shards": "http://127.0.0.1:9/data", "way": 3}},
    "a network": {"model": {"name": "evil.Net"}},
    "a learner": {"learner": {"name": "evil.Learner"}},
    "a domain": {"data": {"domain": "evil.Domain"}},
    "a metric": {"data": {"domain": "regression", "functions": "sinusoid", "eval": {"metric": "evil.Metric"}}},
    "an environment": {"data": GYMNASIUM},
}
EACH = pytest.mark.parametrize("sections", HOSTILE.values(), ids=list(HOSTILE))


@EACH
def test_nothing_that_a_folder_names_is_followed(sections: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"give (--config FILE|--shards LOCATION)"):
        followed(config(**sections), None, None)
    assert "evil" not in sys.modules


@EACH
def test_the_same_is_followed_from_the_users_own_config(sections: dict[str, Any]) -> None:
    own = config(**sections)
    assert followed(own, own, None) == own


def test_data_comes_from_the_users_own_config_and_other_classes_are_refused() -> None:
    own = config(data={"shards": "data/own", "way": 3, "cache": {"folder": "cache/own"}})
    received = config(data={"shards": "pipe: rm {name}", "way": 3, "cache": {"folder": "/home/somebody"}})
    seen = followed(received, own, None).data
    assert (seen.shards, seen.cache.folder) == ("data/own", "cache/own")
    with pytest.raises(ConfigError, match=r"model.name=evil.Net is imported only from your own config"):
        followed(config(model={"name": "evil.Net"}), config(model={"name": "mine.Net"}), None)


def test_shards_on_the_command_line_are_opened_and_the_folders_cache_is_not() -> None:
    received = config(data={"shards": "pipe: rm {name}", "way": 3, "cache": {"folder": "/home/somebody"}})
    seen = followed(received, None, "data/mine").data
    assert (seen.shards, seen.cache.folder) == ("data/mine", None)

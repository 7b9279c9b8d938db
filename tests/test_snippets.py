"""Code on the pages: every command parses, every config key exists, every file named is there. Other tests run the longer examples."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from distmeta.cli import app
from distmeta.config import Config, flat, known_keys, load_config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPEN_SECTIONS = ("model", "learner", "data.settings", "sweep.space")  # further keys are arguments of a constructor, or names of keys


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, code) of each block on a page."""
    return re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of a page, in words; each variable is replaced by its value."""
    variables: dict[str, str] = {}
    for language, code in blocks(page):
        if language not in ("", "sh", "bash"):
            continue
        for line in code.replace("\\\n", " ").splitlines():
            line = re.sub(r"\$\([^)]*\)", "1", line)  # the number that another command prints
            line = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), line.removeprefix("$ ").strip())
            if assigned := re.fullmatch(r"(\w+)=(\S+)(\s+#.*)?", line):
                variables[assigned[1]] = assigned[2]
            if line.startswith(("distmeta ", "python tests/", "make ", ".venv/bin/")):
                words = shlex.split(line.removeprefix(".venv/bin/"), comments=True)
                yield words[: min((words.index(word) for word in ("|", ">", "&") if word in words), default=None)]


EVERY = [(page.name, words) for page in PAGES for words in commands(page)]


def parsed(verb: str, arguments: list[str], parent: typer.Context) -> typer.Context:
    return VERBS[verb].make_context(verb, list(arguments), parent=parent)


def config_named(path: Path) -> Path | None:
    """The config that a page names: one of the repository, or one that `distmeta init` writes."""
    places = [ROOT / path, *(ROOT / "distmeta" / "templates").glob(f"*/{path.name}")]
    return next((place for place in places if place.is_file()), None)


def test_there_are_many_commands() -> None:
    assert len(EVERY) > 80


@pytest.mark.parametrize(("page", "words"), EVERY, ids=[f"{page}: {' '.join(words)}"[:80] for page, words in EVERY])
def test_a_command_is_accepted(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in arguments if "=" not in word and word not in targets] == []
        return
    if program == "python":
        assert (ROOT / arguments[0]).is_file()
        return
    if arguments[0].startswith("--"):
        assert arguments[0] in {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
        return
    with typer.main.get_command(app).make_context("distmeta", ["--help"], resilient_parsing=True) as root:
        context = parsed(arguments[0], arguments[1:], root)
        verb, params = arguments[0], context.params
        if verb == "submit":
            verb, params = params["verb"], params | parsed(params["verb"], context.args, root).params
        if "config" not in params or params["config"] is None:
            return
        overrides = params.get("sets") or []
        config = config_named(params["config"])
        if config is not None:
            load_config(config, overrides)
        else:
            check_keys([override.partition("=")[0] for override in overrides])


def check_keys(keys: list[str]) -> None:
    known = set(known_keys())
    assert [key for key in keys if key not in known and not key.startswith(tuple(f"{section}." for section in OPEN_SECTIONS))] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(language == "yaml" for language, _ in blocks(page))], ids=lambda page: page.name
)
def test_configs_hold_keys_that_exist(page: Path) -> None:
    for language, code in blocks(page):
        if language == "yaml":
            content = yaml.safe_load(code)
            assert set(content) <= set(Config.model_fields) or "published" in content
            if set(content) <= set(Config.model_fields):
                check_keys(list(flat(content)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page: Path) -> None:
    for language, code in blocks(page):
        if language == "python":
            compile(code, str(page), "exec")


def test_keys_in_running_text_exist() -> None:
    """Words in backticks such as `outer.lr` or `data.eval.way=8`, on every page."""
    known, wrong = set(known_keys()), []
    sections = {name for name in Config.model_fields if any(key.startswith(f"{name}.") for key in known)}
    for page in PAGES:
        for word in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+(?<!\.yaml)(?<!\.csv))(?:[:=][^`]*)?`", page.read_text()):
            if (
                word.split(".")[0] in sections
                and word not in known
                and not word.startswith(tuple(f"{section}." for section in OPEN_SECTIONS))
            ):
                wrong.append(f"{page.name}: {word}")
    assert wrong == []

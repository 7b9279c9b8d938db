"""The pages that people read: complete, short sentences, plain words."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer
from prose import found, prose, said, sentences

import distmeta
from distmeta.cli import app
from distmeta.config import known_keys
from distmeta.learners import LEARNERS, settings_of
from distmeta.models import MODELS

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES_AND_README = [ROOT / "README.md", *PAGES]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES_AND_README, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    lengths = {sentence: len(sentence.split()) for sentence in sentences(page.read_text())}
    assert [sentence for sentence, words in lengths.items() if words > 40] == []
    assert sum(lengths.values()) <= 20 * len(lengths)


@pytest.mark.parametrize("page", [*PAGES_AND_README, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_words_are_plain(page: Path) -> None:
    assert found(prose(re.sub(r"^#+ ", "", page.read_text(), flags=re.MULTILINE))) == []  # headings, too


def test_modules_are_plain() -> None:
    """Docstrings, comments, help texts and messages of the package and of the examples that it writes."""
    modules = sorted((ROOT / "distmeta").rglob("*.py"))
    wrong = [f"{path.relative_to(ROOT)}:{line}: {each}" for path in modules for line, text in said(path) for each in found(text)]
    assert wrong == []


def test_comments_of_configs_and_scripts_are_plain() -> None:
    files = [path for folder in ("configs", "cluster", "distmeta/templates") for path in sorted((ROOT / folder).rglob("*.*"))]
    lines = [(path, line.partition("#")[2]) for path in files if path.suffix in (".yaml", ".sh") for line in path.read_text().splitlines()]
    assert len(lines) > 1000
    assert [(path.name, comment) for path, comment in lines if found(comment)] == []


def test_help_and_config_keys_are_plain(reference: ModuleType) -> None:
    text = re.sub(r"`[^`]*`", "code", reference.config_page() + reference.commands_page())
    assert found(text) == []


def test_the_readme_fits_on_three_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_names_every_verb() -> None:
    (table,) = re.findall(r"^## What it does\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    named = {word for code in re.findall(r"`([^`]*)`", table) for word in code.split()}
    assert [verb for verb in typer.main.get_command(app).commands if verb not in named] == []


def test_every_link_leads_to_a_page(subtests: pytest.Subtests) -> None:
    for page in PAGES_AND_README:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            with subtests.test(page=page.name, target=target):
                generated = target.startswith("reference/")
                assert target.startswith("http") or generated or (page.parent / target).exists()


def test_every_learner_and_network_has_its_place() -> None:
    learners = (ROOT / "docs" / "learners.md").read_text()
    networks = (ROOT / "docs" / "networks.md").read_text()
    assert [name for name in LEARNERS if f"`{name}`" not in learners] == []
    assert [name for name in MODELS if f"`{name}`" not in networks] == []


def test_every_key_command_and_public_name_is_in_the_reference(reference: ModuleType) -> None:
    config, commands, python = reference.config_page(), reference.commands_page(), reference.python_page()
    keys = [key for key in known_keys() if f"## {key}\n" not in config]  # a section has a table of its own
    assert len(keys) > 60
    assert [key for key in keys if f"| `{key}` |" not in config and f"## {key}\n" not in config] == []
    for page in (config, commands):
        rows = [line for line in page.splitlines() if line.startswith("| `")]
        assert [row for row in rows if row.rstrip().endswith("|  |")] == []  # each has a meaning
    verbs = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert len(verbs) > 15
    assert [verb for verb in verbs if f"## distmeta {verb}\n" not in commands] == []
    assert [name for name in distmeta.__all__ if f"## distmeta.{name}\n" not in python] == []


def test_every_option_and_setting_is_in_the_reference(reference: ModuleType) -> None:
    commands, config = reference.commands_page(), reference.config_page()
    root = typer.main.get_command(app)
    options = [
        (name, option)
        for name, command in (("distmeta", root), *((f"distmeta {verb}", one) for verb, one in root.commands.items()))
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    ]
    assert len(options) > 100
    sections = {section.splitlines()[0]: section for section in commands.split("\n## ")}
    assert [(name, option) for name, option in options if f"`{option}`" not in sections[name]] == []
    parts = {section.splitlines()[0]: section for section in config.split("\n## ")}
    for name, learner in LEARNERS.items():
        assert [key for key in settings_of(learner) if f"| `learner.{key}` |" not in parts[f"learner.name: {name}"]] == []
    for name, network in MODELS.items():
        own = [key for key in inspect.signature(network).parameters if key not in ("input_shape", "outputs", "norm")]
        assert [key for key in own if f"| `model.{key}` |" not in parts[f"model.name: {name}"]] == []


def test_public_functions_and_classes_are_described() -> None:
    """Each name of `import distmeta`, and each of their public methods, has a docstring: the Python reference is made of these."""
    bare = [name for name in distmeta.__all__ if callable(getattr(distmeta, name)) and not inspect.getdoc(getattr(distmeta, name))]
    for name in distmeta.__all__:
        value = getattr(distmeta, name)
        if inspect.isclass(value):
            own = {key: method for key, method in vars(value).items() if inspect.isfunction(method) and not key.startswith("_")}
            bare += [f"{name}.{key}" for key, method in own.items() if not inspect.getdoc(method)]
    assert bare == []


def messages(path: Path) -> list[tuple[int, str]]:
    """The literal messages and remedies of a module's errors, with their lines; what is computed shows as {}."""
    tree = ast.parse(path.read_text())
    constants = {
        node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    found = []
    for call in calls:
        for argument in call.args if call.func.id.endswith("Error") else ():
            value = constants.get(argument.id, argument) if isinstance(argument, ast.Name) else argument
            parts = value.values if isinstance(value, ast.JoinedStr) else [value]
            texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in parts]
            if isinstance(texts[0], str) and texts != ["{}"]:
                found.append((call.lineno, "".join(map(str, texts))))
    return found


def test_messages_are_lower_case_without_a_full_stop() -> None:
    modules = sorted((ROOT / "distmeta").rglob("*.py"))
    every = [(f"{path.relative_to(ROOT)}:{line}", text) for path in modules for line, text in messages(path)]
    assert len(every) > 300
    named = {"MLflow", "MLflow's", "Ray", "Gloo"}
    wrong = [(place, text) for place, text in every if text.endswith(".") or (text[:1].isupper() and not {text.split()[0]} & named)]
    assert [(place, text) for place, text in wrong if not text.split()[0].isupper()] == []

"""The pages that people read: complete, short sentences, plain words."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import distmeta
from distmeta.cli import app
from distmeta.config import known_keys
from distmeta.learners import LEARNERS
from distmeta.models import MODELS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
HOW_TO = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ["index", "packing", "images", "training", "sweeps", "clusters", "kubernetes", "using", "recovery"]
    ),
]
# Words that a native reader stumbles over, and what to write instead.
HOUSE_LIST = {
    r"\bif absent\b": "default: …",
    r"\bgo(es|ing)? on\b|\bwent on\b": "resume, continue",
    r"\bof (one|people)'s own\b": "custom, your own",
    r"\b(is|are) no (?!longer|more|less|fewer)": "is not a …",
    r"\bstands?\b": "is",
    r"\btold\b": "reported",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bamiss\b": "wrong",
    r"\banew\b": "again",
}


def prose(page: Path) -> str:
    """A page's sentences, without code, tables, headings and links' targets."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not re.match(r"\||#|    |<|!\[", line)]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    return re.sub(r"`[^`]*`", "code", text)


def sentences(page: Path) -> list[str]:
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", prose(page))
    return [one for block in blocks for one in re.split(r"(?<=[.!?:;])\s+", " ".join(block.split())) if len(one.split()) > 2]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    lengths = {sentence: len(sentence.split()) for sentence in sentences(page)}
    assert [sentence for sentence, words in lengths.items() if words > 40] == []
    assert sum(lengths.values()) / len(lengths) <= 20


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_words_are_plain(page: Path) -> None:
    text = prose(page)
    assert [f"{found[0]!r}: write {instead!r}" for rule, instead in HOUSE_LIST.items() for found in re.finditer(rule, text)] == []


def test_help_and_config_keys_are_plain(reference: ModuleType) -> None:
    text = re.sub(r"`[^`]*`", "code", reference.config_page() + reference.commands_page())
    assert [f"{found[0]!r}: write {instead!r}" for rule, instead in HOUSE_LIST.items() for found in re.finditer(rule, text)] == []


def test_the_readme_fits_on_three_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_link_leads_to_a_page(subtests: pytest.Subtests) -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
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

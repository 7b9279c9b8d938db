"""What the project says to people: sentences of pages, and docstrings, comments and messages of modules; and words that it avoids."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

# Words that a native reader stumbles over, and what to write instead.
HOUSE_LIST = {
    r"\bif absent\b": "default: …",
    r"\bgo(es|ing)? on\b|\bwent on\b": "resume, continue",
    r"\bof (one|people|the user|its|their|his|our)('s)? own\b|\bof (ours|theirs)\b": "custom, your own, the user's",
    r"(?<!\bthere )\b(is|are|was|were|be) no (?!longer|more|less|fewer)": "is not a …",
    r"\bst(and|ands|ood)\b": "is",
    r"\btold\b": "reported",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bamiss\b": "wrong",
    r"\banew\b": "again",
    r"\b(lies|lay)\b": "is",
    r"\bg(ives?|iving|ave) up\b": "stop, fail, lose",
    r"\b(he|his|him|himself)\b": "the user, you",
    r"\bfinds? it\b": "reads, sees",
    r"\bsays? so\b": "reports it",
    r"\bfor ever\b": "forever, without end",
    r"\bat hand\b": "available",
    r"\bbecomes? of\b": "happens to",
    r"\bhears? of\b": "is called with, knows",
    r"\bbe it\b": "whether",
    r"\b(has|have|had|gets?) to do with\b": "concerns",
    r"\bthat much\b|\bso many\b|\bof so\b": "this many, the number",
}


def found(text: str) -> list[str]:
    """What `text` says that the house list avoids, each with what to write instead."""
    return [f"{match[0]!r}: write {instead!r}" for rule, instead in HOUSE_LIST.items() for match in re.finditer(rule, text)]


def prose(page: str) -> str:
    """A Markdown page's sentences, without code, tables, headings and links' targets."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not re.match(r"\||#|    |<|!\[", line)]
    text = re.sub(r"\]\([^)]*\)", "]", "\n".join(lines))
    return re.sub(r"`[^`]*`", "code", text)


def sentences(page: str) -> list[str]:
    """A Markdown page's sentences of three words or more, in paragraphs and list items. A colon or semicolon does not end a sentence."""
    blocks = re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.) ", prose(page))
    return [one for block in blocks for one in re.split(r"(?<=[.!?])\)?\s+", " ".join(block.split())) if len(one.split()) > 2]


def said(module: Path) -> Iterator[tuple[int, str]]:
    """The comments of a module, and its strings of several words (docstrings, help texts, messages), each with its line.

    Code in backticks is left out, and what a message computes shows as {}.
    """
    source = module.read_text()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], _plain(token.string)
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, _plain("".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts and " " in node.value:
            yield node.lineno, _plain(node.value)


def _plain(text: str) -> str:
    return re.sub(r"`[^`]*`", "code", " ".join(text.split()))

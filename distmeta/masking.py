"""Possible secrets and terminal escape sequences are removed from every text that is written, sent or printed."""

import re
from typing import Any

_LONGEST = 10_000  # characters kept; a message is far shorter
_NAME = (
    r"(?:password|passwd|passphrase|passcode|pwd|secret|token|bearer|signature|credentials?|auth|"
    r"api[_-]?key|access[_-]?key(?:id)?|secret[_-]?key|private[_-]?key|account[_-]?key|storage[_-]?key)"
)
_VALUE = r"(?!\*\*\*)[^\s&'\"#;,)}\]]+"
_KNOWN_BY_LOOKS = (
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    r"\b(?:ghp|gho|ghs|ghu|ghr|github_pat|hf|glpat|npm|pypi|xoxb|xoxp)[_-][A-Za-z0-9_-]{16,}",
    r"\bAIza[A-Za-z0-9_-]{35}",
    r"\bdapi[0-9a-f]{32}\b",
    r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*",  # JSON web tokens
    r"\bsk-[A-Za-z0-9_-]{20,}",
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?s:.)*",
)
# Patterns of a prefix and the secret after it, tried in this order.
_NAMED = (
    (rf"[?&;](?:[\w.-]{{0,40}}{_NAME}[\w.-]{{0,40}}|sig|key|code|jwt|sas|pass|session)=", _VALUE),
    (rf"(?<![\w-])[\w.-]{{0,40}}{_NAME}['\"]?=['\"]?(?!true\b|false\b|none\b)", _VALUE),
    (rf"['\"][\w.-]{{0,40}}{_NAME}['\"]: ?['\"]", r"(?!\*\*\*)[^'\"]+"),
    (rf"(?<!\S)--[\w-]{{0,40}}{_NAME}\s+['\"]?", _VALUE),
    (r"(?<!\S)(?:-u|-U|--user|--proxy-user)[\s=]*['\"]?", r"[^\s'\":]+:(?!//)(?!\*\*\*)[^\s'\"]+"),  # curl's user:password
    (r"(?<!\S)(?:-b|--cookie)[\s=]*['\"]?[\w.-]{1,60}=", _VALUE),
    (r"\bsshpass\s+-p\s*['\"]?", _VALUE),
    (rf"(?m:^|[{{,\s])[\w.-]{{0,40}}{_NAME}: +(?!['\"])", r"(?!null\b|true\b|false\b|none\b|~)(?!\*\*\*)[^\s,'\"}}]{6,}"),  # YAML
    (r"\b(?:[\w-]{0,40}-(?:token|key|secret)|cookie|authorization):\s*", r"(?!\s|\*\*\*)[^'\"\n]+"),  # headers
    (r"\bBearer\s+", r"[\w.~+/=-]{8,}"),
)
_SECRETS = (
    # user:password@ in a URL is removed whole, even if the password contains a slash or an at sign. A port is not a password.
    (re.compile(r"(://)(?:[^\s/?#'\"]{1,500}|[^\s/@:?#'\"]{1,200}:(?!\d+(?:/|$))[^\s@'\"]{0,500})@"), r"\1"),
    # A URL that was taken for a path has one slash left; models:/NAME@ALIAS holds no password.
    (re.compile(r"(\w:/)[^\s/@:?#'\"]{1,200}:(?!\d+(?:/|$))[^\s@'\"]{0,500}@"), r"\1"),
    *((re.compile(f"({before})(?:{secret})", re.IGNORECASE), r"\1***") for before, secret in _NAMED),
    *((re.compile(looks), "***") for looks in _KNOWN_BY_LOOKS),
)
# C0 and C1 control characters, marks that reorder text, halves of surrogate pairs.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def masked(text: str) -> str:
    """`text` with possible secrets masked: user and password of a URL are removed; values of signature, token and password parameters
    become ***.

    Masking is idempotent.
    """
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    for pattern, kept in _SECRETS:
        text = pattern.sub(kept, text)
    return text


def masked_tree(value: Any) -> Any:
    """The same for every string in nested dictionaries and lists."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {masked_tree(key): masked_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked_tree(inner) for inner in value]
    return value


def is_printable(text: str) -> bool:
    """Whether a terminal would show all of `text` and obey nothing."""
    return not _OBEYED.search(text)


def printable(text: str) -> str:
    """`text` masked, with control characters escaped (\\x1b) so that a terminal shows them instead of obeying them."""
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), masked(text))


def printable_lines(text: str) -> str:
    """The same for a text of several lines, such as a log; line ends are kept."""
    return "\n".join(map(printable, text.split("\n")))


def log_text(text: str) -> str:
    """A log of several lines, masked, and without what would colour it on a terminal."""
    return "\n".join(map(masked, _COLOURS.sub("", text).split("\n")))

"""Every error that distmeta raises on purpose.

DistmetaError
├── ConfigError    the config or a flag is wrong             exit code 2
├── DataError      an archive, shard, image or folder is     exit code 1
├── RunError       a run folder, checkpoint or training is   exit code 1
│   ├── Stopped    nothing is: the user asked to stop        exit code 1
│   └── Overtaken  another process writes the run folder now exit code 1
├── ClusterError   Ray cannot place or keep the workers      exit code 1
└── RegistryError  MLflow or a registered model is           exit code 1
    └── Unanswered MLflow does not answer, or cannot now     exit code 1
"""

import re

from distmeta.masking import printable

_LONGEST = 3000  # characters of a message
_SHOWN = 300  # characters of a word in a message, such as a path
_LONG_WORD = re.compile(r"\S{400,}")

RAISED = (Exception, SystemExit)
"""Exceptions that importing or constructing a user's class may raise. SystemExit, because a script without `if __name__ == "__main__"`
calls sys.exit when imported.
"""


class DistmetaError(Exception):
    """An error that the user can fix.

    `message` states the value and the rule on one line, `remedy` says what to do on the next. Secrets and terminal escape sequences are
    removed from both.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
        self.message, self.remedy = (_shortened(printable(text)) for text in (message, remedy))
        super().__init__(self.message, self.remedy)

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}"


def _shortened(text: str) -> str:
    """`text` with the middle of very long words cut out, so that the rule after a long value stays visible."""
    text = _LONG_WORD.sub(lambda word: f"{word[0][:_SHOWN]}…", text)
    return f"{text[:_LONGEST]}…" if len(text) > _LONGEST else text


class ConfigError(DistmetaError):
    exit_code = 2


class DataError(DistmetaError):
    pass


class RunError(DistmetaError):
    pass


class Stopped(RunError):
    pass


class Overtaken(RunError):
    pass


class ClusterError(DistmetaError):
    pass


class RegistryError(DistmetaError):
    pass


class Unanswered(RegistryError):
    pass

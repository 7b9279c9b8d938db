"""Every error that distmeta raises on purpose.

DistmetaError
├── ConfigError    the config or a flag is wrong             exit code 2
├── DataError      an archive, shard, image or folder is     exit code 1
├── RunError       a run folder, checkpoint or training is   exit code 1
│   └── Stopped    nothing is: the user asked to stop        exit code 1
├── ClusterError   Ray cannot place or keep the workers      exit code 1
└── RegistryError  MLflow or a registered model is           exit code 1
    └── Unanswered MLflow does not answer, or cannot now     exit code 1
"""


class DistmetaError(Exception):
    """Something a user can mend: what was found and which rule it breaks, then the remedy.

    `message` states the value and the rule on one line, `remedy` says what to do on the next.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}"


class ConfigError(DistmetaError):
    exit_code = 2


class DataError(DistmetaError):
    pass


class RunError(DistmetaError):
    pass


class Stopped(RunError):
    pass


class ClusterError(DistmetaError):
    pass


class RegistryError(DistmetaError):
    pass


class Unanswered(RegistryError):
    pass

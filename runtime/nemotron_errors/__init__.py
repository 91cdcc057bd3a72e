"""The one shape of a user's error: what was found, what was expected, what to do."""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "GraphError",
    "LimitError",
    "MissingDependencyError",
    "NemotronError",
    "ParityError",
    "RequestError",
    "ResourceError",
    "TokenizerError",
]


class NemotronError(ValueError):
    """A mistake or a broken input that the user can mend.

    Args:
        found: what was found.
        expected: what was expected instead.
        remedy: what the user can do.
        where: the file, tensor, key or option that it is about.

    The command line prints it without a traceback and ends with :attr:`exit_code`.
    """

    exit_code = 2

    def __init__(self, found: str, expected: str, remedy: str, *, where: str | None = None) -> None:
        self.where = where
        self.found = found
        self.expected = expected
        self.remedy = remedy
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}found {found}; expected {expected}; {remedy}")


class ConfigError(NemotronError):
    """A config.json that is not a Nemotron this project can reproduce."""


class CheckpointError(NemotronError):
    """Weight files that are broken or do not fit their config."""


class TokenizerError(NemotronError):
    """Tokenizer files that are missing, broken or do not fit the model."""


class GraphError(NemotronError):
    """A graph or target that cannot be made from this model."""


class BundleError(NemotronError):
    """A bundle that is incomplete, changed, too new or not verified."""


class RequestError(NemotronError):
    """A generation request with arguments that make no sense."""


class LimitError(RequestError):
    """A request past the limits that the bundle was built for."""


class ParityError(NemotronError):
    """Numbers that left the reference by more than the tolerance."""

    exit_code = 1


class MissingDependencyError(NemotronError):
    """A package, library or device that is missing on this machine."""

    exit_code = 3


class ResourceError(NemotronError):
    """Too little disk or memory."""

    exit_code = 4

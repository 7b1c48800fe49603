"""One exception for each exit code of the program."""

from __future__ import annotations


class Error(Exception):
    """What went wrong, in the program's own words."""

    #: The exit code of the program.
    exit_code: int = 1

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class UnmetError(Error):
    """A budget or a verification was not met."""

    exit_code = 1


class InputError(Error, ValueError):
    """A bad input file or a wrong use of an option."""

    exit_code = 2


class NothingPrunableError(Error):
    """The model has nothing that can be pruned."""

    exit_code = 3


class EngineError(Error):
    """An engine or a device is missing or refuses the model."""

    exit_code = 4


class FileError(Error, OSError):
    """Reading or writing failed."""

    exit_code = 5


class StrictError(Error):
    """Something could not be done, and ``strict=True`` makes that an error."""

    exit_code = 6


_KINDS = (UnmetError, InputError, NothingPrunableError, EngineError, FileError, StrictError)


def of_exit_code(code: int, message: str) -> Error:
    """The exception for an exit code."""
    for kind in _KINDS:
        if kind.exit_code == code:
            return kind(message)
    return Error(message or f"onnx-prune ended with exit code {code}", code)

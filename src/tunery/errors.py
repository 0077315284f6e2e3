"""The errors that a user can meet, and the exit code that each ends a command with.

Each is also the standard-library error that a Python caller would expect, so `except ValueError` works without
knowing Tunery. The message is one sentence that names what is wrong and what to do next.
"""

from __future__ import annotations


class TuneryError(Exception):
    """Anything that Tunery raises on purpose. `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(TuneryError, ValueError):
    """What the user wrote is wrong: a recipe, an option, a file. Nothing was changed."""

    exit_code = 2


class DataError(InputError):
    """A row of a data file is wrong; the message begins `FILE:LINE:` so that an editor can jump there."""

    def __init__(self, source: str, line: int | None, message: str) -> None:
        self.source, self.line, self.message = str(source), line, message
        super().__init__(f"{self.source}:{line}: {message}" if line else f"{self.source}: {message}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, int | None, str]]:
        return DataError, (self.source, self.line, self.message)


class MissingModelError(InputError, FileNotFoundError):
    """A model is unknown, or is not here and could not be fetched; the message says what to install or download."""

    def __str__(self) -> str:  # FileNotFoundError would print an errno pair
        return str(self.args[0]) if self.args else ""


class MissingExtraError(InputError, ImportError):
    """An optional part is not installed; the message holds the line that installs it."""


class RunError(TuneryError, RuntimeError):
    """The run itself failed, although its input was right."""


class ProofError(RunError):
    """An export is not the same model as the one that was trained; the export is not kept."""


class Interrupted(TuneryError):
    """The user stopped the run; what is there can be resumed."""

    exit_code = 130

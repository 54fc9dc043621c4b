"""Collects what is wrong with the files and places that settings name, to tell it all at once."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

from server.config.loading import ConfigError
from server.config.section import UnreadableSetting


class Findings:
    """Problems found so far, one line each.

    Args:
        problems: those known before.

    Attributes:
        problems: in the order found.
    """

    def __init__(self, problems: Sequence[str] = ()) -> None:
        self.problems = list(problems)

    def add(self, setting: str, problem: str) -> None:
        """Tell what is wrong with a setting."""
        self.problems.append(f"{setting}: {problem}")

    def telling(self, setting: str, *errors: type[Exception]) -> AbstractContextManager[None, bool]:
        """Take these errors of the block for problems of the setting; the block ends there."""
        return _Telling(self, setting, errors)

    def skipping(self) -> AbstractContextManager[None, bool]:
        """End the block where it reads a setting that is wrong, as has been told."""
        return suppress(UnreadableSetting)

    def read(self, setting: str, path: Path) -> bytes | None:
        """Read a whole file that a setting names; None: it cannot be used, as is told now."""
        try:
            data = path.read_bytes()
        except OSError as error:
            self.add(setting, f"{path}: {error.strerror}")
            return None
        if not data:
            self.add(setting, f"{path}: is empty")
            return None
        return data

    def refuse(self) -> None:
        """End here if something is wrong.

        Raises:
            ConfigError: with all problems.
        """
        if self.problems:
            raise ConfigError(*self.problems)


class _Telling(AbstractContextManager[None, bool]):
    def __init__(
        self, findings: Findings, setting: str, errors: tuple[type[Exception], ...]
    ) -> None:
        self._findings = findings
        self._setting = setting
        self._errors = errors

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(exc, self._errors):
            return False
        self._findings.add(self._setting, str(exc))
        return True

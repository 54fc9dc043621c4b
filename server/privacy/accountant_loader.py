"""Loads what counts privacy only where a task is private: accountants take seconds to import."""

from importlib import import_module
from typing import TYPE_CHECKING

from privacy.errors import PrivacyError
from server.config import TaskConfig
from server.processes.thread_pool import Workers

if TYPE_CHECKING:
    from server.privacy.private_task import PrivateTask


def load_private_task(config: TaskConfig, *, dim: int, workers: Workers) -> "PrivateTask":
    """Make the private side of a task whose privacy is on.

    Args:
        config: of the task.
        dim: numbers of an update as it is noised.
        workers: where accountants will run.

    Raises:
        PrivacyError: if the settings cannot be private, or the extra `fedagg[server]` is not
            installed.
    """
    load_accountants()
    from server.privacy.private_task import private_task  # noqa: PLC0415

    return private_task(config, dim=dim, workers=workers)


def load_accountants() -> None:
    """Import what counts privacy.

    Raises:
        PrivacyError: if the extra `fedagg[server]` is not installed.
    """
    try:
        # Its packages come with an extra, and importing them takes seconds.
        import_module("server.privacy.private_task")
    except ModuleNotFoundError as error:
        msg = f"privacy needs the extra fedagg[server]: there is no package {error.name}"
        raise PrivacyError(msg) from error

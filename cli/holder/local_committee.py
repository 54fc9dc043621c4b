"""Share holders of one committee on this host, each a process with keys and storage of its own."""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.holder.committee_files import (
    COMMITTEE_FILE,
    HOLDER_CONFIG,
    IDENTITIES,
    CommitteePlan,
    holder_name,
    write_committee,
)
from cli.serve.service import ReadyPipe, holder_spec
from server.processes.child_process import ProcessSpec
from server.processes.template import Template


class LocalCommittee:
    """Writes a committee's files and knows its processes. A context, which holds their pipes.

    Args:
        plan: which committee.
        folder: where keys, configurations, shares and logs go.
        device_ids: devices that get certificates, in `identities_dir`.
        template: forks the holders; it is not among `specs`. See `cli.serve.service`.
        log_dir: folder for one log file per holder; None: the caller's standard error.
    """

    def __init__(
        self,
        plan: CommitteePlan,
        folder: Path,
        device_ids: Iterable[str],
        *,
        template: Template,
        log_dir: Path | None = None,
    ) -> None:
        self._template = template
        self._plan = plan
        self._folder = folder
        self._device_ids = device_ids
        self._log_dir = log_dir
        self._stack = contextlib.ExitStack()
        self._specs: list[ProcessSpec] = []

    def __enter__(self) -> Self:
        """Make keys, certificates and configurations."""
        write_committee(self._plan, self._folder, self._device_ids)
        with contextlib.ExitStack() as stack:
            for index in range(1, len(self._plan.addresses) + 1):
                pipe = ReadyPipe()
                stack.callback(pipe.close)
                name = holder_name(index)
                log_path = None if self._log_dir is None else self._log_dir / f"{name}.log"
                config = self._folder / name / HOLDER_CONFIG
                self._specs.append(
                    holder_spec(name, config, pipe, template=self._template, log_path=log_path)
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._specs.clear()

    @property
    def committee_path(self) -> Path:
        """What coordinators and devices are given."""
        return self._folder / COMMITTEE_FILE

    @property
    def identities_dir(self) -> Path:
        """Certificates and keys of the devices."""
        return self._folder / IDENTITIES

    @property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """The processes, for a supervisor."""
        return tuple(self._specs)

"""Whether a process can serve, as one value made of named checks."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

# A probe returns a detail worth showing, or raises.
Probe = Callable[[], Awaitable[str]]

PROBE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of one check.

    Attributes:
        detail: for a person; empty where there is nothing to say. Holds no secret.
        critical: False where the process can serve although the check fails.
    """

    ok: bool
    detail: str = ""
    critical: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """All checks of a process by name, in the order they were given."""

    checks: Mapping[str, Check]

    def __post_init__(self) -> None:
        object.__setattr__(self, "checks", MappingProxyType(dict(self.checks)))

    @property
    def is_ready(self) -> bool:
        """True where every critical check is ok; so is a process without checks."""
        return all(check.ok for check in self.checks.values() if check.critical)


async def run_probes(
    probes: Mapping[str, Probe],
    *,
    optional: frozenset[str] = frozenset(),
    timeout_s: float = PROBE_TIMEOUT_S,
) -> Health:
    """Run all probes at once and report them.

    A probe that raises, or does not answer in time, is a failed check: its detail names the type
    of the error but not its message, which may hold addresses or credentials.

    Args:
        probes: by the name of the check.
        optional: names of the checks that are not critical.
        timeout_s: how long each probe may take.
    """
    outcomes = await asyncio.gather(*(_run(probe, timeout_s) for probe in probes.values()))
    return Health(
        checks={
            name: Check(ok=ok, detail=detail, critical=name not in optional)
            for name, (ok, detail) in zip(probes, outcomes, strict=True)
        }
    )


async def _run(probe: Probe, timeout_s: float) -> tuple[bool, str]:
    try:
        async with asyncio.timeout(timeout_s):
            return True, await probe()
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except Exception as error:  # whatever a probe raises is its answer
        return False, type(error).__name__

"""Processor time of the servers for each upload, in shared rounds beside plain ones.

Every round goes end to end: devices upload to the coordinator, which relays each share to its
holder, lets the holders vote, check and commit, opens the sum and publishes a model.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks import page_cache
from benchmarks.figures import median
from benchmarks.secure.figures import Figures, Target, judged, rounded
from benchmarks.secure.parties import HOLDERS, Update, device_id_of, random_update
from benchmarks.secure.service import ServedTask, Service, Used, service
from benchmarks.secure.uploads import Payload, PlainPayload, upload_all

VARIANTS: Final = (
    ("shamir-seeded", "sum"),
    ("shamir-seeded", "norm"),
    ("cnf-seeded", "sum"),
    ("cnf-seeded", "norm"),
)
MILLION: Final = 1_000_000
LIMIT: Final = 10.0
"""Times a plain upload: of any server, and with shamir-seeded of all together."""
MAX_SLOWEST_AT_MILLION: Final = 1.5
MAX_ALL_AT_MILLION: Final = 6.0

_DISTINCT: Final = 16  # updates; more would differ no more, and take memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rounds of `uploads` updates of `dim` elements."""

    dim: int
    uploads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured; `rounds` of each kind, after one that does not count."""

    cases: Sequence[Case]
    rounds: int
    variants: Sequence[tuple[str, str]] = VARIANTS


CASES: Final = (
    Case(dim=1_000, uploads=500),
    Case(dim=100_000, uploads=60),
    Case(dim=MILLION, uploads=20),
    Case(dim=10 * MILLION, uploads=4),
)


def measure(settings: Settings) -> list[Figures]:
    """One row for each size and variant."""
    return [row for case in settings.cases for row in _rows(case, settings)]


def _rows(case: Case, settings: Settings) -> list[Figures]:
    plain = ServedTask(dim=case.dim, goal=case.uploads)
    shared = [
        ServedTask(dim=case.dim, goal=case.uploads, format=share_format, checks=checks)
        for share_format, checks in settings.variants
    ]
    used: dict[ServedTask, list[Used]] = {task: [] for task in (plain, *shared)}
    with service([plain, *shared]) as running:
        for number in range(settings.rounds + 1):
            for task, rounds in used.items():
                found = play(running, task)
                if number > 0:
                    rounds.append(found)
    return [_row(case, task, used[task], used[plain]) for task in shared]


def play(running: Service, task: ServedTask) -> Used:
    """Play one round from its first upload to its model; return what the servers used."""
    deployed, bench_task = running.deployed, task.bench_task
    published = deployed.snapshot(bench_task.name).published_rounds
    opened = deployed.open_round(bench_task)
    devices = [device_id_of(number) for number in range(task.goal)]
    params = running.parameters(opened) if task.is_shared else None

    def payload_of(device: str) -> Payload:
        update = _update(task.dim, devices.index(device) % _DISTINCT)
        return PlainPayload.of(update) if params is None else running.seal(params, device, update)

    size = len(payload_of(devices[0]))
    page_cache.warm(running.folder, task.goal * size * (2 if task.is_shared else 1))
    before = running.used()
    upload_all(deployed.target, opened, devices, payload_of)
    deployed.wait_published(bench_task.name, published + 1)
    used = running.used().since(before)
    deployed.discard_payloads()
    return used


@functools.lru_cache(maxsize=_DISTINCT)
def _update(dim: int, seed: int) -> Update:
    return random_update(dim, seed=seed)


def _row(case: Case, task: ServedTask, rounds: Sequence[Used], plain: Sequence[Used]) -> Figures:
    per_ms = 1e3 / case.uploads
    plain_ms = per_ms * median([used.coordinator_s + used.store_s for used in plain])
    coordinator_ms = per_ms * median([used.coordinator_s + used.store_s for used in rounds])
    holder_ms = [
        per_ms * median([used.holders_s[index] for used in rounds]) for index in range(HOLDERS)
    ]
    all_ms = per_ms * median([sum(used.holders_s) for used in rounds])
    slowest, together = max(holder_ms) / plain_ms, all_ms / plain_ms
    return {
        "format": task.format,
        "checks": task.checks,
        "dim": case.dim,
        "uploads": case.uploads,
        "plain_ms": rounded(plain_ms),
        "holder_ms": " ".join(f"{value:.3g}" for value in holder_ms),
        "five_holders_ms": rounded(all_ms),
        "coordinator_ms": rounded(coordinator_ms),
        "slowest_ratio": rounded(slowest),
        "five_ratio": rounded(together),
        "coordinator_ratio": rounded(coordinator_ms / plain_ms),
        **judged(*_targets(task, slowest=slowest, together=together)),
    }


def _targets(task: ServedTask, *, slowest: float, together: float) -> list[Target]:
    is_strict = task.dim == MILLION and task.format == "shamir-seeded"
    limit = MAX_SLOWEST_AT_MILLION if is_strict else LIMIT
    targets = [Target(name="slowest", figure=slowest, limit=limit, unit="x plain")]
    if task.format == "shamir-seeded":
        limit = MAX_ALL_AT_MILLION if is_strict else LIMIT
        targets.append(Target(name="five", figure=together, limit=limit, unit="x plain"))
    return targets

"""Who takes part in a round: eligibility, weighted selection and the time to come back.

Pure: no I/O, no clock, no global randomness. Randomness is a keyed hash of the device id, so every
replica that computes a selection from the same round gets the same cohort. The key (`seed`) must
not be known to devices, or one could search for a device id that is always chosen.
"""

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final

MAX_FAIRNESS: Final = 16.0  # (rounds)^16 stays far inside float64
_SEED_BYTES: Final = 32
_MAX_VERSION_CHARS: Final = 64
_UNIT_BITS: Final = 52  # (n + 0.5) / 2^52 is exact in float64 and never 0 or 1


class SelectionError(ValueError):
    """A policy, criterion or candidate that makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A device that offered itself for a round.

    `last_round` is the number of the last round it was selected for, None if never;
    `participations` counts those rounds. `offer_lapses_at_ms` is when its offer ends, by the
    store's clock.
    """

    device_id: str
    offer_lapses_at_ms: int
    last_round: int | None
    participations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPolicy:
    """How a cohort is drawn.

    Attributes:
        reporting_goal: updates the round wants, >= 1.
        over_selection: devices selected per update wanted, 1 to 10; covers dropouts.
        max_participations: rounds one device may be selected for in all; None: no cap.
        min_rounds_between: rounds that must lie between two selections of one device, >= 0.
        fairness: exponent a of the weight (1 + rounds since the last selection)^a, 0 to 16.
            0: every eligible device is equally likely.
    """

    reporting_goal: int
    over_selection: float = 1.3
    max_participations: int | None = None
    min_rounds_between: int = 0
    fairness: float = 1.0

    def __post_init__(self) -> None:
        if self.reporting_goal < 1:
            msg = f"reporting_goal={self.reporting_goal} must be >= 1"
            raise SelectionError(msg)
        if not 1.0 <= self.over_selection <= 10.0:
            msg = f"over_selection={self.over_selection} must lie in [1, 10]"
            raise SelectionError(msg)
        if self.max_participations is not None and self.max_participations < 1:
            msg = f"max_participations={self.max_participations} must be >= 1 or None"
            raise SelectionError(msg)
        if self.min_rounds_between < 0:
            msg = f"min_rounds_between={self.min_rounds_between} must be >= 0"
            raise SelectionError(msg)
        if not 0.0 <= self.fairness <= MAX_FAIRNESS:
            msg = f"fairness={self.fairness} must lie in [0, {MAX_FAIRNESS:g}]"
            raise SelectionError(msg)


def cohort_size(policy: SelectionPolicy, num_eligible: int) -> int:
    """Return how many devices to select: ceil(reporting_goal * over_selection), if there are.

    The product is exact for the decimal that `over_selection` prints as: a goal of 100 at 1.1
    selects 110 devices, where the float product 110.00000000000001 would select 111.
    """
    wanted = math.ceil(policy.reporting_goal * Fraction(str(policy.over_selection)))
    return min(wanted, num_eligible)


class ServerDeviceSelector:
    """Draws the cohort of a round from the devices that offered themselves."""

    def select(
        self,
        candidates: Sequence[Candidate],
        *,
        policy: SelectionPolicy,
        round_number: int,
        seed: int,
    ) -> tuple[str, ...]:
        """Draw a cohort without replacement, favouring devices that waited many rounds.

        Args:
            candidates: any number, each device once, in any order.
            policy: how many and how fair.
            round_number: the round being filled, greater than every `last_round` that counts.
            seed: the round's secret seed, |seed| < 2^255.

        Returns:
            Device ids in the order drawn; fewer than the policy wants where too few may take part.

        Raises:
            SelectionError: if a device appears twice or the seed is out of range.

        Guarantees:
            The same for any order of `candidates`.
            No device at or over `max_participations`, and none selected within the last
            `min_rounds_between` rounds or already in this round, is returned.

        Cost: O(n log k) for n candidates and a cohort of k.
        References: Efraimidis and Spirakis (2006), Weighted random sampling with a reservoir.
        """
        _require_distinct(candidates)
        allowed = [c for c in candidates if _may_take_part(c, policy, round_number)]
        draw = _KeyedUniform(seed, round_number, purpose=b"select")

        def key(candidate: Candidate) -> tuple[float, int, str]:
            # The k smallest of -ln(u)/w are the k largest of u^(1/w), without underflow.
            weight = _weight(candidate, policy.fairness, round_number)
            arrival = -math.log(draw(candidate.device_id)) / weight
            return arrival, candidate.offer_lapses_at_ms, candidate.device_id

        chosen = heapq.nsmallest(cohort_size(policy, len(allowed)), allowed, key=key)
        return tuple(candidate.device_id for candidate in chosen)


def poisson_cohort(
    candidates: Sequence[Candidate], *, probability: float, round_number: int, seed: int
) -> tuple[str, ...]:
    """Draw each device by a coin of its own.

    Args:
        candidates: any number, each device once, in any order.
        probability: q, of each coin, in [0, 1].
        round_number: the round being filled.
        seed: the round's secret seed, |seed| < 2^255.

    Returns:
        Device ids, sorted; any number of them, none included.

    Raises:
        SelectionError: if a device appears twice, or an argument is out of range.

    Guarantees:
        A device's coin depends on the seed, the round and its id: on nobody else, and not on when
        or how often it is tossed. No number of devices is wanted, and none is too many.
        Chances are q, to 2^-52.
    """
    _require_distinct(candidates)
    if not 0.0 <= probability <= 1.0:
        msg = f"probability={probability} must lie in [0, 1]"
        raise SelectionError(msg)
    coin = _KeyedUniform(seed, round_number, purpose=b"poisson")
    return tuple(sorted(c.device_id for c in candidates if coin(c.device_id) < probability))


def uniform_cohort(
    candidates: Sequence[Candidate], *, size: int, round_number: int, seed: int
) -> tuple[str, ...]:
    """Draw `size` devices without replacement, all alike.

    Args:
        candidates: at least `size`, each device once, in any order.
        size: of the cohort, >= 1.
        round_number: the round being filled.
        seed: the round's secret seed, |seed| < 2^255.

    Returns:
        Device ids, sorted.

    Raises:
        SelectionError: if a device appears twice, there are too few, or the seed is out of range.

    Guarantees:
        Depends on the seed, the round and the set of ids only, not on what any device did before.
    """
    _require_distinct(candidates)
    if not 1 <= size <= len(candidates):
        msg = f"size={size} must lie in [1, {len(candidates)}]"
        raise SelectionError(msg)
    draw = _KeyedUniform(seed, round_number, purpose=b"uniform")
    ids = [candidate.device_id for candidate in candidates]
    return tuple(sorted(heapq.nsmallest(size, ids, key=lambda one: (draw(one), one))))


def _require_distinct(candidates: Sequence[Candidate]) -> None:
    if len({candidate.device_id for candidate in candidates}) != len(candidates):
        msg = "candidates must name each device once"
        raise SelectionError(msg)


def _may_take_part(candidate: Candidate, policy: SelectionPolicy, round_number: int) -> bool:
    cap = policy.max_participations
    if cap is not None and candidate.participations >= cap:
        return False
    last = candidate.last_round
    return last is None or round_number - last > policy.min_rounds_between


def _weight(candidate: Candidate, fairness: float, round_number: int) -> float:
    last = candidate.last_round
    # A device that never took part weighs more than any that did.
    rounds_since = round_number + 1 if last is None else round_number - last
    return math.pow(1.0 + rounds_since, fairness)


class _KeyedUniform:
    """Maps a device id to a number in (0, 1): a keyed hash, independent per round and purpose."""

    def __init__(self, seed: int, round_number: int, *, purpose: bytes) -> None:
        try:
            key = seed.to_bytes(_SEED_BYTES, "little", signed=True)
        except OverflowError as error:
            msg = f"seed must satisfy |seed| < 2**255, got {seed.bit_length()} bits"
            raise SelectionError(msg) from error
        salt = round_number.to_bytes(16, "little")
        self._hash = hashlib.blake2b(digest_size=8, key=key, salt=salt, person=purpose)

    def __call__(self, device_id: str) -> float:
        hasher = self._hash.copy()
        hasher.update(device_id.encode())
        bits = int.from_bytes(hasher.digest(), "little") >> (64 - _UNIT_BITS)
        return (bits + 0.5) / 2.0**_UNIT_BITS


class Ineligibility(StrEnum):
    """Which criterion a device does not meet, in words a person can act on."""

    NOT_CHARGING = "not charging"
    BATTERY_LOW = "battery too low"
    METERED_NETWORK = "network is metered"
    IN_USE = "device is in use"
    LITTLE_RAM = "too little free memory"
    OLD_APP = "application too old"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConditions:
    """What a device tells about itself. `battery_percent` None: no battery (mains)."""

    battery_percent: int | None
    charging: bool
    metered_network: bool
    idle: bool
    available_ram_mib: int
    app_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EligibilityCriteria:
    """What a device must fulfil to be selected. The battery level counts only off the charger."""

    min_battery_percent: int = 15
    require_charging: bool = False
    require_unmetered: bool = False
    require_idle: bool = False
    min_ram_mib: int = 0
    min_app_version: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.min_battery_percent <= 100:
            msg = f"min_battery_percent={self.min_battery_percent} must lie in [0, 100]"
            raise SelectionError(msg)
        if self.min_ram_mib < 0:
            msg = f"min_ram_mib={self.min_ram_mib} must be >= 0"
            raise SelectionError(msg)
        if self.min_app_version and _version(self.min_app_version) is None:
            msg = f"min_app_version={self.min_app_version!r} must be dotted numbers"
            raise SelectionError(msg)


def eligibility(
    conditions: DeviceConditions, criteria: EligibilityCriteria
) -> Ineligibility | None:
    """Return the first criterion the device does not meet, None if it meets all.

    What a device does not tell (RAM 0, empty or malformed version) fails a criterion that asks.
    """
    powered = conditions.charging or conditions.battery_percent is None
    level = conditions.battery_percent
    checks = (
        (criteria.require_charging and not powered, Ineligibility.NOT_CHARGING),
        (
            not powered and level is not None and level < criteria.min_battery_percent,
            Ineligibility.BATTERY_LOW,
        ),
        (
            criteria.require_unmetered and conditions.metered_network,
            Ineligibility.METERED_NETWORK,
        ),
        (criteria.require_idle and not conditions.idle, Ineligibility.IN_USE),
        (conditions.available_ram_mib < criteria.min_ram_mib, Ineligibility.LITTLE_RAM),
        (
            _is_older(conditions.app_version, criteria.min_app_version),
            Ineligibility.OLD_APP,
        ),
    )
    return next((reason for failed, reason in checks if failed), None)


def _is_older(version: str, minimum: str) -> bool:
    wanted = _version(minimum)
    if wanted is None:
        return False
    actual = _version(version)
    return actual is None or actual < wanted


def _version(text: str) -> tuple[int, ...] | None:
    """Parse dotted numbers; trailing zeros do not count (1.2 is 1.2.0). None: not a version."""
    parts = text.split(".")
    if len(text) > _MAX_VERSION_CHARS or not all(
        part.isascii() and part.isdigit() for part in parts
    ):
        return None
    numbers = [int(part) for part in parts]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceSteering:
    """When devices that were not selected may come back.

    Attributes:
        earliest_ms: when coming back can first be useful, in ms from now; >= 0.
        num_waiting: devices that get a hint about now, >= 0.
        max_check_ins_per_s: returns per second the service wants at most, > 0.
        min_spread_ms: shortest window the returns are spread over, >= 1.
        max_retry_ms: longest hint ever given, >= 1.
    """

    earliest_ms: int
    num_waiting: int
    max_check_ins_per_s: float = 500.0
    min_spread_ms: int = 1_000
    max_retry_ms: int = 3_600_000

    def __post_init__(self) -> None:
        if self.earliest_ms < 0 or self.num_waiting < 0:
            msg = f"earliest_ms={self.earliest_ms} and num_waiting={self.num_waiting} must be >= 0"
            raise SelectionError(msg)
        if not self.max_check_ins_per_s > 0.0:
            msg = f"max_check_ins_per_s={self.max_check_ins_per_s} must be > 0"
            raise SelectionError(msg)
        if self.min_spread_ms < 1 or self.max_retry_ms < 1:
            msg = (
                f"min_spread_ms={self.min_spread_ms} and max_retry_ms={self.max_retry_ms} "
                "must be >= 1"
            )
            raise SelectionError(msg)


def retry_after_ms(pace: PaceSteering, *, device_id: str, round_number: int, seed: int) -> int:
    """Return a hint, in ms from now, that spreads the devices evenly over a window.

    The window opens at `earliest_ms` and is wide enough that `num_waiting` devices come at no more
    than `max_check_ins_per_s`. Where it would end after `max_retry_ms` it opens earlier, and where
    even that is not enough it is narrower. The same device gets the same hint within one round.

    Returns:
        1 to `max_retry_ms`.

    References: Bonawitz et al. (2019), arXiv:1902.01046, section 2.3 (pace steering).
    """
    needed = math.ceil(1_000 * pace.num_waiting / pace.max_check_ins_per_s)
    spread = min(max(needed, pace.min_spread_ms), pace.max_retry_ms)
    start = min(pace.earliest_ms, pace.max_retry_ms - spread)
    draw = _KeyedUniform(seed, round_number, purpose=b"pace")
    return start + math.ceil(draw(device_id) * spread)

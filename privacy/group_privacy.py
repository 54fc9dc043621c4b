"""What releases cost several devices together."""

from collections.abc import Mapping

from privacy.charge import Charge
from privacy.divergences import group_pld_epsilon
from privacy.errors import PrivacyError
from privacy.renyi_accountant import require_count, require_delta


def group_epsilon(counts: Mapping[Charge, int], *, group_size: int, delta: float) -> float:
    """Compute what releases cost a group of devices together, such as all of one household.

    Neighbours differ in all contributions of `group_size` devices, which move a sum `group_size`
    times as far as one does. By loss distributions: without sampling the multiplier is divided by
    the size; Poisson sampling draws each device of the group by itself; under fixed-size sampling
    no amplification is claimed for groups.

    Args:
        counts: how many releases of each charge, 0 to `MAX_RELEASES`.
        group_size: g, from 1; at most 100 times every multiplier.
        delta: in (0, 1).

    Returns:
        The epsilon of the group at the same delta.

    Raises:
        PrivacyError: if an argument is out of range.

    Guarantees:
        Never below `epsilon_of` by "pld" for single devices, up to 1e-3 g. Monotone in the size.

    References: Ganesh (2024), arXiv:2401.10294 (Poisson sampling).
    """
    require_delta(delta)
    if group_size < 1:
        message = f"group_size={group_size} must be at least 1"
        raise PrivacyError(message)
    for count in counts.values():
        require_count("count", count)
    used = {charge: count for charge, count in counts.items() if count}
    return group_pld_epsilon(used, group_size, delta) if used else 0.0

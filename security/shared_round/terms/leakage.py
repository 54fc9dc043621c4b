"""What a shared round opens, and to whom: for the record of the round."""

from security.shared_round.terms.member_set import SelectionMode
from security.shared_round.terms.parameters import RoundParameters


def leakage(
    params: RoundParameters,
    mode: SelectionMode,
    *,
    num_members: int,
    num_suspects: int = 0,
    num_sums: int = 1,
) -> dict[str, dict[str, int]]:
    """List the values that are opened besides who took part, failed and was picked.

    Args:
        params: the round.
        mode: how its selection came about.
        num_members: m, in the frozen set.
        num_suspects: members whose own tests were opened.
        num_sums: sums opened.

    Returns:
        By who sees it ("everybody", "holders and coordinator"), by name, how many numbers.
        Consistency values are uniform and norms are 0 where they hold: they tell nothing else.
        Wrap scalars are masked signed sums of a group's sketches, blame scalars of one member's,
        distances the geometry of the sketched updates.
    """
    everybody = {"sums": num_sums, "sum elements": num_sums * params.dim}
    inside: dict[str, int] = {}
    if params.is_checked:
        groups = -(-num_members // params.wrap_group)
        if params.has_consistency_mask:
            inside["consistency values"] = num_members
        inside["wrap scalars"] = groups * params.wrap_tests
        inside["blame scalars"] = num_suspects * params.wrap_tests
        if mode is SelectionMode.CHECKED:
            inside["norm verdicts"] = num_members
            if params.has_distances:
                inside["distances"] = num_members * (num_members - 1) // 2
    return {"everybody": everybody, "holders and coordinator": inside}

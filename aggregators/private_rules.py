"""What noise can hide in what a rule adds up: the bounds of `privacy`, by rule."""

from aggregators.errors import AggregationError
from aggregators.registry import RULES, rules_that, traits_of
from privacy.rule_sensitivity import RuleSensitivity, RuleShape, SensitivityError


def rule_sensitivity(shape: RuleShape) -> RuleSensitivity:
    """Bound how far one device moves what a rule adds up.

    Raises:
        SensitivityError: if no bound is known that noise could be added for; it says why.
        PrivacyError: if a number does not go with the rule.

    Guarantees:
        No two neighbours' sums differ by more than `factor` times C.
        Not lower for fewer updates than `num_updates`.
    """
    try:
        bound = traits_of(shape.rule).sensitivity
        if not isinstance(bound, str):
            return bound(shape)
        why = bound
    except AggregationError:
        why = "no bound is known for it"
    except SensitivityError as error:
        why = str(error)
    message = f"rule={shape.rule!r} cannot be released privately: {why}; choose"
    message += f" {' or '.join(private_rules())}"
    raise SensitivityError(message)


def private_sum_sensitivity(
    rule: str, *, num_updates: int, num_byzantine: int, num_to_select: int | None
) -> float:
    """Bound how far one device moves the sum of a round in which so many updates can be.

    Returns:
        The factor of `rule_sensitivity` for rules that select what they add up, and 1 for those
        that add up everything, as also where so few updates are no round: the rule itself refuses
        them.
    """
    selected = num_to_select or num_updates - num_byzantine
    if rule not in private_rules() or RULES[rule].is_linear or not 1 <= selected <= num_updates:
        return 1.0
    shape = RuleShape(
        rule=rule,
        num_updates=num_updates,
        num_byzantine=num_byzantine,
        num_to_select=num_to_select,
    )
    return rule_sensitivity(shape).factor


def private_rules() -> tuple[str, ...]:
    """Name the rules whose sum the coordinator can add noise to."""
    return rules_that(lambda traits: traits.is_private_sum)

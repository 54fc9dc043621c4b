"""Rules ready to use: pre-aggregations before a rule, as one rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.preaggregations.bucketing import bucketing
from aggregators.preaggregations.clipping import (
    adaptive_clipping_factors,
    median_clipping_factors,
)
from aggregators.preaggregations.nearest_neighbour_mixing import nearest_neighbour_mixing_matrix
from aggregators.registry import RULES, STEPS, apply_of, parted
from aggregators.rows.rows import Floats, Rows, canonical_order
from aggregators.rule import Context, Rule, RuleResult


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What a step made of n rows.

    Attributes:
        rows: m rows.
        context: what is known about those.
        matrix: (m, n), float64: each new row as a combination of the rows before the step.
    """

    rows: Rows
    context: Context
    matrix: Floats


Step: TypeAlias = Callable[[Rows, Context, AggregatorConfig], Prepared]


def make_rule(config: AggregatorConfig) -> Rule:
    """Build the rule, or the pipeline ending in a rule, that `config.rule` names.

    Raises:
        AggregationError: if no rule or step has such a name.
    """
    steps, name = parted(config.rule)
    apply = apply_of(name)

    def rule(rows: Rows, context: Context) -> RuleResult:
        return apply(rows, context, config)

    if not steps:
        return rule
    functions: list[Step] = [globals()[STEPS[step].function] for step in steps]
    return pipeline(functions, rule, config)


def pipeline(steps: Sequence[Step], rule: Rule, config: AggregatorConfig) -> Rule:
    """Put steps before a rule.

    Args:
        steps: applied from first to last.
        rule: sees what the last one made.
        config: what names the steps and the rule, and their settings.

    Raises:
        AggregationError: if the rule knows single updates and a step merges them.

    Guarantees:
        Invariant to row order, bit for bit, if the rule is: steps see the rows sorted by value.
        Weights and scores of the result are those of the rows given, not of what the steps made
        of them; a row's score is the least of those it takes part in.
    """

    names, last = parted(config.rule)
    for name in names:
        if STEPS[name].merges_rows and RULES[last].knows_devices:
            message = f"rule={config.rule!r}: {name} must not come before {last}, which has to know"
            message += " single updates"
            raise AggregationError(message)

    def prepared_rule(rows: Rows, context: Context) -> RuleResult:
        order = canonical_order(rows, tuple(context.row_keys()))
        prepared = Prepared(
            rows=rows.take(order), context=context.take(order), matrix=np.eye(rows.num_rows)
        )
        for step in steps:
            done = step(prepared.rows, prepared.context, config)
            # A fixed order of additions, which BLAS does not promise.
            matrix = np.einsum("ij,jk->ik", done.matrix, prepared.matrix, optimize=False)
            prepared = replace(done, matrix=matrix)
        return _unprepared(rule(prepared.rows, prepared.context), prepared.matrix, order)

    return prepared_rule


def _unprepared(result: RuleResult, matrix: Floats, order: Sequence[int]) -> RuleResult:
    weights = np.empty(len(order))
    weights[order] = (result.weights[:, np.newaxis] * matrix).sum(axis=0)
    selected = np.empty(len(order), dtype=np.bool_)
    takes_part = matrix != 0.0
    selected[order] = (result.selected[:, np.newaxis] & takes_part).any(axis=0)
    scores = None
    if result.scores is not None:
        scores = np.empty(len(order))
        shares = np.where(takes_part, result.scores[:, np.newaxis], np.inf)
        scores[order] = shares.min(axis=0)
    return RuleResult(
        vector=result.vector,
        weights=weights,
        selected=selected,
        scores=scores,
        state=result.state,
    )


def clip(rows: Rows, context: Context, config: AggregatorConfig) -> Prepared:
    """Shorten rows to `norm_factor` median norms."""
    factors = median_clipping_factors(rows.norms(), factor=config.norm_factor)
    return Prepared(rows=rows.scaled(factors), context=context, matrix=np.diag(factors))


def adaptive_clip(rows: Rows, context: Context, config: AggregatorConfig) -> Prepared:
    """Shorten the longest rows, as many as f asks for."""
    factors = adaptive_clipping_factors(rows.norms(), num_byzantine=config.num_malicious_nodes)
    return Prepared(rows=rows.scaled(factors), context=context, matrix=np.diag(factors))


def mix(rows: Rows, context: Context, config: AggregatorConfig) -> Prepared:
    """Replace each row by the mean of those nearest to it."""
    matrix = nearest_neighbour_mixing_matrix(rows.gram(), num_byzantine=config.num_malicious_nodes)
    return Prepared(rows=rows.mixed(matrix), context=context, matrix=matrix)


def bucket(rows: Rows, context: Context, config: AggregatorConfig) -> Prepared:
    """Replace the rows by means of random groups of them."""
    buckets = bucketing(
        rows,
        bucket_size=config.bucket_size,
        seed=context.seed,
        num_byzantine=config.num_malicious_nodes,
    )
    return Prepared(
        rows=buckets.rows,
        context=replace(context, weights=buckets.sizes, trust=None, keys=None, probe_outputs=None),
        matrix=buckets.matrix,
    )

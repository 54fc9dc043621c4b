"""How much the outputs of one row's model tell about those of another, on a probe set."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from aggregators.errors import AggregationError
from aggregators.rows.rows import Floats

MIN_OUTPUTS: Final = 3
"""Outputs a correlation is taken over: two outputs always correlate by -1 or 1."""
MAX_SQUARED_CORRELATION: Final = 1.0 - 1e-6
"""Keeps the information of equal outputs finite: at most 6.9 nats."""

_BLOCK_ENTRIES: Final = 1 << 20


def information_scores(outputs: Floats, *, signed: bool = False) -> Floats:
    """Average every row's information about each of the others.

    Args:
        outputs: see `pairwise_information`.
        signed: see `pairwise_information`.

    Returns:
        (n,), float64, nats; 0 for a single row.

    Raises:
        AggregationError: see `pairwise_information`.

    Guarantees:
        Permuting rows permutes the scores, bit for bit.

    Cost: O(n^2 S K) time, O(n^2 + block) memory.
    """
    information = pairwise_information(outputs, signed=signed)
    others = max(1, len(information) - 1)
    # fsum rounds once, so a score is free of the order of the rows.
    return np.array([math.fsum(row) / others for row in information.tolist()])


def pairwise_information(outputs: Floats, *, signed: bool = False) -> Floats:
    """Estimate the mutual information of every two rows' outputs, taken to be Gaussian.

    On one sample, with the correlation rho of two rows' K outputs, it is -1/2 ln(1 - rho^2); the
    result averages over the samples. Models of one output (regression) are correlated across the
    samples instead.

    Args:
        outputs: (n, S, K), float64: each row's K logits on each of S probe samples; K >= 3, or
            K = 1 and S >= 3. 64 samples or more give scores that differ little between probe
            sets. The samples must not be those the model is tested on. Not modified.
        signed: multiply by the sign of rho, so that outputs turned upside down count against.

    Returns:
        (n, n), float64, nats, symmetric; 0 on the diagonal.

    Raises:
        AggregationError: if the shape is another.

    Guarantees:
        Permuting rows permutes the result, bit for bit.
        Adding a number to a row's outputs on one sample, or scaling them by a factor above 0,
        leaves the result up to rounding.
        At most 6.91 nats in magnitude; not negative unless signed.
        A sample on which a row's outputs are all equal, or not all finite, tells nothing of that
        row: rho is 0.

    Cost: O(n^2 S K) time, O(n^2 + block) memory.
    References: rho and the Gaussian information: Cover and Thomas (2006), "Elements of Information
        Theory", Example 8.5.1. Scores by pairs of client models: github.com/ashim9788/agmami.
    """
    require_outputs(outputs)
    num_rows = len(outputs)
    # A single output asks one question with S answers instead of S questions with K answers.
    questions = outputs if outputs.shape[2] > 1 else outputs.transpose(0, 2, 1)
    information = np.zeros((num_rows, num_rows))
    for directions in _directions(questions):
        for row in range(num_rows - 1):
            # Not `matmul`: BLAS may round a pair differently depending on where it stands.
            rho = np.einsum("jsk,sk->js", directions[row + 1 :], directions[row])
            information[row, row + 1 :] += _gaussian_information(rho, signed=signed).sum(axis=1)
    information += information.T
    information /= questions.shape[1]
    return information


def require_outputs(outputs: Floats, num_rows: int | None = None) -> None:
    """Refuse outputs of a shape that no correlation can be taken over.

    Raises:
        AggregationError: if they are not (n, S, K) with K >= 3, or K = 1 and S >= 3; or if there
            are not `num_rows` of them.
    """
    if outputs.ndim != 3 or 0 in outputs.shape:
        message = f"probe_outputs of shape {outputs.shape} must have shape (n, S, K), none 0"
        raise AggregationError(message)
    count, num_samples, num_outputs = outputs.shape
    if num_rows is not None and count != num_rows:
        message = f"probe_outputs of shape {outputs.shape} must have an entry per row, n={num_rows}"
        raise AggregationError(message)
    if num_outputs < MIN_OUTPUTS and not (num_outputs == 1 and num_samples >= MIN_OUTPUTS):
        message = f"probe_outputs of shape {outputs.shape} must have K >= {MIN_OUTPUTS} outputs,"
        message += f" or one output on S >= {MIN_OUTPUTS} samples: two always correlate fully"
        raise AggregationError(message)


def _directions(questions: Floats) -> Iterator[Floats]:
    """Centre answers and bring them to length 1, some questions at a time.

    The inner product of two rows' answers to a question is then their correlation.
    """
    num_rows, num_questions, num_answers = questions.shape
    width = max(1, _BLOCK_ENTRIES // (num_rows * num_answers))
    for start in range(0, num_questions, width):
        block = np.ascontiguousarray(questions[:, start : start + width])
        finite = np.isfinite(block).all(axis=2, keepdims=True)
        values = np.where(finite, block, 0.0)
        # Sums of squares of what is at most 1 cannot overflow.
        peaks = np.abs(values).max(axis=2, keepdims=True)
        values /= np.where(peaks > 0.0, peaks, 1.0)
        # Equal answers become exactly 0, which subtracting a rounded mean would not ensure.
        values -= values[:, :, :1].copy()
        values -= values.mean(axis=2, keepdims=True)
        lengths = np.sqrt(np.square(values).sum(axis=2, keepdims=True))
        values /= np.where(lengths > 0.0, lengths, 1.0)
        yield values


def _gaussian_information(rho: Floats, *, signed: bool) -> Floats:
    information: Floats = -0.5 * np.log1p(-np.minimum(np.square(rho), MAX_SQUARED_CORRELATION))
    return np.copysign(information, rho) if signed else information

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privacy import compiled_sampling, plain_sampling
from privacy.sampling_table import sampling_table
from tests.looped import looped

WORDS = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=30), st.integers(0, 30))
def test_compiled_attempts_are_the_plain_ones(
    attempts: list[tuple[int, int, int]], size: int
) -> None:
    words = np.array(attempts, np.uint64).reshape(-1)
    for stddev in (0.7, 31.0, 50.0, 2.0**20 * 1.3, 2.0**48):
        results = []
        for sampler in (plain_sampling, compiled_sampling):
            out = np.full(size, -7, np.int64)
            results.append((sampler.attempt(out, words, sampling_table(stddev)), out.tolist()))
        assert results[0] == results[1]


@looped("stddev", [0.0625, 0.5, 3.0, 32.0, 1e3, 1.7 * 2.0**26, 2.0**40])
def test_long_streams_agree(stddev: float) -> None:
    words = np.random.default_rng(3).integers(0, 2**64, 3 * 20_000, np.uint64)
    table = sampling_table(stddev)
    # The words that decide by the narrowest margin: thresholds and their neighbours.
    edges = np.concatenate([table.thresholds - np.uint64(1), table.thresholds])
    words[: 3 * len(edges) : 3] = edges
    plain, compiled = np.empty(20_000, np.int64), np.empty(20_000, np.int64)
    count = plain_sampling.attempt(plain, words, table)
    assert compiled_sampling.attempt(compiled, words, table) == count
    np.testing.assert_array_equal(plain[:count], compiled[:count])

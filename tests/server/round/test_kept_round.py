"""What is kept of a round reads back as it was, and nothing else reads as a kept round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.byzantine import ByzantineConfig
from aggregators.config import AggregatorConfig
from aggregators.errors import AggregationError
from aggregators.integrated import IntegratedConfig
from aggregators.server_optimizer import ServerOptimizerConfig
from server.round.kept_round import KeptRound, decode_kept_round, encode_kept_round
from server.round.ports import Contribution
from updates.compression_plan import CompressionPlan, Method

SETTINGS = IntegratedConfig(
    byzantine=ByzantineConfig(
        aggregator=AggregatorConfig(rule="nnm+trimmed-mean", num_malicious_nodes=2, trim=3),
        malicious_fraction=0.3,
        may_degrade=True,
    ),
    optimizer=ServerOptimizerConfig(name="fedyogi", learning_rate=0.1 + 0.2, momentum=0.5),
)
PLAN = CompressionPlan(method=Method.RAND_K, dim=9, num_values=4, map_seed=bytes(range(32)))


def contribution(device: str, payload: bytes, *, inline: bool, loss: float | None) -> Contribution:
    return Contribution(
        device_id=device,
        submission_id="s1",
        num_samples=7,
        payload_bytes=len(payload),
        digest=bytes(16),
        accepted_at_ms=5,
        inline=inline,
        loss_before=loss,
        loss_after=None,
        model_version=3,
        within_clipping_norm=None,
    )


def kept_of(updates: list[tuple[bytes, bool]], loss: float | None = None) -> KeptRound:
    return KeptRound(
        base_version=3,
        settings=SETTINGS,
        compression=PLAN,
        contributions=tuple(
            contribution(f"d{i}", payload, inline=inline, loss=loss)
            for i, (payload, inline) in enumerate(updates)
        ),
        inline_payloads=tuple(payload for payload, inline in updates if inline),
    )


@given(
    updates=st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=6),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_round_reads_back_as_it_was(
    updates: list[tuple[bytes, bool]], loss: float | None
) -> None:
    kept = kept_of(updates, loss)
    data = encode_kept_round(kept)
    assert decode_kept_round(data) == kept
    assert encode_kept_round(decode_kept_round(data)) == data


@given(data=st.data())
def test_cut_or_foreign_bytes_are_damage(data: st.DataObject) -> None:
    whole = encode_kept_round(kept_of([(b"abc", True), (b"defg", False), (b"hij", True)]))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for damaged in (
        cut,
        data.draw(st.binary(max_size=60)),
        whole[:8] + b"[" + whole[9:],
        whole + b"x",
    ):
        with pytest.raises(AggregationError):
            decode_kept_round(damaged)

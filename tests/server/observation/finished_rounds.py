"""Rounds that ended: plain, shared, private."""

from typing import Final

from privacy.charge import Charge
from server.round.ports import FinishedRound
from server.round.round_privacy import RoundCost
from server.round.shared_round import SharedRound
from tests.security.shared_round.sealed_round import make_round

TASK: Final = "digits"
FINISHED: Final = FinishedRound(
    task=TASK,
    number=4,
    decision="published",
    reason="",
    base_version=4,
    model_version=5,
    cohort_size=3,
    accepted=2,
    contributors=("d1", "d2"),
    rejected=1,
    excluded=0,
    started_at_ms=1_000,
    finished_at_ms=3_500,
    bytes_up=88,
    traceparent="",
    metrics={"update_norm": 0.5},
)
SHARED: Final = SharedRound(
    parameters=make_round().to_bytes().hex(),
    members=tuple((f"d{index}", "ab" * 32) for index in range(9)),
    set_sha256="5e" * 32,
    mode="degraded_unchecked",
    sums=((0, 1, 2, 3, 4, 5, 6, 7),),
    selection_sha256="5f" * 32,
    excluded=(("d8", "wrap"), ("d9", "SEAL_BROKEN")),
    blamed=9,
    holders=(1, 2, 4, 5),
    liars=(2,),
)
COST: Final = RoundCost(
    charge=Charge(noise_multiplier=2.0).to_text(),
    is_charged=True,
    clipping_norm=0.25,
    counts={},
    epsilon=0.75,
    delta=1e-5,
)

"""What still fits into a round."""

from client.round.deadline import LinkEstimate, RoundDeadline
from tests.client.federation import FakeTime


def test_a_round_is_over_a_margin_before_its_time_to_live(fake_time: FakeTime) -> None:
    deadline = RoundDeadline(fake_time.clock, ttl_s=10.0, margin_s=1.0)
    assert deadline.leaves(8.5)
    assert not deadline.leaves(9.0)
    fake_time.now += 9.0
    assert not deadline.leaves(0.0)
    deadline.renew(20.0)
    assert deadline.leaves(18.5)
    assert not deadline.leaves(19.0)


def test_only_long_transfers_are_measured() -> None:
    link = LinkEstimate()
    assert link.seconds_for(1 << 30) == 0.0
    link.record(1_000, 10.0)
    assert link.seconds_for(1 << 30) == 0.0
    link.record(1_000_000, 2.0)
    assert link.seconds_for(250_000) == 0.5
    link.record(1_000_000, 0.0)
    assert link.seconds_for(250_000) == 0.5

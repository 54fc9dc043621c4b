"""What each format of payload takes and refuses."""

import numpy as np
import pytest

from server.errors import MalformedUpdate, ServiceError, WrongModelVersion, WrongRoundParameters
from server.intake.upload_sink import check_inline
from server.task.payload_format import QUICK_VALUES, CompressedFormat, DenseFormat, SealedFormat
from tests.security.shared_round.sealed_round import make_round
from tests.server.task.payloads import compressed, of_bundle, sealed
from updates.codec import encode_dense


def test_a_bundle_of_the_round_is_taken_whole_and_in_any_pieces() -> None:
    payload_format, bundle = sealed()
    check_inline(of_bundle(bundle), payload_format)
    for size in (1_000, 65_536, len(bundle)):
        check = payload_format.start(of_bundle(bundle))
        for start in range(0, len(bundle), size):
            check.feed(memoryview(bundle)[start : start + size])
        check.finish()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"device_id": "phone-2"}, MalformedUpdate),
        ({"model_version": 4}, WrongModelVersion),
    ],
)
def test_a_bundle_that_says_otherwise_than_its_header_is_refused(
    changes: dict[str, object], refusal: type[ServiceError]
) -> None:
    payload_format, bundle = sealed()
    with pytest.raises(refusal):
        check_inline(of_bundle(bundle, **changes), payload_format)


def test_a_bundle_of_another_round_is_refused() -> None:
    payload_format, bundle = sealed(round=8)
    with pytest.raises(WrongRoundParameters):
        check_inline(of_bundle(bundle), payload_format)


def test_a_bundle_without_its_end_is_refused_as_soon_as_its_prefix_is_there() -> None:
    payload_format, bundle = sealed()
    short = of_bundle(bundle[:-1])
    with pytest.raises(MalformedUpdate, match="the bundle must have"):
        check_inline(short, payload_format)


def test_what_is_no_bundle_is_refused() -> None:
    payload_format, _ = sealed()
    for payload in (b"", b"FSU", b"FSU1\xff\xff\xff\xff", encode_dense(np.ones(5, np.float32))):
        with pytest.raises(MalformedUpdate):
            check_inline(of_bundle(payload), payload_format)


def test_large_compressed_payloads_are_checked_in_a_thread() -> None:
    small, _ = compressed(num_values=100)
    assert small.is_quick
    large = CompressedFormat(codec=small.codec, num_values=QUICK_VALUES + 1)
    assert not large.is_quick
    assert DenseFormat(dim=5).is_quick
    assert SealedFormat(params=make_round(dim=300)).is_quick

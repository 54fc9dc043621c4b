"""What an adversary reads out of what it sees: everything, or nothing where it is hidden."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from aggregators.base import Update
from aggregators.dp import DPConfig, DPGradientAggregator, RoundNoise
from privacy.clipping import l2_norm
from security.secret_sharing.field import MersenneField, Words, field_of
from security.secret_sharing.fixed_point import decode, encode
from security.secret_sharing.reconstruction import reconstruct
from security.secret_sharing.threshold import Threshold
from tests.looped import looped
from tests.security.inversion import images, inverted, likeness, update_of
from tests.security.secret_sharing.classic import share

FRACTION_BITS = 20
COMMITTEE = Threshold(threshold=3, holders=5)
# 64 pixels: independent images correlate with a standard deviation of about 1/8.
FOUND, NOTHING = 0.99, 0.5


def test_who_sees_a_plain_update_sees_the_image() -> None:
    for position, image in enumerate(images(5)):
        assert likeness(inverted(update_of(position)), image) > FOUND


def _shares(position: int) -> tuple[MersenneField, dict[int, Words]]:
    field = field_of(61)
    secret = encode(update_of(position), fraction_bits=FRACTION_BITS, field=field)
    drawn = iter(range(100))
    shares = share(field, COMMITTEE, secret, lambda n: bytes([next(drawn) + position]) * n)
    return field, dict(enumerate(shares, start=1))


@looped("holders", sorted(combinations(range(1, 6), 2)))
def test_two_of_five_holders_see_nothing(holders: tuple[int, int]) -> None:
    field, shares = _shares(0)
    image = images(1)[0]
    for holder in holders:
        assert abs(likeness(inverted(shares[holder].astype(np.float64)), image)) < NOTHING
    first, second = (shares[holder] for holder in holders)
    # The line through two shares of a quadratic is no closer to the secret than either.
    low, high = holders
    line = [
        (high * int(a) - low * int(b)) * pow(high - low, -1, field.modulus) % field.modulus
        for a, b in zip(first, second, strict=True)
    ]
    assert abs(likeness(inverted(np.array(line, dtype=np.float64)), image)) < NOTHING


def test_three_of_five_holders_see_the_image() -> None:
    field, shares = _shares(0)
    opened = reconstruct(field, {j: shares[j] for j in (1, 3, 5)}, degree=2).values
    update = decode(opened, fraction_bits=FRACTION_BITS, field=field)
    assert likeness(inverted(update), images(1)[0]) > FOUND


def _published(multiplier: float) -> NDArray[np.float64]:
    """What everybody sees of a round with one device, at a clipping norm that fits it."""
    update = update_of(0)
    aggregator = DPGradientAggregator(
        DPConfig(clipping_norm=l2_norm(update), noise_multiplier=multiplier, expected_updates=1.0)
    )
    noise = RoundNoise(noise_key=bytes(32), round_number=1, manifest_sha256=bytes(32))
    one = Update(key="device", vector=update, num_samples=1)
    return aggregator.aggregate([one], noise).vector


def test_noise_hides_the_image_even_of_a_device_that_is_alone() -> None:
    image = images(1)[0]
    assert abs(likeness(inverted(_published(1.0)), image)) < NOTHING
    assert likeness(inverted(_published(1e-5)), image) > FOUND


def test_a_sum_tells_less_of_each_image_the_more_are_in_it() -> None:
    """Sharing alone is no differential privacy: a small sum still resembles its parts."""
    everyone = images(64)
    found = {}
    for size in (1, 4, 64):
        total = np.sum([update_of(position) for position in range(size)], axis=0)
        found[size] = max(likeness(inverted(total), image) for image in everyone[:size])
    assert found[1] > FOUND > found[4]
    assert likeness(inverted(np.sum([update_of(p) for p in range(64)], axis=0)), everyone[0]) < 0.9

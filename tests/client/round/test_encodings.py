"""Which rounds a device takes part in, and how it encodes for them."""

import numpy as np
import pytest

from client.errors import ErrorReason, PreconditionError
from client.round.encodings import encoding_of
from client.sharing.update_sealer import UpdateSealer
from tests.client.committee import (
    Holders,
    assigned,
    config_of,
    make_holders,
    shared_assignment,
)
from tests.client.federation import ScriptedFederation


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Holders:
    return make_holders(tmp_path_factory.mktemp("holders"))


def test_a_plain_round_is_refused_unless_the_policy_allows_it(holders: Holders) -> None:
    plain = assigned(ScriptedFederation())
    with pytest.raises(PreconditionError, match="plain") as caught:
        encoding_of(plain, UpdateSealer(config_of(holders.sharing())))
    assert caught.value.reason is ErrorReason.WEAKER_THAN_POLICY
    allowed = encoding_of(plain, UpdateSealer(config_of(holders.sharing(required=False))))
    assert isinstance(allowed.encode(np.ones(7, np.float32), model_version=2), bytes)


def test_a_shared_round_is_refused_without_a_sealer(holders: Holders) -> None:
    with pytest.raises(PreconditionError, match="not configured") as caught:
        encoding_of(shared_assignment(holders), None)
    assert caught.value.reason is ErrorReason.WEAKER_THAN_POLICY

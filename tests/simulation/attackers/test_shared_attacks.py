"""Attacks on shares, against the checks that share holders make."""

import numpy as np
import pytest

from client import Assignment, ClientConfig
from client.errors import TrainingError
from client.round_encoding import RoundEncoding
from client.sharing.update_sealer import UpdateSealer
from client.transport.server_messages import check_in_answer
from protos.fedagg.v1 import share_holder_pb2 as pb
from security.secret_sharing.replicated_keys import ReplicatedKeys
from security.shared_round.keys.key_dealing import accept_keys, deal_keys
from security.shared_round.opening.openings import compute_blame, compute_openings
from security.shared_round.opening.verdicts import FailureReason, Verdict, judge, judge_blame
from security.shared_round.terms.parameter_facts import Checks, ShareFormat
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.pieces import SharePieces
from simulation.attackers.attacks import SHARED_ATTACKS
from simulation.attackers.shared_attacks import AttackingSealer
from simulation.errors import ScenarioError
from tests.client.committee import Holders, make_holders
from tests.client.federation import DEVICE, TASK, ScriptedFederation
from tests.looped import looped
from tests.security.shared_round.shared_vectors import flip_coin

DIM = 2_000
SET_SHA256 = bytes(range(32))
POINTS = (1, 2, 3)


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Holders:
    return make_holders(tmp_path_factory.mktemp("holders"))


@pytest.fixture(scope="module")
def keys(holders: Holders) -> dict[int, ReplicatedKeys]:
    committee, secrets = holders.committee, holders.secrets
    dealt: list[pb.SealedKey] = []
    for holder in POINTS:
        dealt += deal_keys(secrets[holder - 1], committee, holder)
    scheme = holders.plan(ScriptedFederation()).scheme
    return {
        holder: ReplicatedKeys(
            scheme, holder, accept_keys(secrets[holder - 1], committee, holder, dealt)
        )
        for holder in POINTS
    }


def encodings(
    holders: Holders, attack: str, scale: float = 1.0, **terms: object
) -> tuple[RoundParameters, RoundEncoding, RoundEncoding]:
    script = ScriptedFederation(dim=DIM)
    params = holders.share(script, **terms)
    assignment = check_in_answer(script.assignment())
    assert isinstance(assignment, Assignment)
    config = ClientConfig(
        servers=("127.0.0.1:1",),
        task=TASK,
        device_id=DEVICE,
        insecure=True,
        sharing=holders.sharing(),
    )
    attacker = AttackingSealer(config, attack=attack, scale=scale, rng=np.random.default_rng(4))
    return params, UpdateSealer(config).encoding(assignment), attacker.encoding(assignment)


def verdict_on(
    holders: Holders, keys: dict[int, ReplicatedKeys], params: RoundParameters, bundles: list[bytes]
) -> Verdict:
    """Check the updates as the holders of a round do."""
    coin = flip_coin(params, keys, SET_SHA256)
    vectors: dict[int, list[SharePieces]] = {
        j: [holders.pieces(params, bundle, j) for bundle in bundles] for j in POINTS
    }
    openings = {j: compute_openings(params, coin, SET_SHA256, vectors[j], keys[j]) for j in POINTS}
    verdict = judge(params, coin, len(bundles), openings)
    suspects = verdict.suspects
    blame = {
        j: compute_blame(params, coin, suspects, [vectors[j][i] for i in suspects]) for j in POINTS
    }
    return judge_blame(params, verdict, blame) if suspects else verdict


@looped(
    "attack, share_format, reason",
    [
        ("over-norm", ShareFormat.SHAMIR_SEEDED, FailureReason.NORM),
        ("over-norm", ShareFormat.CNF_SEEDED, FailureReason.NORM),
        # The squared norm that is opened holds: only the wrap-around test sees these.
        ("wrap-half", ShareFormat.SHAMIR_SEEDED, FailureReason.WRAP),
        ("wrap-half", ShareFormat.CNF_SEEDED, FailureReason.WRAP),
        ("wrap-spread", ShareFormat.SHAMIR_SEEDED, FailureReason.WRAP),
        ("wrap-spread", ShareFormat.CNF_SEEDED, FailureReason.WRAP),
        ("inconsistent-shares", ShareFormat.SHAMIR_SEEDED, FailureReason.INCONSISTENT),
    ],
)
def test_the_attacker_alone_is_left_out_and_for_the_right_reason(
    holders: Holders,
    keys: dict[int, ReplicatedKeys],
    attack: str,
    share_format: ShareFormat,
    reason: FailureReason,
) -> None:
    params, honest, attacker = encodings(holders, attack, format=share_format)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((5, DIM)).astype(np.float32)
    sealers = [honest, honest, attacker, honest, honest]
    bundles = [
        sealer.encode(vector, model_version=2)[:]
        for sealer, vector in zip(sealers, vectors, strict=True)
    ]
    verdict = verdict_on(holders, keys, params, bundles)
    assert verdict.failed == {2: reason}
    assert verdict.passed == (0, 1, 3, 4)
    assert verdict.liars == ()


@looped(
    "attack, checks",
    [
        ("over-norm", Checks.SUM),
        ("over-norm", Checks.NORM),
        # Without checks the field is small, and so is what wraps around it: 2^30 ulp.
        ("wrap-half", Checks.SUM),
        ("wrap-half", Checks.NORM),
        ("wrap-spread", Checks.NORM),
    ],
)
@looped("share_format", ShareFormat)
def test_attacks_on_the_update_deal_consistent_shares(
    holders: Holders, attack: str, share_format: ShareFormat, checks: Checks
) -> None:
    params, honest, attacker = encodings(holders, attack, format=share_format, checks=checks)
    vector = np.full(DIM, 0.01, dtype=np.float32)
    bundle = attacker.encode(vector, model_version=2)[:]
    opened = holders.update(params, bundle, 1, 2)
    np.testing.assert_array_equal(opened, holders.update(params, bundle, 2, 3))
    clean = holders.update(params, honest.encode(vector, model_version=2)[:], 1, 2)
    assert np.linalg.norm(opened) > 1.9 * np.linalg.norm(clean)


def test_over_norm_is_as_much_too_long_as_it_is_told(holders: Holders) -> None:
    params, _, attacker = encodings(holders, "over-norm", 2.0)
    vector = np.full(DIM, 0.01, dtype=np.float32)
    opened = holders.update(params, attacker.encode(vector, model_version=2)[:], 1, 3)
    # Q is 1 in the update's units, and the rounding of the elements.
    assert np.linalg.norm(opened) == pytest.approx(3.0, rel=1e-4)


def test_shares_that_no_device_can_make_inconsistent_are_left_alone(holders: Holders) -> None:
    _, _, attacker = encodings(holders, "inconsistent-shares", format=ShareFormat.CNF_SEEDED)
    with pytest.raises(TrainingError, match="one body for all holders"):
        attacker.encode(np.zeros(DIM, dtype=np.float32), model_version=2)


def test_a_tampered_update_is_the_same_bytes_on_every_read(holders: Holders) -> None:
    for attack in sorted(SHARED_ATTACKS):
        _, _, attacker = encodings(holders, attack, format=ShareFormat.SHAMIR_SEEDED)
        sealed = attacker.encode(np.full(DIM, 0.01, dtype=np.float32), model_version=2)
        assert sealed[:20_000] + sealed[20_000:] == sealed[:]


def test_an_unknown_attack_lists_the_known_ones(holders: Holders) -> None:
    with pytest.raises(ScenarioError, match="inconsistent-shares, over-norm, wrap-half"):
        encodings(holders, "sign-flip")

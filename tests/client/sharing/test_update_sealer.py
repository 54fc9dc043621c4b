"""What a device seals, what share holders open of it, and which rounds it refuses."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from client.config import ClientConfig, SharingConfig, TlsFiles
from client.errors import (
    ClientConfigError,
    ErrorReason,
    PreconditionError,
    ProtocolError,
    TrainingError,
)
from client.sharing.update_sealer import UpdateSealer, seal_update
from privacy.clipping import clip_by_norm
from security.shared_round.terms.parameter_facts import Checks, Degraded, ShareFormat
from simulation.fleet.identities import identity_files, make_identities
from tests.client.committee import (
    CLIP_NORM,
    NOW_S,
    Holders,
    assigned,
    config_of,
    make_holders,
    shared_assignment,
)
from tests.client.federation import DEVICE, TASK, ScriptedFederation
from tests.looped import looped

VECTOR = np.linspace(-0.4, 0.5, 7, dtype=np.float32)
F20 = 2.0**-20


@pytest.fixture(scope="module")
def holders(tmp_path_factory: pytest.TempPathFactory) -> Holders:
    return make_holders(tmp_path_factory.mktemp("holders"))


@pytest.mark.parametrize("share_format", ShareFormat)
@pytest.mark.parametrize(("threshold", "num_holders"), [(2, 3), (3, 5)])
def test_any_threshold_of_holders_opens_the_update(
    tmp_path: Path, share_format: ShareFormat, threshold: int, num_holders: int
) -> None:
    holders = make_holders(tmp_path, threshold=threshold, num_holders=num_holders)
    script = ScriptedFederation()
    params = holders.share(script, format=share_format)
    sealed = seal_update(VECTOR, assigned(script), config_of(holders.sharing()))
    expected = clip_by_norm(VECTOR, CLIP_NORM)
    for first in range(1, num_holders - threshold + 2):
        opened = holders.update(params, sealed[:], *range(first, first + threshold))
        # Rounding to a multiple of 2^-f moves an element by half of one.
        np.testing.assert_allclose(opened, expected, atol=F20 / 2, rtol=0)


def test_the_header_names_the_device_and_the_version(holders: Holders) -> None:
    script = ScriptedFederation()
    holders.share(script, staleness_weights=(2, 1))
    config = config_of(holders.sharing())
    sealed = seal_update(VECTOR, assigned(script), config, model_version=1)
    header = holders.header(sealed[:])
    assert header.device_id == DEVICE
    assert header.header.model_version == 1


def test_a_sealed_update_is_the_same_bytes_on_every_read(holders: Holders) -> None:
    sealed = seal_update(VECTOR, shared_assignment(holders), config_of(holders.sharing()))
    whole = sealed[:]
    assert len(sealed) == len(whole)
    assert b"".join(sealed[at : at + 97] for at in range(0, len(whole), 97)) == whole
    assert sealed[100:] == whole[100:]
    assert sealed.digest == xxhash.xxh3_128_digest(whole)


def test_sealing_again_gives_other_bytes(holders: Holders) -> None:
    assignment, config = shared_assignment(holders), config_of(holders.sharing())
    assert seal_update(VECTOR, assignment, config)[:] != seal_update(VECTOR, assignment, config)[:]


@pytest.mark.parametrize("norm", [0.999999, 1.0, 1.0000001, 250.0])
def test_a_clipped_update_always_passes_the_norm_bound(holders: Holders, norm: float) -> None:
    script = ScriptedFederation()
    script.dim = 1_001
    holders.share(script)
    rng = np.random.default_rng(5)
    encoding = UpdateSealer(config_of(holders.sharing())).encoding(assigned(script))
    for _ in range(10):
        direction = rng.standard_normal(1_001)
        vector = (norm / np.linalg.norm(direction) * direction).astype(np.float32)
        assert len(encoding.encode(vector, model_version=2)) > encoding.payload_bytes


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.zeros(6, dtype=np.float32), r"\(6,\)"),
        (np.zeros(7), "float64"),
        (np.full(7, np.nan, dtype=np.float32), "finite"),
    ],
)
def test_what_is_no_update_of_the_round_is_not_sealed(
    holders: Holders, vector: NDArray[np.float32], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        seal_update(vector, shared_assignment(holders), config_of(holders.sharing()))


def test_an_update_that_is_too_stale_for_the_round_is_not_sealed(holders: Holders) -> None:
    with pytest.raises(TrainingError, match="model_version=1"):
        seal_update(
            VECTOR, shared_assignment(holders), config_of(holders.sharing()), model_version=1
        )


@pytest.mark.parametrize(
    ("limit", "accepted"), [(None, [2, 3, 4, 5]), (1, [4, 5]), (0, [5]), (9, [2, 3, 4, 5])]
)
def test_staleness_is_limited_by_the_round_and_by_the_device(
    holders: Holders, limit: int | None, accepted: list[int]
) -> None:
    script = ScriptedFederation(model_version=5)
    holders.share(script, staleness_weights=(8, 4, 2, 1))
    sealer = UpdateSealer(config_of(holders.sharing(max_staleness=limit)))
    encoding = sealer.encoding(assigned(script))
    assert [version for version in range(1, 8) if encoding.accepts(version)] == accepted
    assert encoding.takes_stale == (len(accepted) > 1)


def test_the_least_size_is_known_before_training(holders: Holders) -> None:
    script = ScriptedFederation()
    params = holders.share(script, format=ShareFormat.SHAMIR_SEEDED)
    encoding = UpdateSealer(config_of(holders.sharing())).encoding(assigned(script))
    # Two bodies of one chunk each, with its tag.
    assert encoding.payload_bytes == 2 * (8 * params.length + 16)


WEAKER: list[tuple[dict[str, object], dict[str, object], str]] = [
    ({}, {"min_threshold": 3}, "threshold=2 of the round must be at least 3"),
    ({"quorum": 2}, {}, "quorum=2 of the round must be at least 3"),
    ({"min_members": 4}, {"min_members": 5}, "min_members=4 of the round must be at least 5"),
    ({"min_members": 6, "group_size": 4}, {"min_members": 5}, "group_size=4 .* at least 5"),
    (
        {"min_members": 10, "degraded": Degraded.GROUPED},
        {"min_members": 9},
        "group_size=8 of the round must be at least 9",
    ),
    (
        {"checks": Checks.SUM},
        {"require_checks": Checks.NORM},
        "checks=sum .* must be norm or distances",
    ),
    ({"checks": Checks.NORM}, {"require_checks": Checks.DISTANCES}, "checks=norm .* distances"),
    (
        {"degraded": Degraded.UNCHECKED},
        {"require_checks": Checks.NORM},
        "degraded=unchecked .* wait or",
    ),
    ({"wrap_tests": 39}, {}, "wrap_tests=39 of the round must be at least 40"),
    ({"sketch_dim": 512}, {}, "sketch_dim=512 of the round must be at least 1024"),
    (
        {"noise_multiplier": 0.49},
        {"min_noise_multiplier": 0.5},
        "must leave at least 0.5 norm bounds of noise",
    ),
    ({}, {"min_noise_multiplier": 0.5}, "noise_dealers=0 of noise_stddev=0"),
    ({}, {"min_mask_scale": 13}, "mask_scale=8 of the round must be at least 13"),
]


@looped("terms, policy, message", WEAKER)
def test_a_round_weaker_than_the_policy_is_refused(
    holders: Holders, terms: dict[str, object], policy: dict[str, object], message: str
) -> None:
    config = config_of(holders.sharing(**policy))  # type: ignore[arg-type]  # by name, per case
    with pytest.raises(PreconditionError, match=message) as caught:
        UpdateSealer(config).encoding(shared_assignment(holders, **terms))
    assert caught.value.reason is ErrorReason.WEAKER_THAN_POLICY


def test_a_round_exactly_as_strong_as_the_policy_is_taken(holders: Holders) -> None:
    policy = holders.sharing(
        min_threshold=2,
        min_quorum=3,
        min_members=4,
        min_noise_multiplier=0.5,
        require_checks=Checks.NORM,
    )
    assignment = shared_assignment(holders, min_members=4, quorum=3, noise_multiplier=0.5)
    assert UpdateSealer(config_of(policy)).encoding(assignment).payload_bytes > 0


def test_a_smaller_quorum_is_taken_where_the_policy_allows_it(holders: Holders) -> None:
    assignment = shared_assignment(holders, quorum=2)
    config = config_of(holders.sharing(min_quorum=2))
    assert UpdateSealer(config).encoding(assignment).accepts(2)


def test_another_committee_is_refused(holders: Holders, tmp_path: Path) -> None:
    others = make_holders(tmp_path, num_holders=4)
    with pytest.raises(PreconditionError, match="configured committee, 2 of 3") as caught:
        UpdateSealer(config_of(holders.sharing())).encoding(shared_assignment(others))
    assert caught.value.reason is ErrorReason.WEAKER_THAN_POLICY


def test_another_threshold_than_the_committee_has_is_refused(holders: Holders) -> None:
    assignment = shared_assignment(holders, threshold=3, checks=Checks.SUM)
    with pytest.raises(PreconditionError, match=r"threshold=3 and holders=3 .* 2 of 3"):
        UpdateSealer(config_of(holders.sharing())).encoding(assignment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "letters"),
        ("round", 4),
        ("model_version", 3),
        ("model_sha256", "0" * 64),
        ("dim", 8),
    ],
)
def test_parameters_of_another_round_than_the_assignment_are_refused(
    holders: Holders, name: str, value: object
) -> None:
    assignment = dataclasses.replace(
        shared_assignment(holders),
        **{name: value},  # type: ignore[arg-type]  # by name, per case
    )
    with pytest.raises(ProtocolError, match=str(value)):
        UpdateSealer(config_of(holders.sharing())).encoding(assignment)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1.001])
def test_a_norm_bound_that_does_not_follow_from_the_plan_is_refused(
    holders: Holders, clip_norm: float
) -> None:
    assignment = shared_assignment(holders)
    plan = dataclasses.replace(assignment.plan, clipping_norm=clip_norm)
    with pytest.raises(ProtocolError, match="clipping_norm"):
        UpdateSealer(config_of(holders.sharing())).encoding(
            dataclasses.replace(assignment, plan=plan)
        )


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"\0"])
def test_unreadable_parameters_are_refused(
    holders: Holders, damage: Callable[[bytes], bytes]
) -> None:
    assignment = shared_assignment(holders)
    broken = dataclasses.replace(assignment, shared_parameters=damage(assignment.shared_parameters))
    with pytest.raises(ProtocolError, match="cannot be read"):
        UpdateSealer(config_of(holders.sharing())).encoding(broken)


def test_the_certificate_may_be_that_of_tls(holders: Holders) -> None:
    files = identity_files(holders.folder, DEVICE)
    config = ClientConfig(
        servers=("127.0.0.1:1",),
        task=TASK,
        device_id=DEVICE,
        tls=TlsFiles(certificate=files.certificate, private_key=files.private_key),
        sharing=SharingConfig(committee=holders.committee_file),
    )
    assert UpdateSealer(config).signer.device_id == DEVICE


def test_files_that_cannot_be_used_are_refused(holders: Holders, tmp_path: Path) -> None:
    sharing = holders.sharing()
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    make_identities(tmp_path, ["other"], now_s=NOW_S)
    other = identity_files(tmp_path, "other")
    for changes, message in (
        ({"committee": tmp_path / "missing"}, "missing cannot be read"),
        ({"committee": empty}, "JSON"),
        ({"certificate": empty}, "certificate"),
        ({"private_key": other.private_key}, "does not belong"),
        ({"certificate": other.certificate, "private_key": other.private_key}, "'other'"),
    ):
        broken = dataclasses.replace(sharing, **changes)  # type: ignore[arg-type]  # by name, per case
        with pytest.raises(ClientConfigError, match=message):
            UpdateSealer(config_of(broken))


def test_no_repr_shows_a_key_or_an_update(holders: Holders) -> None:
    sealer = UpdateSealer(config_of(holders.sharing()))
    assert "PRIVATE" not in repr(sealer.signer)
    assignment = shared_assignment(holders)
    assert repr(assignment.shared_parameters) not in repr(assignment)


LEAN_PROGRAM = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"numba", "llvmlite", "torch", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from pathlib import Path
import numpy as np
from client.transport.server_messages import check_in_answer
from client.sharing.update_sealer import seal_update
from tests.client.committee import config_of, make_holders
from tests.client.federation import ScriptedFederation
holders = make_holders(Path(sys.argv[1]))
script = ScriptedFederation()
params = holders.share(script)
vector = np.full(7, 0.25, dtype=np.float32)
assignment = check_in_answer(script.assignment())
sealed = seal_update(vector, assignment, config_of(holders.sharing()))
print(holders.update(params, sealed[:], 1, 3).tolist() == [0.25] * 7)
print({"numba", "torch", "scipy"} & set(sys.modules))
"""


@pytest.mark.slow
def test_sealing_needs_neither_compiled_kernels_nor_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LEAN_PROGRAM, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "set()"]

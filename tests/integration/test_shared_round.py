"""Shared rounds end to end: devices, coordinator, Redis and share holders, all of them real."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protos.fedagg.v1 import share_holder_pb2 as pb
from protos.fedagg.v1.share_holder_pb2_grpc import ShareHolderStub
from security.certificates.credentials import (
    create_authority,
    issue_device_certificate,
    issue_server_certificate,
    private_key_pem,
)
from security.shared_round.terms.parameters import RoundParameters
from server.config import ConfigError
from simulation.attackers.shared_attacks import AttackingSealer
from tests.integration.service import (
    TASK,
    Service,
    header,
    refusal_of,
    serving,
    status_of,
)
from tests.integration.shared_committee import (
    Holders,
    Vector,
    mean_of,
    running,
    signer,
    update_of,
)
from updates.vectors import decode_model, flatten, layout_of

DIM: Final = 24
DEVICES: Final = ("d1", "d2", "d3", "d4")


def task_settings(holders: Holders, **changes: object) -> dict[str, object]:
    sharing = {
        "committee": str(holders.path),
        "checks": "norm",
        "sketch-dim": 64,
        "holder-timeout-s": 5,
        "max-wait-s": 20,
        **(changes.pop("sharing", None) or {}),  # type: ignore[dict-item]  # a mapping of settings
    }
    return {
        "mode": "shared",
        "reporting-goal": len(DEVICES),
        "plan": {"clipping-norm": 1.0},
        "sharing": sharing,
        **changes,
    }


async def open_shared(service: Service, *devices: str, check_in_id: str = "c1") -> RoundParameters:
    """Open a round; what every device is told of its parameters."""
    assignments = await service.open_round(*devices, check_in_id=check_in_id)
    (told,) = {assignment.shared_parameters for assignment in assignments}
    return RoundParameters.from_bytes(told)


async def submit(
    service: Service,
    holders: Holders,
    params: RoundParameters,
    updates: Mapping[str, Vector],
) -> None:
    for device, vector in updates.items():
        bundle = holders.sealed(params, device, vector)
        facts = header(device, bundle, round_number=params.round, model_version=params.base_version)
        await service.inline(facts, bundle)


async def step_of(service: Service, version: int) -> Vector:
    """The change that led to a version."""
    flat = []
    for number in (version - 1, version):
        weights, _ = decode_model(await service.fetch(number))
        flat.append(flatten(weights, layout_of(weights)))
    change: Vector = flat[1] - flat[0]
    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threshold", "num_holders", "changes"),
    [
        (2, 3, {"sharing": {"checks": "sum"}}),
        (2, 3, {"sharing": {"format": "cnf-seeded"}}),
        (3, 5, {}),
        (
            3,
            5,
            {
                "aggregation": {"rule": "multi-krum", "num-nodes-to-select": 4},
                "sharing": {"checks": "distances", "format": "cnf-seeded"},
            },
        ),
        (2, 3, {"sharing": {"group-size": 2}}),
    ],
)
async def test_a_shared_round_publishes_the_mean_that_nobody_saw_a_part_of(
    tmp_path: Path,
    redis_url: str,
    threshold: int,
    num_holders: int,
    changes: Mapping[str, object],
) -> None:
    updates = {device: update_of(device, DIM) for device in DEVICES}
    async with running(tmp_path / "c", threshold=threshold, holders=num_holders) as holders:
        task = task_settings(holders, **changes)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            params = await open_shared(service, *DEVICES)
            await submit(service, holders, params, updates)
            record = await service.finished(1)
            assert record["decision"] == "published", record
            step = await step_of(service, 2)
            (line,) = await service.audited(1)
    np.testing.assert_allclose(step, mean_of(updates), rtol=0, atol=1e-7)
    details = json.loads(line)["details"]
    assert (details["mode"], details["selection_mode"]) == ("shared", "checked")
    assert (details["holders"], details["threshold"]) == (num_holders, threshold)
    assert details["holders_lied"] == []
    assert details["in_sums"] == len(DEVICES)


@pytest.mark.slow
@pytest.mark.parametrize("share_format", ["shamir-seeded", "cnf-seeded"])
async def test_large_updates_are_streamed_in_and_on(
    tmp_path: Path, redis_url: str, share_format: str
) -> None:
    dim = 140_001  # more than a chunk, and no multiple of one
    updates = {device: update_of(device, dim) for device in DEVICES}
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(holders, sharing={"format": share_format, "sketch-dim": 1024})
        async with serving(tmp_path, redis_url, task=task, dim=dim) as service:
            params = await open_shared(service, *DEVICES)
            for device, vector in updates.items():
                bundle = holders.sealed(params, device, vector)
                chunks = [bundle[at : at + 700_001] for at in range(0, len(bundle), 700_001)]
                await service.stream(header(device, bundle), *chunks)
            record = await service.finished(1)
            assert record["decision"] == "published", record
            step = await step_of(service, 2)
            relayed = [
                await service.metric(
                    "federated_shares_relayed_total", task=TASK, holder=holder, outcome="stored"
                )
                for holder in ("1", "2", "3")
            ]
    np.testing.assert_allclose(step, mean_of(updates), rtol=0, atol=1e-7)
    assert relayed == [len(DEVICES)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
async def test_a_robust_rule_works_on_the_means_of_random_groups(
    tmp_path: Path, redis_url: str, rule: str
) -> None:
    """Nobody but the committee's coin chose the groups: the result is that of one grouping."""
    devices = tuple(f"d{index}" for index in range(6))
    updates = {device: update_of(device, DIM) for device in devices}
    means = {frozenset(pair): mean_of({d: updates[d] for d in pair}) for pair in pairs_of(devices)}
    possible = [
        np.median([means[pair] for pair in groups], axis=0)  # of three, also their trimmed mean
        for groups in itertools.combinations(means, 3)
        if len(frozenset[str]().union(*groups)) == len(devices)
    ]
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(
            holders,
            **{"reporting-goal": len(devices)},
            aggregation={"rule": rule, "num-malicious-nodes": 1},
            sharing={"group-size": 2},
        )
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            params = await open_shared(service, *devices)
            await submit(service, holders, params, updates)
            record = await service.finished(1)
            assert record["decision"] == "published", record
            step = await step_of(service, 2)
    assert len(possible) == 15
    distances = [float(np.abs(step - each).max()) for each in possible]
    assert min(distances) < 1e-7
    assert np.abs(step - mean_of(updates)).max() > 1e-3


def pairs_of(devices: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.combinations(devices, 2))


@pytest.mark.slow
async def test_coordinator_and_holders_know_each_other_by_their_certificates(
    tmp_path: Path, redis_url: str
) -> None:
    now_s = time.time()
    authority = create_authority(name="holders", now_s=now_s, valid_for_s=1e5)
    holder = issue_server_certificate(authority, names=["127.0.0.1"], now_s=now_s, valid_for_s=1e4)
    key = ec.generate_private_key(ec.SECP256R1())
    caller = issue_device_certificate(
        authority, device_id="coordinator", key=key.public_key(), now_s=now_s, valid_for_s=1e4
    )
    files = {
        "ca": authority.certificate_pem,
        "holder": holder.certificate_pem,
        "holder-key": holder.private_key_pem,
        "coordinator": caller.chain_pem,
        "coordinator-key": private_key_pem(key),
    }
    paths = {name: str(tmp_path / f"{name}.pem") for name in files}
    for name, content in files.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    tls = {
        "certificate": paths["holder"],
        "private-key": paths["holder-key"],
        "client-ca": paths["ca"],
        "coordinators": ["coordinator"],
    }
    updates = {device: update_of(device, DIM) for device in DEVICES}
    async with running(tmp_path / "c", threshold=2, holders=3, tls=tls) as holders:
        sharing = {
            "holders-ca": paths["ca"],
            "holders-certificate": paths["coordinator"],
            "holders-private-key": paths["coordinator-key"],
        }
        task = task_settings(holders, sharing=sharing)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            params = await open_shared(service, *DEVICES)
            await submit(service, holders, params, updates)
            record = await service.finished(1)
            assert record["decision"] == "published", record
            step = await step_of(service, 2)
        address = holders.committee.identity(1).address
        for channel in (
            grpc.aio.insecure_channel(address),
            grpc.aio.secure_channel(
                address, grpc.ssl_channel_credentials(authority.certificate_pem)
            ),
        ):
            async with channel:
                call = ShareHolderStub(channel).Describe(pb.DescribeRequest(), timeout=10)
                assert await status_of(call) is grpc.StatusCode.UNAVAILABLE
    np.testing.assert_allclose(step, mean_of(updates), rtol=0, atol=1e-7)


@pytest.mark.slow
async def test_what_is_no_bundle_of_this_round_is_refused(tmp_path: Path, redis_url: str) -> None:
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(holders)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            params = await open_shared(service, *DEVICES)
            vector = update_of("d1", DIM)
            good = holders.sealed(params, "d1", vector)
            other = holders.sealed(replace(params, round=2), "d1", vector)
            foreign = holders.sealed(params, "d2", vector)
            cases = {
                "MALFORMED_UPDATE": (service.update(), foreign, good[:-1], good + b"\0"),
                "WRONG_ROUND_PARAMETERS": (other,),
            }
            before = service.stored_updates()
            for reason, payloads in cases.items():
                for payload in payloads:
                    for send in (service.inline, service.stream):
                        refusal = await refusal_of(send(header("d1", payload), payload))
                        assert refusal.reason == reason, refusal
            assert service.stored_updates()["accepted"] == before["accepted"]
            receipt = await service.inline(header("d1", good), good)
            again = await service.inline(header("d1", good), good)
            assert receipt == again


@pytest.mark.slow
async def test_a_retry_after_the_round_gets_its_receipt(tmp_path: Path, redis_url: str) -> None:
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(holders, sharing={"checks": "sum"})
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            params = await open_shared(service, *DEVICES)
            bundles = {
                device: holders.sealed(params, device, update_of(device, DIM)) for device in DEVICES
            }
            receipts = {
                device: await service.inline(header(device, bundle), bundle)
                for device, bundle in bundles.items()
            }
            await service.finished(1)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as restarted:
            for device, bundle in bundles.items():
                receipt = await restarted.inline(header(device, bundle), bundle)
                assert receipt == receipts[device]


@pytest.mark.slow
async def test_neither_store_ever_holds_a_value_of_an_update(
    tmp_path: Path, redis_url: str
) -> None:
    """Looked for: float32 as trained, and the encoded integers that are shared."""
    vector = update_of("d1", DIM)
    words = np.rint(vector.astype(np.float64) * 2.0**20).astype(np.int64)
    secrets = [vector[at : at + 3].tobytes() for at in range(DIM - 2)] + [
        (words[at : at + 2] % (2**61 - 1)).astype("<u8").tobytes() for at in range(DIM - 1)
    ]
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(holders)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            params = await open_shared(service, *DEVICES)
            bundle = holders.sealed(params, "d1", vector)
            await service.inline(header("d1", bundle), bundle)
            stored = b"".join(
                value
                for found in service.stored_updates().values()
                for value in (found.values() if isinstance(found, dict) else [found])
                if isinstance(value, bytes)
            )
            at_holders = b"".join(holders.stored_bytes().values())
    assert bundle in stored  # the search would find what is there
    for secret in secrets:
        assert secret not in stored
        assert secret not in at_holders


async def test_a_committee_that_is_no_committee_is_refused_at_the_start(
    tmp_path: Path, redis_url: str
) -> None:
    (tmp_path / "committee.json").write_text("{}")
    task = {
        "mode": "shared",
        "plan": {"clipping-norm": 1.0},
        "sharing": {"committee": str(tmp_path / "committee.json")},
    }
    with pytest.raises(ConfigError, match=r"committee\.json: a committee must be an object"):
        async with serving(tmp_path, redis_url, task=task, dim=DIM):
            pass


async def test_settings_that_fit_no_sound_round_are_refused_at_the_start(
    tmp_path: Path, redis_url: str
) -> None:
    async with running(tmp_path / "c", threshold=2, holders=3) as holders:
        task = task_settings(holders, plan={"clipping-norm": 500.0})
        with pytest.raises(ConfigError, match=r"^task\[1\]\.plan\.clipping-norm: "):
            async with serving(tmp_path, redis_url, task=task, dim=DIM):
                pass


def attacker(holders: Holders, device_id: str, attack: str) -> AttackingSealer:
    """What makes a device's malicious bundles, without a device around it."""
    sealer = AttackingSealer.__new__(AttackingSealer)
    sealer.committee = holders.committee
    sealer.signer = signer(device_id)
    sealer._attack = attack
    sealer._scale = 1.0
    sealer._rng = np.random.default_rng(7)
    return sealer


@pytest.mark.slow
async def test_every_attack_on_the_shares_is_found_named_and_left_out(
    tmp_path: Path, redis_url: str
) -> None:
    dim = 300
    honest = {f"h{index}": update_of(f"h{index}", dim) for index in range(8)}
    attacks = {
        "over-norm": "norm",
        "wrap-half": "wrap",
        "wrap-spread": "wrap",
        "inconsistent-shares": "inconsistent",
    }
    async with running(tmp_path / "c", threshold=3, holders=5) as holders:
        task = task_settings(holders, **{"reporting-goal": len(honest) + len(attacks)})
        async with serving(tmp_path, redis_url, task=task, dim=dim) as service:
            params = await open_shared(service, *honest, *attacks)
            await submit(service, holders, params, honest)
            for attack in attacks:
                update = attacker(holders, attack, attack).seal(
                    params, update_of(attack, dim), model_version=1
                )
                bundle = update[0 : len(update)]
                await service.stream(header(attack, bundle), bundle)
            record = await service.finished(1)
            assert record["decision"] == "published", record
            assert record["excluded"] == len(attacks)
            step = await step_of(service, 2)
            (line,) = await service.audited(1)
            for reason, count in (("norm", 1), ("wrap", 2), ("inconsistent", 1)):
                name = "federated_shared_members_excluded_total"
                assert await service.metric(name, task=TASK, reason=reason) == count
    np.testing.assert_allclose(step, mean_of(honest), rtol=0, atol=1e-7)
    details = json.loads(line)["details"]
    assert details["excluded_by_reason"] == ["inconsistent: 1", "norm: 1", "wrap: 2"]
    assert details["holders_lied"] == []
    blame = f"holders and coordinator: {12 * params.wrap_tests} blame scalars"
    assert blame in details["opened_at_most"]

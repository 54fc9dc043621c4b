"""Private rounds against a real coordinator: what is published is the noisy mean, and no more."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from client import ClientConfig, MobileClient, RetryPolicy
from privacy.banded_noise import BandedNoise
from privacy.charge import Charge, Sampling
from privacy.clipping import clip_scale, l2_norm
from privacy.discrete_gaussian import discrete_gaussian
from privacy.fixed_point import fine_fraction_bits, grid_norm
from privacy.renyi_accountant import epsilon_of, max_releases
from protos.fedagg.v1 import federation_pb2 as pb
from server.driver.aggregation import Aggregation
from server.round.plain_source import StoredUpdates
from server.round.ports import Contribution
from server.round.private_source import PrivateRound, PrivateSettings, round_noise
from server.round.round_privacy import RoundPrivacy
from server.round.state import CandidateModel, Round
from tests.integration.service import (
    KEYS,
    TASK,
    Service,
    eventually,
    header,
    serving,
)
from tests.integration.trainers import Adding
from updates import plan_message
from updates.codec import encode_dense
from updates.compressor import compress
from updates.coordinate_maps import linear_map
from updates.update_codec import codec_for
from updates.vectors import decode_model

DIM: Final = 40
CLIP: Final = 2.0
Z: Final = 1.5
GOAL: Final = 3

# Banded noise asks for a store that survives power failures; the tests' one need not.
FORGETFUL: Final = {"store": {"durability": "machine", "allow-weaker-durability": True}}

Vectors = list[NDArray[np.float32]]


def private(**settings: object) -> dict[str, object]:
    return {"noise": "central", "epsilon": 50.0, "noise-multiplier": Z} | settings


def task_of(privacy: dict[str, object], **settings: object) -> dict[str, object]:
    return {
        "reporting-goal": GOAL,
        "num-rounds": 4,
        "plan": {"clipping-norm": CLIP},
        "privacy": privacy,
    } | settings


def updates(seed: int, scale: float = 1.0) -> Vectors:
    """Longer than the clipping norm, nearly all of them."""
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=DIM)).astype(np.float32) for _ in range(GOAL)]


async def contribute(
    service: Service, number: int, vectors: Vectors
) -> tuple[pb.Assignment, list[Contribution]]:
    """Take one round through; what was contributed."""
    devices = [f"d{i}" for i in range(GOAL)]
    assignments = await service.open_round(*devices, check_in_id=f"c{number}")
    contributions = []
    for device, vector, assignment in zip(devices, vectors, assignments, strict=True):
        payload = encoded(assignment, vector)
        head = header(
            device,
            payload,
            round_number=assignment.round,
            model_version=assignment.model_version,
            submission_id=f"s{number}",
        )
        await service.inline(head, payload)
        contributions.append(
            Contribution(
                device_id=device,
                submission_id=f"s{number}",
                num_samples=10,
                payload_bytes=len(payload),
                digest=xxhash.xxh3_128_digest(payload),
                accepted_at_ms=0,
                inline=True,
                loss_before=None,
                loss_after=None,
            )
        )
    return assignments[0], contributions


def encoded(assignment: pb.Assignment, vector: NDArray[np.float32]) -> bytes:
    if not assignment.plan.HasField("compression"):
        return encode_dense(vector)
    plan = plan_message.from_message(assignment.plan.compression, dim=DIM)
    return codec_for(plan, (DIM - 1, 1)).encode(compress(plan, vector), seed=b"")


async def weights_of(service: Service, version: int) -> NDArray[np.float32]:
    tensors, _ = decode_model(await service.fetch(version))
    return np.concatenate([tensor.ravel() for tensor in tensors.values()])


def noise_key(service: Service) -> bytes:
    key = service.store.get(KEYS + "noise_key")
    assert isinstance(key, bytes)
    return key


def grid_sum(vectors: Vectors, *, fraction_bits: int) -> NDArray[np.int64]:
    """What is summed, by numpy: clipped, then rounded to the grid."""
    rows = [v.astype(np.float64) * clip_scale(l2_norm(v), CLIP) for v in vectors]
    total = np.zeros(len(rows[0]), np.int64)
    for row in rows:
        total += np.rint(np.ldexp(row, fraction_bits)).astype(np.int64)
    return total


def round_of(
    service: Service, number: int, *, mechanism: str = "gaussian", bands: int = 1
) -> PrivateRound:
    charge = json.loads(Charge(noise_multiplier=Z).to_text())
    charge |= {"mechanism": mechanism, "bands": bands}
    text = json.dumps(charge, separators=(",", ":"), sort_keys=True)
    privacy = RoundPrivacy(
        charge=text, clipping_norm=CLIP, sensitivity=1.0, expected_updates=float(GOAL)
    )
    return PrivateRound(
        stored=StoredUpdates(contributions=(), payloads=()),
        number=number,
        privacy=privacy,
        settings=PrivateSettings(),
        noise_key=noise_key(service),
    )


@pytest.mark.parametrize("method", ["dense", "projection"])
async def test_the_published_model_is_the_base_and_the_noisy_mean(
    method: str, tmp_path: Path, redis_url: str
) -> None:
    compression = {"method": method, "ratio": 0.25, "value-type": "float32"}
    task = task_of(private(), compression=compression)
    vectors = updates(1)
    async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
        assignment, contributions = await contribute(service, 1, vectors)
        record = await service.finished(1)
        assert record["decision"] == "published"
        summed, plan = vectors, None
        if method == "projection":
            plan = plan_message.from_message(assignment.plan.compression, dim=DIM)
            summed = [linear_map(plan).compress(vector) for vector in vectors]
        dim = len(summed[0])
        bits = fine_fraction_bits(CLIP, dim=dim)
        round_ = round_of(service, 1)
        config = round_.settings.config(round_.privacy, dim=dim)
        stored = StoredUpdates(contributions=contributions, payloads=(), compression=plan)
        key = round_noise(config, replace(round_, stored=stored), dim=dim).key
        stddev = Z * grid_norm(CLIP, fraction_bits=bits, dim=dim)
        noised = grid_sum(summed, fraction_bits=bits)
        noised += discrete_gaussian(key, stddev=stddev, size=dim)
        step = np.ldexp(noised.astype(np.float64), -bits) / GOAL
        if plan is not None:
            step = linear_map(plan).expand(step)
        np.testing.assert_array_equal(await weights_of(service, 2), step.astype(np.float32))


async def test_what_is_told_of_a_private_round_is_not_what_noise_must_hide(
    tmp_path: Path, redis_url: str
) -> None:
    async with serving(tmp_path, redis_url, task=task_of(private()), dim=DIM) as service:
        await contribute(service, 1, updates(1))
        await service.finished(1)
        model, *_ = await service.get(f"/api/v1/tasks/{TASK}/models")
        assert set(model["metrics"]) == {
            "clipping_norm",
            "contributions",
            "excluded",
            "noise_stddev",
            "update_norm",
        }
        (line,) = await service.audited(1)
        secret = noise_key(service)
        assert secret.hex() not in line
        assert secret.hex() not in json.dumps(await service.get(f"/api/v1/tasks/{TASK}"))


async def test_banded_noise_cancels_from_round_to_round(tmp_path: Path, redis_url: str) -> None:
    """Three rounds, each with devices of its own; the second server finds what the first kept."""
    privacy = private(mechanism="banded", bands=2)
    limits: dict[str, object] = {"max-participations": 4, "min-rounds-between": 1}
    task = task_of(privacy, **limits)
    published, contributed = [], []
    for number in (1, 2, 3):
        # A new server each time: nothing depends on what one process remembers.
        async with serving(tmp_path, redis_url, task=task, sections=FORGETFUL, dim=DIM) as service:
            vectors = updates(number)
            devices = [f"d{number}-{i}" for i in range(GOAL)]
            assignments = await service.open_round(*devices, check_in_id=f"c{number}")
            for device, vector, assignment in zip(devices, vectors, assignments, strict=True):
                payload = encode_dense(vector)
                head = header(device, payload, round_number=number, model_version=number)
                await service.inline(head, payload)
                assert assignment.round == number
            await service.finished(number)
            published.append(await weights_of(service, number + 1))
            contributed.append(vectors)
            round_ = round_of(service, number, mechanism="banded", bands=2)
    bits = fine_fraction_bits(CLIP, dim=DIM)
    config = round_.settings.config(round_.privacy, dim=DIM)
    key = round_noise(config, round_, dim=DIM).noise_key
    stddev = Z * grid_norm(CLIP, fraction_bits=bits, dim=DIM)
    expected = np.zeros(DIM)
    for number, vectors in enumerate(contributed, start=1):
        noise = BandedNoise(2).step(number, key, stddev=stddev, dim=DIM)
        total = grid_sum(vectors, fraction_bits=bits) + noise
        step = np.ldexp(total.astype(np.float64), -bits) / GOAL
        expected += step
        np.testing.assert_array_equal(published[number - 1], expected.astype(np.float32))
    kept = sorted(path.name for path in (tmp_path / "data" / "blobs" / "noise").rglob("*"))
    assert "00000003" in kept


async def test_the_clipping_norm_moves_and_devices_are_told(tmp_path: Path, redis_url: str) -> None:
    privacy = private(**{"adaptive-clipping": True, "count-noise": 5.0})
    async with serving(tmp_path, redis_url, task=task_of(privacy), dim=DIM) as service:
        norms = []
        for number in (1, 2, 3):
            assignment, _ = await contribute(service, number, updates(number, scale=1e-3))
            assert assignment.plan.privacy.reports_clipping
            norms.append(assignment.plan.clipping_norm)
            record = await service.finished(number)
            assert record["decision"] == "published"
        assert norms[0] == CLIP
        assert len(set(norms)) == 3
        model = (await service.get(f"/api/v1/tasks/{TASK}/models"))[0]
        assert 0 <= model["metrics"]["within_fraction"] <= 1


async def test_a_leader_that_takes_over_computes_the_same_candidate(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[CandidateModel] = []
    aggregate = Aggregation.aggregate

    async def die_after(self: Aggregation, round_: Round) -> CandidateModel | str | None:
        candidate = await aggregate(self, round_)
        assert isinstance(candidate, CandidateModel)
        computed.append(candidate)
        await asyncio.Event().wait()
        return None

    task = task_of(private())
    with monkeypatch.context() as patched:
        patched.setattr(Aggregation, "aggregate", die_after)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            await contribute(service, 1, updates(1))

            async def found() -> bool | None:
                return bool(computed) or None

            await eventually(found)
    async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
        assert (await service.finished(1))["decision"] == "published"
        model, *_ = await service.get(f"/api/v1/tasks/{TASK}/models")
        assert [candidate.sha256 for candidate in computed] == [model["sha256"]]


async def test_a_sampled_task_ends_when_its_budget_is_spent(tmp_path: Path, redis_url: str) -> None:
    """Three devices toss their coins; a round in which none takes part is charged as any other."""
    population, q, rounds = 3, 0.5, 3
    charge = Charge(noise_multiplier=4.0, sampling=Sampling.POISSON, sampling_probability=q)
    epsilon = epsilon_of({charge: rounds}, 1e-5) * 1.001
    assert max_releases(charge, epsilon=epsilon, delta=1e-5) == rounds
    privacy = private(
        epsilon=epsilon,
        sampling="poisson",
        population=population,
        **{"noise-multiplier": 4.0, "sampling-probability": q},
    )
    task = task_of(
        privacy,
        **{
            "num-rounds": 20,
            "collection-timeout-s": 20,
            "selection-timeout-s": 0.5,
            "min-contributions": 1,
        },
    )

    async def run(device: int, service: Service) -> None:
        config = ClientConfig(
            servers=(service.address,),
            task=TASK,
            device_id=f"d{device}",
            insecure=True,
            max_wait_s=1.0,
            retry=RetryPolicy(initial_s=0.01, max_s=0.05),
        )
        async with MobileClient(config, Adding(0.1)) as client:
            await client.run()

    async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
        await asyncio.gather(*(run(device, service) for device in range(population)))
        status = await service.get(f"/api/v1/tasks/{TASK}")
        assert status["budget_exhausted"]
        assert status["published_rounds"] == rounds
        told = await service.get(f"/api/v1/tasks/{TASK}/privacy")
        assert told["epsilon_spent"] == pytest.approx(epsilon_of({charge: rounds}, 1e-5))
        assert (told["rounds_committed"], told["rounds_remaining"]) == (rounds, 0)
        later = (await service.check_in("d9", max_wait_ms=0)).retry_later
        assert later.reason == pb.RetryLater.BUDGET_EXHAUSTED


async def test_devices_that_add_noise_themselves_send_noise(tmp_path: Path, redis_url: str) -> None:
    """The coordinator adds none: the published mean is that of what came in."""
    privacy = {"noise": "device", "epsilon": 100.0, "noise-multiplier": 0.5}
    limits: dict[str, object] = {"max-participations": 1, "num-rounds": 1}
    task = task_of(privacy, **limits)
    async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
        answers = await asyncio.gather(*(service.check_in(f"d{i}") for i in range(GOAL)))
        assert {a.assignment.plan.privacy.device_noise_multiplier for a in answers} == {0.5}

        async def run(device: int) -> None:
            config = ClientConfig(
                servers=(service.address,),
                task=TASK,
                device_id=f"d{device}",
                insecure=True,
                retry=RetryPolicy(initial_s=0.01, max_s=0.05),
            )
            async with MobileClient(config, Adding(0.0)) as client:
                await client.run()

        await asyncio.gather(*(run(device) for device in range(GOAL)))
        assert (await service.finished(1))["decision"] == "published"
        weights = await weights_of(service, 2)
        model, *_ = await service.get(f"/api/v1/tasks/{TASK}/models")
        assert "loss_before" not in model["metrics"]
    # Of three updates with a standard deviation of 0.5 * 2 each: 0.58, seen in 40 coordinates.
    assert 0.3 < float(weights.std()) < 1.0

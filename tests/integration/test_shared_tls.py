"""A shared round whose holders ask callers for certificates: coordinator and holders, all real."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from security.certificates.credentials import (
    create_authority,
    issue_device_certificate,
    issue_server_certificate,
    private_key_pem,
)
from tests.integration.service import serving
from tests.integration.shared_committee import mean_of, running, update_of
from tests.integration.test_shared_round import (
    DEVICES,
    DIM,
    open_shared,
    step_of,
    submit,
    task_settings,
)

COORDINATOR: Final = "coordinator"
LIFE_S: Final = 3600.0


def write_certificates(folder: Path) -> Mapping[str, object]:
    """Certificates of the holders and of their coordinator; the holders' settings."""
    authority = create_authority(name="tls", now_s=time.time(), valid_for_s=LIFE_S)
    server = issue_server_certificate(
        authority, names=["127.0.0.1"], now_s=time.time(), valid_for_s=LIFE_S
    )
    key = ec.generate_private_key(ec.SECP256R1())
    caller = issue_device_certificate(
        authority,
        device_id=COORDINATOR,
        key=key.public_key(),
        now_s=time.time(),
        valid_for_s=LIFE_S,
    )
    files = {
        "tls-ca.pem": authority.certificate_pem,
        "holder.pem": server.certificate_pem,
        "holder-key.pem": server.private_key_pem,
        "coordinator.pem": caller.chain_pem,
        "coordinator-key.pem": private_key_pem(key),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {
        "certificate": str(folder / "holder.pem"),
        "private-key": str(folder / "holder-key.pem"),
        "client-ca": str(folder / "tls-ca.pem"),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "decision"), [((COORDINATOR, "another"), "published"), (("another",), "abandoned")]
)
async def test_holders_work_for_the_coordinators_that_they_were_told_of_alone(
    tmp_path: Path, redis_url: str, named: tuple[str, ...], decision: str
) -> None:
    tls = {**write_certificates(tmp_path), "coordinators": list(named)}
    updates = {device: update_of(device, DIM) for device in DEVICES}
    async with running(tmp_path / "c", threshold=2, holders=3, tls=tls) as holders:
        sharing = {
            "holders-ca": str(tmp_path / "tls-ca.pem"),
            "holders-certificate": str(tmp_path / "coordinator.pem"),
            "holders-private-key": str(tmp_path / "coordinator-key.pem"),
            "holder-timeout-s": 2,
            "max-wait-s": 3,
        }
        task = task_settings(holders, sharing=sharing)
        async with serving(tmp_path, redis_url, task=task, dim=DIM) as service:
            params = await open_shared(service, *DEVICES)
            await submit(service, holders, params, updates)
            record = await service.finished(1)
            assert record["decision"] == decision, record
            if decision == "published":
                step = await step_of(service, 2)
                np.testing.assert_allclose(step, mean_of(updates), rtol=0, atol=1e-7)

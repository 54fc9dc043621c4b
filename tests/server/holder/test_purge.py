"""What a purge leaves of a round: nothing of single updates, whatever runs beside it."""

import contextlib
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.fedagg.v1 import share_holder_pb2 as pb
from security.shared_round.terms.parameter_facts import Checks
from security.shared_round.terms.parameters import RoundParameters
from server.errors import RoundPurged
from server.holder.app import open_holder
from server.holder.rounds import HolderRounds
from tests.server.holder.conversation import Conversation
from tests.server.holder.rig import Bundle, Rig, reason_of, round_parameters

NAMES = ("anna", "berta", "carla", "dora")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, 2, 3) as running:
        yield running


async def committed(rig: Rig, **changes: Any) -> tuple[RoundParameters, Conversation]:
    params = round_parameters(rig.committee, **changes)
    await rig.open(params)
    bundles = [Bundle(params, rig.committee, name) for name in NAMES]
    await rig.store(bundles)
    talk = Conversation(rig, params, bundles)
    await talk.run_to_commitments()
    return params, talk


async def test_openings_go_and_what_binds_stays(rig: Rig, tmp_path: Path) -> None:
    params, talk = await committed(rig, checks=Checks.DISTANCES)
    released, _ = await rig.release(talk.release(talk.selection()), 1)
    before = stored(tmp_path / "data-1")
    gone = (talk.coins[0], talk.openings[0])
    kept = (talk.votes[0], talk.commitments[0], released)
    assert all(each.statement in before for each in (*gone, *kept))
    stub = rig.stubs[1]
    await stub.Purge(pb.PurgeRequest(params_sha256=params.sha256))
    after = stored(tmp_path / "data-1")
    assert not any(each.statement in after for each in gone)
    assert all(each.statement in after for each in kept)
    with contextlib.closing(sqlite3.connect(tmp_path / "data-1/holder.sqlite3")) as sql:
        rows = dict(sql.execute("SELECT kind, statement_sha256 FROM opened").fetchall())
    assert rows == {
        kind: hashlib.sha256(each.SerializeToString(deterministic=True)).digest()
        for kind, each in zip(("coin", "openings"), gone, strict=True)
    }
    for call in (stub.RevealCoin(talk.reveal), stub.OpenChecks(talk.check)):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        assert reason_of(error.value) == "ROUND_PURGED"
    # Asked again, a purge has nothing left to do.
    await stub.Purge(pb.PurgeRequest(params_sha256=params.sha256))


@pytest.mark.parametrize("is_released", [False, True])
async def test_a_release_under_way_leaves_no_sum_behind_a_purge(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_released: bool
) -> None:
    params, talk = await committed(rig)
    request = talk.release(talk.selection())
    if is_released:
        await rig.release(request, 1)
        (tmp_path / "data-1" / "sums" / params.sha256.hex()).unlink()
    await rig.stop(1)
    holder = open_holder(rig.config(1), now_s=lambda: rig.now_s)
    write, storage = HolderRounds._write_sums, holder.storage

    def purge_and_write(rounds: HolderRounds, *arguments: Any) -> bytes:
        # As if the purge had come after the last look at a share: it finds no file to delete.
        path = storage.sums.path(params.sha256.hex())
        digest = write(rounds, *arguments)
        data = path.read_bytes()
        rounds.purge(params.sha256)
        assert not path.exists()
        path.write_bytes(data)
        return digest

    monkeypatch.setattr(HolderRounds, "_write_sums", purge_and_write)
    try:
        with pytest.raises(RoundPurged):
            holder.rounds.release(request)
    finally:
        holder.storage.close()
    assert not list((tmp_path / "data-1" / "sums").iterdir())


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("holder.sqlite3*"))

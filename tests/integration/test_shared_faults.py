"""Shared rounds with dishonest parties: whoever lies is found out, the others finish the round."""

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from protos.fedagg.v1 import shared_round_pb2 as round_pb
from protos.fedagg.v1.share_holder_pb2 import InlineShare
from protos.fedagg.v1.shared_round_pb2 import SharedHeader
from security.shared_round.keys.signing import sign_statement
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import parse_prefix
from server.round.ports import AdmissionVerdict
from tests.chaos.shared_adversary import other_word
from tests.integration.shared_bench import DEVICES, DIM, Bench, Process, bench_of
from tests.integration.shared_committee import update_of

LIAR: Final = 2


def let_lie(bench: Bench, process: Process, kind: str) -> None:
    """One holder states something else, and signs it."""
    liar: Any = process.pool._clients[LIAR]
    method = "reveal_coin" if kind == "coin" else "open_checks"
    truth: Callable[[Any], Awaitable[round_pb.SignedStatement]] = getattr(liar, method)

    async def lie(request: Any) -> round_pb.SignedStatement:
        signed = await truth(request)
        statement = round_pb.HolderStatement.FromString(signed.statement)
        if kind == "coin":
            statement.coin.pieces[0] = Random(1).randbytes(32)
        else:
            words = other_word(getattr(statement.openings, kind), Random(1))
            setattr(statement.openings, kind, words)
        return sign_statement(bench.holders.secrets[LIAR - 1], statement)

    setattr(liar, method, lie)


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "num_holders"), [(2, 5), (3, 7)])
@pytest.mark.parametrize("kind", ["coin", "norms", "wraps"])
async def test_a_holder_that_lies_is_corrected_and_named(
    tmp_path: Path, redis_url: str, threshold: int, num_holders: int, kind: str
) -> None:
    async with bench_of(tmp_path, redis_url, threshold=threshold, num_holders=num_holders) as bench:
        process = bench.process("a")
        await bench.collected(process)
        let_lie(bench, process, kind)
        await process.tick_until_idle()
        await bench.published()
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.liars == (LIAR,)
        assert record.shared.excluded == ()


@pytest.mark.slow
async def test_groups_are_opened_where_the_checks_cannot_be(tmp_path: Path, redis_url: str) -> None:
    """(3, 5): four holders are a quorum and cannot open norms; two pairs are summed."""
    settings: dict[str, Any] = {"degraded": "grouped", "group-size": 2}
    async with bench_of(tmp_path, redis_url, threshold=3, num_holders=5, **settings) as bench:
        process = bench.process("a")
        await bench.collected(process)
        await process.driver.tick()
        await bench.holders.stop(2)
        for _ in range(3):
            await bench.drive(process)
        await bench.published()
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.mode == "degraded_grouped"
        assert sorted(map(len, record.shared.sums)) == [2, 2]


@dataclass(frozen=True)
class EvilRelay:
    """A coordinator that hands the holders something else as device d2's share."""

    bench: Bench
    params: RoundParameters

    def cross_round(self, _: int, share: InlineShare) -> None:
        other = replace(self.params, round=2)
        bundle = self.bench.holders.sealed(other, "d2", update_of("d2", DIM))
        prefix, _size = parse_prefix(bundle)
        share.start.header.CopyFrom(prefix.header)

    def to_the_wrong_holder(self, holder: int, share: InlineShare) -> None:
        bundle = self.bench.holders.sealed(self.params, "d2", update_of("d2", DIM))
        prefix, _size = parse_prefix(bundle)
        share.start.header.CopyFrom(prefix.header)
        share.start.frame = prefix.frames[holder % 3]

    def of_another_update(self, holder: int, share: InlineShare) -> None:
        bundle = self.bench.holders.sealed(self.params, "d2", update_of("d2", DIM))
        share.start.frame = parse_prefix(bundle)[0].frames[holder - 1]

    def not_signed(self, _: int, share: InlineShare) -> None:
        share.start.header.signature = bytes(len(share.start.header.signature))

    def truncated(self, _: int, share: InlineShare) -> None:
        share.body = share.body[:-1]

    def shorter(self, _: int, share: InlineShare) -> None:
        share.body = share.body[:-1]
        share.start.body_bytes = len(share.body)

    def changed(self, _: int, share: InlineShare) -> None:
        share.body = bytes(len(share.body))


DAMAGES: Final[Mapping[str, tuple[Callable[[EvilRelay, int, InlineShare], None], str]]] = {
    "cross_round": (EvilRelay.cross_round, "WRONG_ROUND_PARAMETERS"),
    "to_the_wrong_holder": (EvilRelay.to_the_wrong_holder, "WRONG_HOLDER"),
    "of_another_update": (EvilRelay.of_another_update, "COMMITMENT_MISMATCH"),
    "not_signed": (EvilRelay.not_signed, "BAD_HEADER_SIGNATURE"),
    "truncated": (EvilRelay.truncated, "SEAL_BROKEN"),
    "shorter": (EvilRelay.shorter, "MALFORMED_REQUEST"),
    "changed": (EvilRelay.changed, "SEAL_BROKEN"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
async def test_what_is_not_what_its_device_sealed_is_left_out_with_its_reason(
    tmp_path: Path, redis_url: str, name: str
) -> None:
    change, reason = DAMAGES[name]
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3) as bench:
        process = bench.process("a")
        params = await bench.select(process)
        evil = EvilRelay(bench, params)
        for holder, client in process.pool._clients.items():
            make_evil(client, partial(change, evil, holder))
        for device in DEVICES:
            bundle = bench.holders.sealed(params, device, update_of(device, DIM))
            assert await bench.admit(device, bundle) is AdmissionVerdict.ACCEPTED
        await process.tick_until_idle()
        await bench.published(("d1", "d3", "d4"))
        (record,) = process.observer.finished
        assert record.shared is not None
        assert record.shared.excluded == (("d2", reason),)


def make_evil(client: Any, change: Callable[[InlineShare], None]) -> None:
    store = client.store_shares

    async def store_shares(shares: Sequence[InlineShare]) -> Any:
        for share in shares:
            if SharedHeader.FromString(share.start.header.header).device_id == "d2":
                change(share)
        return await store(shares)

    client.store_shares = store_shares


@pytest.mark.slow
@pytest.mark.parametrize("inline_max_bytes", [0, 1 << 16])
async def test_after_the_round_no_holder_has_any_share_on_its_disk(
    tmp_path: Path, redis_url: str, inline_max_bytes: int
) -> None:
    limits = {"inline-max-bytes": inline_max_bytes}
    async with bench_of(tmp_path, redis_url, threshold=2, num_holders=3, limits=limits) as bench:
        process = bench.process("a")
        params = await bench.select(process)
        bundles = [bench.holders.sealed(params, d, update_of(d, DIM)) for d in DEVICES]
        for device, bundle in zip(DEVICES, bundles, strict=True):
            await bench.admit(device, bundle)
        secrets = [frame for bundle in bundles for frame in parse_prefix(bundle)[0].frames]
        body = params.body_bytes(0)
        secrets += [bundle[-body:] for bundle in bundles]
        await process.driver.tick()
        await process.phases._session(await bench.round()).relay_all()
        before = b"".join(bench.holders.stored_bytes().values())
        assert all(secret in before for secret in secrets)  # the search finds what is there
        await process.tick_until_idle()
        await bench.published()
        stored = bench.holders.stored_bytes()
        after = b"".join(stored.values())
        assert not any(secret in after for secret in secrets)
        assert not [path for path in stored if "/bodies/" in path or "/sums/" in path]
        for holder in (1, 2, 3):
            assert kept(tmp_path / "c" / f"holder-{holder}") == (len(DEVICES), 0)


def kept(folder: Path) -> tuple[int, int]:
    """Receipts that a holder keeps, and shares."""
    with contextlib.closing(sqlite3.connect(folder / "holder.sqlite3")) as sql:
        question = "SELECT COUNT(*), COUNT(frame) + COUNT(body) + COUNT(body_file) FROM shares"
        found: tuple[int, int] = sql.execute(question).fetchone()
    return found

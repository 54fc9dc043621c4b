"""The round store on Redis (6.2 or newer) or Valkey.

Every method is one command or one script: atomic, and safe to send again when its answer was lost.
Needs nothing newer than EVAL; no transaction spans two round trips. `server/storage/keys.py` lists
the keys and their writers.
"""

import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from privacy.budget import LedgerState
from server.errors import UnknownModelVersion, UnknownTask
from server.round.ports import (
    Admission,
    AdmissionVerdict,
    BlobNotFound,
    CheckInAnswer,
    CheckInVerdict,
    CommitResult,
    Contribution,
    FinishedRound,
    Lease,
    ModelVersion,
    Snapshot,
    Submission,
)
from server.round.selection import Candidate
from server.round.state import Phase, Round
from server.storage import records
from server.storage.batching import Batcher
from server.storage.keys import INSTALLATION_KEY, task_prefix
from server.storage.redis_client import Argument, RedisClient, Reply
from server.storage.replies import to_bytes, to_int, to_pairs, to_rows

# One script call blocks everybody else: bounded to a few milliseconds.
MAX_ADMISSION_BYTES: Final = 1 << 20
NOISE_KEY_BYTES: Final = 32
PAYLOADS_PER_REPLY: Final = 64  # a few megabytes: one reply blocks the others on its connection
_ADMISSION_OVERHEAD_BYTES: Final = 4096  # what judging costs, told in bytes of payload

_COMMIT_RESULTS: Final = {
    0: CommitResult.COMMITTED,
    1: CommitResult.STALE,
    2: CommitResult.FENCED,
    3: CommitResult.BASE_CHANGED,
}


class RedisRoundStore:
    """The four ports of the round store over one `RedisClient`; what each promises stands there.

    Args:
        client: shared with whoever else talks to the same Redis.
        receipt_retention_s: how long the receipts of a finished round still answer retries.
    """

    def __init__(self, client: RedisClient, *, receipt_retention_s: int = 7 * 86_400) -> None:
        self._client = client
        self._retention_s = receipt_retention_s
        self._admissions: dict[str, Batcher[Submission, Admission]] = {}

    async def ping(self) -> None:
        """Raise `StoreUnavailable` unless the store answers."""
        await self._client.command("PING")

    async def create_task(self, task: str, *, model: ModelVersion, num_rounds: int) -> None:
        """Make the task exist with `model` as version 1; keep the versions that are there."""
        await self._script("create_task", task, records.dump_model(model), num_rounds)

    async def snapshot(self, task: str) -> Snapshot:
        """Read clock, round and counters in one script."""
        now, current, latest, published, state, accepted, waiting, exhausted = to_rows(
            await self._script("snapshot", task)
        )
        if current is None:
            msg = f"no task named {task}"
            raise UnknownTask(msg)
        return Snapshot(
            now_ms=to_int(now),
            round=records.load_round(to_bytes(state)) if state else None,
            accepted=to_int(accepted or 0),
            waiting=to_int(waiting),
            current_version=to_int(current),
            latest_version=to_int(latest),
            published_rounds=to_int(published),
            is_exhausted=exhausted is not None,
        )

    async def acquire_lease(self, task: str, *, owner: str, ttl_ms: int) -> Lease | None:
        """Take or prolong the lease; None while somebody else holds it."""
        fence = to_int(await self._script("lease", task, owner, ttl_ms))
        return Lease(owner=owner, fence=fence) if fence else None

    async def release_lease(self, task: str, lease: Lease) -> None:
        """Give the lease back, so that the next leader need not wait for its end."""
        await self._script("release_lease", task, lease.fence)

    async def commit(self, round_: Round, *, lease: Lease) -> CommitResult:
        """Store `round_` if what is stored is the version before it and `lease` is the newest."""
        return await self._commit("commit", round_, lease)

    async def open_round(
        self, round_: Round, *, ledger_revision: int, lease: Lease
    ) -> CommitResult:
        """Commit a new private round, and reserve its charge in the same script."""
        if round_.privacy is None:
            msg = f"round {round_.number} must be private to be in the ledger"
            raise ValueError(msg)
        tail = (ledger_revision, round_.privacy.charge)
        return await self._commit("open_round", round_, lease, *tail)

    async def exhaust(
        self, round_: Round, *, record: FinishedRound, ledger_revision: int, lease: Lease
    ) -> CommitResult:
        """Keep the record of a round that was refused, and tell devices so, in one script."""
        tail = (ledger_revision, _summary(record), records.dump_finished(record))
        return await self._commit("exhaust", round_, lease, *tail)

    async def ledger(self, task: str) -> LedgerState:
        """Read the ledger in one script."""
        revision, most, charged, exhausted, published, committed, reserved, model = to_rows(
            await self._script("ledger", task)
        )
        if published is None:
            msg = f"no task named {task}"
            raise UnknownTask(msg)
        return LedgerState(
            committed={charge: int(count) for charge, count in to_pairs(committed)},
            reserved={int(number): charge for number, charge in to_pairs(reserved)},
            max_participations=to_int(most or 0),
            uncharged=to_int(published) - to_int(charged or 0),
            revision=to_int(revision or 0),
            is_exhausted=exhausted is not None,
            clipping_norm=records.load_model(to_bytes(model)).clipping_norm,
        )

    async def noise_key(self, task: str) -> bytes:
        """Return the noise key; where several make one, the first stays (SET NX)."""
        key = task_prefix(task) + "noise_key"
        await self._client.command("SET", key, secrets.token_bytes(NOISE_KEY_BYTES), "NX")
        return to_bytes(await self._client.command("GET", key))

    async def participations(self, task: str) -> dict[int, int]:
        """Return the number of rounds -> devices that were selected for so many; none for 0."""
        rows = await self._client.command("HGETALL", task_prefix(task) + "participations")
        return dict(sorted((int(rounds), int(devices)) for rounds, devices in to_pairs(rows)))

    async def open_cohort(
        self, round_: Round, *, cohort: Sequence[str], lease: Lease
    ) -> CommitResult:
        """Commit, and in the same step make `cohort` the devices that may submit."""
        return await self._commit("open_cohort", round_, lease, *cohort)

    async def finish(
        self, round_: Round, *, record: FinishedRound, model: ModelVersion | None, lease: Lease
    ) -> CommitResult:
        """Commit a terminal phase; publish, keep the record and settle, all in one script."""
        version = model.version if model else 0
        body = records.dump_model(model) if model else ""
        full = records.dump_finished(record)
        charge = round_.privacy.charge if round_.privacy else ""
        tail = (_summary(record), full, self._retention_s, version, body, record.accepted)
        releases_uploads = round_.privacy is not None and round_.privacy.releases_uploads
        cost = (charge, int(releases_uploads))
        return await self._commit("finish", round_, lease, *tail, *cost)

    async def candidates(self, task: str) -> tuple[Candidate, ...]:
        """Return devices whose offer stands, with what is known of their participation."""
        rows = to_rows(await self._script("candidates", task))
        return tuple(
            _candidate(to_bytes(rows[i]), to_bytes(rows[i + 1]), to_bytes(rows[i + 2]))
            for i in range(0, len(rows), 3)
        )

    async def check_in(
        self, task: str, *, device_id: str, check_in_id: str, ttl_ms: int, wanted: int
    ) -> CheckInAnswer:
        """Register an offer, or tell the selection that it led to, in one script."""
        rows = to_rows(await self._script("check_in", task, device_id, check_in_id, ttl_ms, wanted))
        verdict = CheckInVerdict(to_int(rows[0]))
        round_ = None
        if verdict is CheckInVerdict.ASSIGNED:
            round_ = records.load_round(to_bytes(rows[4]))
        return CheckInAnswer(
            verdict=verdict,
            round_number=to_int(rows[1]),
            ttl_ms=to_int(rows[2]),
            base_version=to_int(rows[3] or 0),
            traceparent=round_.traceparent if round_ else "",
            shared_parameters=round_.shared.params_bytes if round_ and round_.shared else b"",
            privacy=round_.privacy if round_ else None,
        )

    async def admit(self, submissions: Sequence[Submission]) -> list[Admission]:
        """Admit updates of one task, each at most once, in one script.

        Single ones that come while another call is under way travel together in the next.
        """
        if len(submissions) > 1:
            return await self._judge("admit", submissions)
        submission = submissions[0]
        batcher = self._admissions.get(submission.task)
        if batcher is None:
            batcher = self._admissions[submission.task] = Batcher(
                partial(self._judge, "admit"),
                size_of=_admission_size,
                max_size=MAX_ADMISSION_BYTES,
            )
        return [await batcher.submit(submission)]

    async def probe(self, submission: Submission) -> Admission:
        """Return the verdict `admit` would give now, storing nothing."""
        return (await self._judge("probe", [submission]))[0]

    async def note_rejection(self, task: str, round_number: int, device_id: str) -> None:
        """Count a device with a refused update, once a round."""
        await self._script("reject", task, round_number, device_id)

    async def contributions(self, task: str, round_number: int) -> tuple[Contribution, ...]:
        """Return what was admitted, sorted by device: the order does not tell who was first."""
        key = self._of(task, "submissions", round_number)
        rows = to_rows(await self._client.command("HGETALL", key))
        pairs = zip(rows[::2], rows[1::2], strict=True)
        found = (records.load_contribution(to_bytes(k), to_bytes(v)) for k, v in pairs)
        return tuple(sorted(found, key=lambda contribution: contribution.device_id))

    async def inline_payloads(
        self, task: str, round_number: int, device_ids: Sequence[str]
    ) -> list[bytes]:
        """Return payloads in the order asked, `PAYLOADS_PER_REPLY` a reply."""
        key = self._of(task, "payloads", round_number)
        rows: list[Reply] = []
        for start in range(0, len(device_ids), PAYLOADS_PER_REPLY):
            some = device_ids[start : start + PAYLOADS_PER_REPLY]
            rows += to_rows(await self._client.command("HMGET", key, *some))
        if None in rows:
            msg = f"{rows.count(None)} of {len(rows)} payloads of round {round_number} are gone"
            raise BlobNotFound(msg)
        return [to_bytes(row) for row in rows]

    async def rejections(self, task: str, round_number: int) -> int:
        """Count devices with a refused update in this round."""
        return to_int(await self._client.command("SCARD", self._of(task, "rejected", round_number)))

    async def model(self, task: str, version: int) -> ModelVersion:
        """Return the metadata of one version."""
        row = await self._client.command("HGET", task_prefix(task) + "models", version)
        if row is None:
            raise _unknown_version(task, version)
        return records.load_model(to_bytes(row))

    async def models(self, task: str) -> tuple[ModelVersion, ...]:
        """Return all versions, oldest first."""
        rows = to_rows(await self._client.command("HVALS", task_prefix(task) + "models"))
        found = [records.load_model(to_bytes(row)) for row in rows]
        return tuple(sorted(found, key=lambda model: model.version))

    async def rollback(self, task: str, version: int) -> ModelVersion:
        """Make an earlier version current; a round from another one is abandoned."""
        row = await self._script("rollback", task, version)
        if row is None:
            raise _unknown_version(task, version)
        return records.load_model(to_bytes(row))

    async def finished_rounds(self, task: str, *, limit: int) -> tuple[FinishedRound, ...]:
        """Return the newest `limit` finished rounds, oldest first."""
        key = task_prefix(task) + "finished"
        rows = to_rows(await self._client.command("LRANGE", key, -limit, -1))
        return tuple(records.load_finished(to_bytes(row)) for row in rows)

    async def unaudited(self, task: str) -> tuple[FinishedRound, ...]:
        """Return finished rounds that no audit log has yet, oldest first."""
        rows = to_rows(await self._client.command("HVALS", task_prefix(task) + "outbox"))
        found = [records.load_finished(to_bytes(row)) for row in rows]
        return tuple(sorted(found, key=lambda record: record.number))

    async def mark_audited(self, task: str, round_number: int) -> None:
        """Tell that the round's audit line is on disk."""
        await self._client.command("HDEL", task_prefix(task) + "outbox", round_number)

    async def claim_installation(self, candidate: str) -> str:
        """Name this installation: the first candidate that anybody proposed counts."""
        await self._client.command("SET", INSTALLATION_KEY, candidate, "NX")
        return to_bytes(await self._client.command("GET", INSTALLATION_KEY)).decode()

    async def remember_enrollment(
        self, token_id: str, *, csr_sha256: str, chain_pem: bytes, ttl_s: int
    ) -> tuple[str, bytes]:
        """Bind a one-time token to a request; returns what the first caller bound it to."""
        key = f"fedagg:enrolled:{token_id}"
        rows = to_rows(
            await self._client.script("remember_enrollment", key, csr_sha256, chain_pem, ttl_s)
        )
        return to_bytes(rows[0]).decode(), to_bytes(rows[1])

    async def _judge(self, mode: str, submissions: Sequence[Submission]) -> list[Admission]:
        args: list[Argument] = [mode]
        for s in submissions:
            payload = s.inline_payload or b""
            args += (s.round_number, s.device_id, s.submission_id, s.digest.hex())
            args += (s.model_version, records.dump_facts(s), payload if mode == "admit" else b"")
        rows = to_rows(await self._script("admit", submissions[0].task, *args))
        return [
            Admission(verdict=AdmissionVerdict(to_int(rows[i])), accepted_at_ms=to_int(rows[i + 1]))
            for i in range(0, len(rows), 2)
        ]

    async def _commit(
        self, script: str, round_: Round, lease: Lease, *tail: Argument
    ) -> CommitResult:
        code = await self._script(
            script,
            round_.task,
            lease.fence,
            round_.number,
            round_.version - 1,
            round_.phase.value,
            round_.base_version,
            round_.reporting_goal,
            round_.deadline_ms if round_.phase is Phase.COLLECTING else 0,
            records.dump_round(round_),
            round_.oldest_version,
            *tail,
        )
        return _COMMIT_RESULTS[to_int(code)]

    async def _script(self, name: str, task: str, *args: Argument) -> Reply:
        return await self._client.script(name, task_prefix(task), *args)

    def _of(self, task: str, name: str, round_number: int) -> str:
        return f"{task_prefix(task)}{name}:{round_number}"


def _summary(record: FinishedRound) -> str:
    # Who took part is for the audit log; kept for every round it would fill the store.
    return records.dump_finished(replace(record, contributors=(), shared=None, privacy=None))


def _admission_size(submission: Submission) -> int:
    return _ADMISSION_OVERHEAD_BYTES + len(submission.inline_payload or b"")


def _candidate(device: bytes, lapses: bytes, known: bytes) -> Candidate:
    last, _, count = known.decode().partition(":")
    return Candidate(
        device_id=device.decode(),
        offer_lapses_at_ms=int(float(lapses)),
        last_round=int(last) if last else None,
        participations=int(count or 0),
    )


def _unknown_version(task: str, version: int) -> UnknownModelVersion:
    return UnknownModelVersion(f"task {task} has no model version {version}")

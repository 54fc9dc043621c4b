"""How values of the domain are written in Redis, and read back.

JSON for what people may look at; a bar-separated line for submissions, which a script takes apart.
"""

import dataclasses
import json
from typing import Any

from server.round.ports import Contribution, FinishedRound, ModelVersion, Submission
from server.round.round_privacy import RoundCost, RoundPrivacy
from server.round.shared_round import SharedRound
from server.round.state import AbandonReason, CandidateModel, Phase, Round


def dump_round(round_: Round) -> str:
    """Write a round as JSON; phases and reasons by their values."""
    tree = dataclasses.asdict(round_)
    tree["phase"] = round_.phase.value
    tree["reason"] = round_.reason.value if round_.reason else None
    return _dump(tree)


def load_round(text: bytes) -> Round:
    """Read what `dump_round` wrote, this release's or an older one's."""
    tree: dict[str, Any] = json.loads(text)
    tree["phase"] = Phase(tree["phase"])
    tree["reason"] = AbandonReason(tree["reason"]) if tree["reason"] else None
    tree["candidate"] = _candidate(tree["candidate"]) if tree["candidate"] else None
    shared = tree.get("shared")  # rounds stored by an older release have none
    tree["shared"] = _shared(shared) if shared else None
    privacy = tree.get("privacy")
    tree["privacy"] = RoundPrivacy(**privacy) if privacy else None
    return Round(**tree)


def dump_model(model: ModelVersion) -> str:
    """Write a model version's metadata as JSON."""
    return _dump(dataclasses.asdict(model))


def load_model(text: bytes) -> ModelVersion:
    """Read what `dump_model` wrote."""
    return ModelVersion(**json.loads(text))


def dump_finished(record: FinishedRound) -> str:
    """Write the record of a finished round as JSON."""
    return _dump(dataclasses.asdict(record))


def load_finished(text: bytes) -> FinishedRound:
    """Read what `dump_finished` wrote, by this release or an older one."""
    tree = json.loads(text)
    tree["contributors"] = tuple(tree["contributors"])
    if tree.get("shared"):
        tree["shared"] = _shared(tree["shared"])
    if tree.get("privacy"):
        tree["privacy"] = RoundCost(**tree["privacy"])
    return FinishedRound(**tree)


def dump_facts(submission: Submission) -> str:
    """Return the part of a stored submission between its digest and its time.

    What later releases added stands last, in the order of their coming: older lines end before it.
    """
    inline = int(submission.inline_payload is not None)
    before = "" if submission.loss_before is None else repr(submission.loss_before)
    after = "" if submission.loss_after is None else repr(submission.loss_after)
    facts: list[object] = [submission.num_samples, submission.payload_bytes, inline, before, after]
    facts.append(submission.model_version)
    if submission.within_clipping_norm is not None:
        facts.append(int(submission.within_clipping_norm))
    return "|".join(map(str, facts))


def load_contribution(device: bytes, line: bytes) -> Contribution:
    """Read an admitted submission as the store keeps it: fields between bars.

    Lines of older releases lack the version (0) and whether the norm held (None).
    """
    submission_id, digest, samples, size, inline, before, after, *later, at = line.decode().split(
        "|"
    )
    version, within = (*later, "", "")[:2]
    return Contribution(
        device_id=device.decode(),
        submission_id=submission_id,
        digest=bytes.fromhex(digest),
        num_samples=int(samples),
        payload_bytes=int(size),
        inline=inline == "1",
        loss_before=float(before) if before else None,
        loss_after=float(after) if after else None,
        accepted_at_ms=int(at),
        model_version=int(version) if version else 0,
        within_clipping_norm=within == "1" if within else None,
    )


def _candidate(tree: dict[str, Any]) -> CandidateModel:
    return CandidateModel(**{**tree, "liars": tuple(tree.get("liars", ()))})


def _shared(tree: dict[str, Any]) -> SharedRound:
    """Read a shared round; JSON knows lists only, the values hold tuples."""
    return SharedRound(**{name: _as_tuples(value) for name, value in tree.items()})


def _as_tuples(value: object) -> Any:  # noqa: ANN401  # whatever the field holds
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _dump(tree: dict[str, Any]) -> str:
    return json.dumps(tree, separators=(",", ":"), sort_keys=True)

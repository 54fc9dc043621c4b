"""Every Redis key, what it holds and who writes it.

All keys of one task share the hash tag `{task}`, so that they lie in one slot of a cluster and a
script may touch them together. Scripts receive the task's prefix and append the names below.

| key after `fedagg:{task}:` | type | holds | written by | lives |
|---|---|---|---|---|
| `task` | hash | `current`, `latest` model version; `published` rounds; `num_rounds` | create_task, finish, rollback | for ever |
| `models` | hash | version -> ModelVersion as JSON | create_task, finish | for ever |
| `lease` | hash | `owner`, `fence`, `expires_ms` of the leader | lease | for ever |
| `round` | hash | `number`, `version`, `phase`, `base`, `oldest` version updates may start from, `goal`, `deadline`, `accepted`, `state` (Round as JSON) of the newest round | commit, open_round, open_cohort, finish, exhaust; `accepted` by admit | for ever |
| `waiting` | zset | device -> when its offer lapses (ms) | check_in; taken out by open_cohort | for ever |
| `offers` | hash | device -> its newest check-in id | check_in; taken out by open_cohort | for ever |
| `devices` | hash | device -> `last round:rounds selected for` | open_cohort | for ever |
| `participations` | hash | rounds selected for -> number of such devices, from 1 | open_cohort | for ever |
| `cohort:<n>` | hash | device -> check-in id it was selected by | open_cohort | retention after the end |
| `submissions:<n>` | hash | device -> admitted submission (the receipt) | admit | retention after the end |
| `payloads:<n>` | hash | device -> payload, where small | admit | until the end |
| `rejected:<n>` | set | devices of the cohort with a refused update | reject | retention after the end |
| `privacy` | hash | the ledger's `revision`; `max_participations` of one device; `published` versions that were charged; `exhausted` where a round was refused | open_round, open_cohort, finish, exhaust; `exhausted` taken out by whatever opens a round | for ever |
| `charges` | hash | charge -> rounds charged with it | finish | for ever |
| `reserved` | hash | number of an open round -> its charge | open_round; taken out by finish | until the round ends |
| `noise_key` | string | 32 secret bytes that all noise follows from; never logged, exported or told | noise_key | for ever |
| `finished` | list | FinishedRound as JSON, less its contributors, oldest first, the last 10,000 | finish, exhaust | for ever |
| `outbox` | hash | round -> FinishedRound not yet in the audit log | finish, exhaust; taken out by mark_audited | until audited |
| `events` | channel | the phase after every change of it; `rollback` | commit, open_round, open_cohort, finish, exhaust, rollback | - |
| `drive` | channel | `enough` offers or the `goal` reached: news for the driver alone | check_in, admit | - |
| `fedagg:installation` (whole key) | string | id that the blob store must know too | claim_installation | for ever |
| `fedagg:enrolled:<token>` (whole key) | hash | `csr`, `chain` issued for a one-time token | remember_enrollment | until the token expires |

In which state: `waiting` and `offers` grow in any phase; `cohort:<n>` appears with COLLECTING;
`submissions:<n>`, `payloads:<n>` and `accepted` change in COLLECTING only, so the contributions are
fixed by the very commit that leaves it. `reserved` has a private round from the step that opens it to
the step that ends it; that step moves the charge to `charges` where the round was aggregating or later
(collecting or later where devices add the noise), and only drops it where it was not. Nothing else takes a reservation out, and no time passes over it.
"""

import hashlib
from typing import Final

INSTALLATION_KEY: Final = "fedagg:installation"


def task_prefix(task: str) -> str:
    """Prefix of all keys of `task`."""
    return f"fedagg:{{{task}}}:"


def events_channel(task: str) -> str:
    """Pub/sub channel that announces the task's changes of phase."""
    return task_prefix(task) + "events"


def drive_channel(task: str) -> str:
    """Pub/sub channel of what only the driver need know."""
    return task_prefix(task) + "drive"


def payload_blob(
    task: str, round_number: int, *, device_id: str, submission_id: str, digest: bytes
) -> str:
    """Blob key of one streamed payload.

    The device is part of it, so that no device can name another's payload; hashed, because device
    ids allow more than keys do.
    """
    device = hashlib.sha256(device_id.encode()).hexdigest()[:32]
    return f"{payloads_prefix(task, round_number)}{device}/{submission_id}-{digest.hex()}"


def updates_prefix(task: str) -> str:
    """Folder of the payloads of all rounds; their numbers are the names of the folders in it."""
    return f"updates/{task}/"


def payloads_prefix(task: str, round_number: int) -> str:
    """Folder of all payloads of a round."""
    return f"{updates_prefix(task)}{round_number:08d}/"


def kept_round_blob(task: str, round_number: int, model_sha256: str) -> str:
    """Blob key of what a model was built from, but for large payloads, beside which it lies.

    Named by the model, so that a leader that was replaced cannot put its settings in the place of
    those that the published model was built with.
    """
    return f"{payloads_prefix(task, round_number)}kept/{model_sha256}"


def evidence_blob(task: str, round_number: int, selection_sha256: str) -> str:
    """Blob key of the statements that a shared round's selection follows from.

    In the payloads' folder, so that it goes with them; no device's folder has this name.
    """
    return f"{payloads_prefix(task, round_number)}evidence/{selection_sha256}"


def ballot_box_blob(task: str, round_number: int, set_sha256: str) -> str:
    """Blob key of the votes that fix the coin of a shared round's frozen set."""
    return f"{payloads_prefix(task, round_number)}evidence/box-{set_sha256}"


def noise_blob(task: str, round_number: int, holder: int) -> str:
    """Blob key of the sealed noise that a share holder dealt for a round."""
    return f"{payloads_prefix(task, round_number)}evidence/noise-{holder}"


def banded_noise_blob(task: str, run: str, round_number: int) -> str:
    """Blob key of what a coordinator added to one round of a run of banded noise: a secret."""
    return f"noise/{task}/{run}/{round_number:08d}"


def installation_blob(installation: str) -> str:
    """Blob that shows which round store these blobs belong to."""
    return f"installation/{installation}"


def model_blob(task: str, round_number: int | None, sha256: str) -> str:
    """Blob key of a model file, named by the round that made it and by its content.

    Rounds share no file, though their models may be equal: what an abandoned round leaves can be
    deleted whatever else is there. None: the initial model.
    """
    return f"models/{task}/{round_number or 0:08d}-{sha256}.safetensors"


def state_blob(task: str, round_number: int | None, sha256: str) -> str:
    """Blob key of an aggregator's state, named as its model's file is."""
    return f"states/{task}/{round_number or 0:08d}-{sha256}.safetensors"

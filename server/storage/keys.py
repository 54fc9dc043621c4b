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

from typing import Final

INSTALLATION_KEY: Final = "fedagg:installation"


def task_prefix(task: str) -> str:
    """Return the prefix of all keys of `task`."""
    return f"fedagg:{{{task}}}:"


def events_channel(task: str) -> str:
    """Return the pub/sub channel that announces the task's changes of phase."""
    return task_prefix(task) + "events"


def drive_channel(task: str) -> str:
    """Return the pub/sub channel of what only the driver need know."""
    return task_prefix(task) + "drive"

"""What a demonstration found, as one JSON object and as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from rich import box
from rich.table import Table

from cli.demo.settings import DemoSettings

_KIB: Final = 1024
_LINE_CHARS: Final = 80
_PLAIN_LOSS: Final = 1000.0
_ROUGH_KIB: Final = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """One finished round.

    Attributes:
        round: number, from 1.
        decision: published or abandoned.
        reason: why it was abandoned; empty otherwise.
        accuracy: share of the held-out samples the current model classifies correctly.
        loss: its mean loss on them; infinite where an output is.
        accepted: contributions.
        rejected: updates the server refused.
        excluded: contributions the rule gave no weight.
        duration_s: from the opening of the round to its end, by the store's clock.
        bytes_up: payload bytes of the contributions.
        bytes_down: model bytes the devices fetched.
        openings: in shared mode, what was opened at most, and to whom.
    """

    round: int
    decision: str
    reason: str
    accuracy: float
    loss: float
    accepted: int
    rejected: int
    excluded: int
    duration_s: float
    bytes_up: int
    bytes_down: int = 0
    openings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """The whole run.

    Attributes:
        settings: what was run.
        rounds: finished rounds, in order.
        initial_accuracy: of the model before the first round.
        wall_s: from the command to the end of the last round and the check that follows.
        peak_server_pss_mb: largest sum of the proportional set sizes of store, coordinators and
            share holders, in 10^6 bytes, sampled a few times a second.
        acknowledged_updates, lost_updates, duplicate_updates: see `cli.demo.tally`.
        killed: coordinators killed on purpose.
        dense_update_bytes: an update without compression, as it would travel in plain mode.
        epsilon_spent: of the privacy budget, at its delta; None without one.
        problem: why the task was not finished; empty where it was.
    """

    settings: DemoSettings
    rounds: Sequence[RoundReport] = field(default=())
    wall_s: float
    acknowledged_updates: int
    lost_updates: int
    duplicate_updates: int
    initial_accuracy: float = 0.0
    peak_server_pss_mb: float = 0.0
    killed: int = 0
    dense_update_bytes: int = 0
    epsilon_spent: float | None = None
    problem: str = ""

    @property
    def final_accuracy(self) -> float:
        """Accuracy of the current model at the end."""
        return self.rounds[-1].accuracy if self.rounds else self.initial_accuracy

    @property
    def is_good(self) -> bool:
        """True where every round was run and every update counted once."""
        return not (self.problem or self.lost_updates or self.duplicate_updates)

    def as_json(self) -> Mapping[str, object]:
        """Return one object; numbers that JSON cannot hold become null."""
        rounds = [
            {name: _json_number(value) for name, value in asdict(one).items() if name != "openings"}
            for one in self.rounds
        ]
        return {
            "settings": self.settings.as_json(),
            "rounds": rounds,
            "initial_accuracy": _json_number(self.initial_accuracy),
            "final_accuracy": _json_number(self.final_accuracy),
            "wall_s": round(self.wall_s, 3),
            "peak_server_pss_mb": round(self.peak_server_pss_mb, 1),
            "acknowledged_updates": self.acknowledged_updates,
            "lost_updates": self.lost_updates,
            "duplicate_updates": self.duplicate_updates,
            "coordinators_killed": self.killed,
            "bytes_on_wire": self.bytes_on_wire,
            "dense_update_bytes": self.dense_update_bytes,
            "epsilon_spent": _json_number(self.epsilon_spent),
            "problem": self.problem,
            **(self._shared_json() if self.settings.shared is not None else {}),
        }

    @property
    def bytes_on_wire(self) -> int:
        """Mean payload of an accepted update, in bytes; of a sealed one, for all holders."""
        accepted = sum(one.accepted for one in self.rounds)
        return round(sum(one.bytes_up for one in self.rounds) / accepted) if accepted else 0

    @property
    def share_bytes_up(self) -> int:
        """Bytes of sealed shares that the devices uploaded; 0 in plain mode."""
        return sum(one.bytes_up for one in self.rounds) if self.settings.shared else 0

    def _shared_json(self) -> Mapping[str, object]:
        shared = self.settings.shared
        return {
            "holders": shared.holders if shared else 0,
            "openings": {str(one.round): list(one.openings) for one in self.rounds},
            "share_bytes_up": self.share_bytes_up,
        }

    def table(self) -> Table:
        """Return one row per round."""
        table = Table(box=box.SIMPLE_HEAD, padding=0, collapse_padding=True)
        for column in _COLUMNS:
            table.add_column(column, justify="right", no_wrap=True)
        for one in self.rounds:
            table.add_row(*_cells(one))
        return table

    def summary(self) -> str:
        """Return the rest, in one paragraph."""
        counted = (
            f"{self.acknowledged_updates} updates acknowledged, {self.lost_updates} lost, "
            f"{self.duplicate_updates} counted twice."
        )
        killed = f" {self.killed} coordinator was killed on the way." if self.killed else ""
        return (
            f"Accuracy {self.initial_accuracy:.4f} -> {self.final_accuracy:.4f} on held-out data. "
            f"{counted} {self.wall_s:.1f} s; the servers took at most "
            f"{self.peak_server_pss_mb:.0f} MB.{killed}{self._terms_summary()}"
            f"{self._shared_summary()}"
        )

    def _terms_summary(self) -> str:
        """Return what was sent, and what was spent, where the demonstration asks for either."""
        lines = []
        if not self.settings.compression.is_dense and self.bytes_on_wire:
            ratio = self.dense_update_bytes / self.bytes_on_wire
            lines.append(
                f"{self.bytes_on_wire:,} bytes on the wire for each update, 1/{ratio:.1f} of"
                f" {self.dense_update_bytes:,} without compression."
            )
        privacy = self.settings.privacy
        if privacy is not None and self.epsilon_spent is not None:
            lines.append(
                f"Epsilon {self.epsilon_spent:.4g} of {privacy.epsilon:g} spent at delta"
                f" {privacy.delta:g}."
            )
        if self.settings.scenario.attack != "none":
            rejected = sum(one.rejected + one.excluded for one in self.rounds)
            lines.append(f"{rejected} updates were refused or left out of the sums.")
        return "".join(f"\n{line}" for line in lines)

    def _shared_summary(self) -> str:
        shared = self.settings.shared
        if shared is None or not self.rounds:
            return ""
        opened = "".join(f"\n  {line}" for line in self.rounds[-1].openings)
        return (
            f"\n{self.share_bytes_up / _KIB:.0f} KB of shares for {shared.holders} holders, of "
            f"whom {shared.threshold} open a sum. The last round opened at most:{opened}"
        )


def round_line(one: RoundReport, num_rounds: int) -> str:
    """Return the line that a finished round gets at once; at most 80 characters."""
    head = f"[ROUND {one.round}/{num_rounds}]"
    if one.decision != "published":
        text = f"{head} {one.decision}: {one.reason}"
        return text if len(text) <= _LINE_CHARS else f"{text[: _LINE_CHARS - 1]}…"
    accuracy = f"{head} accuracy {one.accuracy:.4f}"
    loss = f"loss {_loss(one.loss)}"
    counts = f"accepted {one.accepted}  rejected {one.rejected}  excluded {one.excluded}"
    text = f"{accuracy}  {loss}  {counts}"
    # The table at the end has the loss too.
    return text if len(text) <= _LINE_CHARS else f"{accuracy}  {counts}"


_COLUMNS: Final = (
    "round",
    "accuracy",
    "loss",
    "accepted",
    "rejected",
    "excluded",
    "seconds",
    "KB up",
    "KB down",
)


def _cells(one: RoundReport) -> tuple[str, ...]:
    return (
        str(one.round),
        f"{one.accuracy:.4f}" if one.decision == "published" else one.decision,
        _loss(one.loss),
        str(one.accepted),
        str(one.rejected),
        str(one.excluded),
        f"{one.duration_s:.2f}",
        _kib(one.bytes_up),
        _kib(one.bytes_down),
    )


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if loss < _PLAIN_LOSS else f"{loss:.2g}"


def _kib(num_bytes: int) -> str:
    kib = num_bytes / _KIB
    return f"{kib:.1f}" if kib < _ROUGH_KIB else f"{kib:.0f}"


def _json_number(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value

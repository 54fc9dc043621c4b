"""The client's configuration: where the servers are, who the device is, how patient it is."""

import math
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.errors import ClientConfigError
from protos.wire import DEVICE_ID, MAX_CHUNK_BYTES, MAX_WAIT_S, TASK_NAME
from security.secret_sharing.threshold import MIN_THRESHOLD
from security.shared_round.terms.parameter_facts import (
    LEAST_MASK_SCALE,
    LEAST_MEMBERS,
    LEAST_SKETCH_DIM,
    LEAST_WRAP_TESTS,
    Checks,
)

KIB: Final = 1024
MIB: Final = 1024 * KIB

_HOST_PORT: Final = re.compile(r"(?:dns:///)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_UNIX: Final = re.compile(r"unix:.+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for TLS; the client certificate and its key come together or not at all.

    Attributes:
        root_ca: certificates that may sign the server's; None: those built into gRPC.
        certificate: the device's certificate chain.
        private_key: the key of `certificate`.
        server_name: name expected in the server's certificate; None: the host of the address.
    """

    root_ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ClientConfigError("certificate and private_key must be given together")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often to retry. Pure: randomness and elapsed time are arguments.

    Attributes:
        initial_s: upper end of the first delay, > 0. 0.5: a restarting worker is back soon.
        max_s: upper end of every delay, >= initial_s.
        multiplier: growth of the upper end per failure, >= 1.
        max_attempts: tries of one call without progress, >= 1.
        total_s: seconds that one call may take without progress, delays included, > 0.

    References: M. Brooker (2015), "Exponential Backoff and Jitter", the full jitter variant.
    """

    initial_s: float = 0.5
    max_s: float = 30.0
    multiplier: float = 2.0
    max_attempts: int = 8
    total_s: float = 300.0

    def __post_init__(self) -> None:
        rules = (
            (0 < self.initial_s < math.inf, f"initial_s={self.initial_s} must be > 0"),
            (
                self.initial_s <= self.max_s < math.inf,
                f"max_s={self.max_s} must be at least initial_s={self.initial_s}",
            ),
            (1 <= self.multiplier < math.inf, f"multiplier={self.multiplier} must be >= 1"),
            (self.max_attempts >= 1, f"max_attempts={self.max_attempts} must be >= 1"),
            (self.total_s > 0, f"total_s={self.total_s} must be > 0"),
        )
        for holds, message in rules:
            if not holds:
                raise ClientConfigError(message)

    def delay_s(self, *, failures: int, rng: random.Random, hint_s: float | None = None) -> float:
        """Return how long to wait after the `failures`-th failure in a row, from 1.

        The hint is a floor and the jitter comes on top of it: devices refused together do not
        come back together.
        """
        try:
            ceiling = min(self.max_s, self.initial_s * self.multiplier ** (failures - 1))
        except OverflowError:
            ceiling = self.max_s
        return (hint_s or 0.0) + rng.uniform(0.0, ceiling)

    def next_delay_s(
        self, *, failures: int, elapsed_s: float, rng: random.Random, hint_s: float | None = None
    ) -> float | None:
        """Return the wait before the next try, or None when the policy gives up."""
        if failures >= self.max_attempts:
            return None
        delay = self.delay_s(failures=failures, rng=rng, hint_s=hint_s)
        return delay if elapsed_s + delay <= self.total_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingConfig:
    """The committee that a device seals its updates to, and the least protection it accepts.

    The files are read when the client is made. A committee comes to the device out of band,
    as a root certificate does: whoever names the share holders can read the updates.

    Attributes:
        committee: description of the share holders that the device trusts, JSON.
        certificate: the device's certificate chain, PEM; its common name is the device id. None:
            the one of `tls`.
        private_key: the key of `certificate`, PEM; Ed25519 or ECDSA.
        min_threshold: least number of holders that can open a sum, from 2.
        min_quorum: least number of holders that must agree on what is opened; None: so many that
            fewer than the threshold of lying ones cannot open two sums of one round.
        min_members: least number of updates in a sum that is opened, from 2.
        require_checks: the weakest checks accepted.
        min_mask_scale, min_wrap_tests, min_sketch_dim: least values of a checked round: the noise
            over what it opens, in norm bounds, the tests of a group, and the size of sketches.
            Less noise shows more of the update; fewer tests let others' false updates pass.
        min_noise_multiplier: least noise in a sum, in norm bounds, that fewer holders than the
            threshold do not know; from 0. Published models are differentially private by it.
        holders_ca: certificates that may sign those of the share holders, for rounds in which
            devices deliver to them directly, PEM; the device shows its own certificate. None:
            those that may sign the server's; without TLS where the server is called without.
        holder_patience_s: in such a round, how long a holder that does not answer is tried while
            enough others do, > 0. A quarter of the time that is left is the most.
        max_staleness: an update that missed its round is offered to later ones while its model
            is at most so many versions old, and the round takes it; 0: never; None: as the round
            says.
        tells_training: tell the server the number of samples and the losses, as in plain rounds.
            They say something about the data, and a shared round does without them.
        required: refuse plain rounds, in which the server would read the update.
    """

    committee: Path
    certificate: Path | None = None
    private_key: Path | None = None
    min_threshold: int = MIN_THRESHOLD
    min_quorum: int | None = None
    min_members: int = LEAST_MEMBERS
    require_checks: Checks = Checks.SUM
    min_mask_scale: int = LEAST_MASK_SCALE
    min_wrap_tests: int = LEAST_WRAP_TESTS
    min_sketch_dim: int = LEAST_SKETCH_DIM
    min_noise_multiplier: float = 0.0
    holders_ca: Path | None = None
    holder_patience_s: float = 20.0
    max_staleness: int | None = None
    tells_training: bool = False
    required: bool = True

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ClientConfigError("certificate and private_key must be given together")
        ranges = (
            ("min_threshold", self.min_threshold, MIN_THRESHOLD),
            ("min_quorum", self.min_quorum, MIN_THRESHOLD),
            ("min_members", self.min_members, LEAST_MEMBERS),
            ("min_mask_scale", self.min_mask_scale, 1),
            ("min_wrap_tests", self.min_wrap_tests, 1),
            ("min_sketch_dim", self.min_sketch_dim, 1),
            ("max_staleness", self.max_staleness, 0),
        )
        for name, value, low in ranges:
            if value is not None and value < low:
                raise ClientConfigError(f"{name}={value} must be at least {low}")
        if not 0 <= self.min_noise_multiplier < math.inf:
            raise ClientConfigError(
                f"min_noise_multiplier={self.min_noise_multiplier} must be finite and at least 0"
            )
        if not self.holder_patience_s > 0:
            raise ClientConfigError(f"holder_patience_s={self.holder_patience_s} must be > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """Everything a `MobileClient` has to know before it starts.

    Attributes:
        servers: "host:port", "dns:///host:port" (all its addresses are used in turn) or
            "unix:path". With several, the client moves on to the next when one is lost.
        task: learning task to serve, 1 to 64 characters of [a-z0-9-], the first not a hyphen.
        device_id: 1 to 128 characters of [A-Za-z0-9_.-]; the certificate's where there is one.
        tls: PEM files; required unless `insecure`.
        insecure: speak plain text. For tests and for networks that encrypt by themselves.
        call_timeout_s: longest wait for a short call, beyond what the server may hold it.
        stall_timeout_s: a transfer in which nothing moves this long is broken off and resumed.
        max_wait_s: how long the server may hold a check-in, 0 to 60.
        chunk_bytes: payload bytes per message of an upload, 256 KiB to 1 MiB.
        inline_max_bytes: payloads up to this size travel in one message, 0 to 1 MiB.
        max_model_bytes: larger models are refused before any memory is taken for them.
        deadline_margin_s: the round counts as over this much before its time to live is, for
            the time the assignment was under way; training is asked to stop once more as much
            before that.
        progress_interval_s: while training, ask this often whether the round still waits; None:
            never ask.
        retry: backoff of every call.
        min_device_noise_multiplier: least noise that this device adds to what a server sees, in
            clipping norms; plain rounds that ask for less are refused. 0: what the server says.
        sharing: how updates are sealed to share holders; None: shared rounds are refused.
        state_dir: folder for what compression left out of the updates, to be sent later; its
            files can be read by their owner only, and are as sensitive as the updates. Devices
            may share it, processes of one device not. None: kept in memory.
    """

    servers: tuple[str, ...]
    task: str
    device_id: str
    tls: TlsFiles | None = None
    insecure: bool = False
    call_timeout_s: float = 20.0
    stall_timeout_s: float = 30.0
    max_wait_s: float = 30.0
    chunk_bytes: int = 512 * KIB
    inline_max_bytes: int = 64 * KIB
    max_model_bytes: int = 2 * KIB * MIB
    deadline_margin_s: float = 0.5
    progress_interval_s: float | None = 30.0
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    min_device_noise_multiplier: float = 0.0
    sharing: SharingConfig | None = None
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        self._check_identity()
        self._check_security()
        self._check_limits()

    def _check_identity(self) -> None:
        # A lone string passes for a tuple of its characters where nobody checks types.
        servers: object = self.servers
        if not isinstance(servers, tuple) or not servers:
            raise ClientConfigError(f"servers={self.servers!r} must be a tuple of addresses")
        for server in self.servers:
            match = _HOST_PORT.fullmatch(server)
            if not _UNIX.fullmatch(server) and (not match or not 1 <= int(match[1]) <= 65_535):
                raise ClientConfigError(
                    f"server {server!r} must be 'host:port', 'dns:///host:port' or 'unix:path'"
                )
        if not TASK_NAME.fullmatch(self.task):
            raise ClientConfigError(f"task={self.task!r} must match {TASK_NAME.pattern}")
        if not DEVICE_ID.fullmatch(self.device_id):
            raise ClientConfigError(f"device_id={self.device_id!r} must match {DEVICE_ID.pattern}")

    def _check_security(self) -> None:
        if self.insecure and self.tls:
            raise ClientConfigError("insecure=True and tls contradict each other")
        if not self.insecure and not self.tls:
            raise ClientConfigError("tls is missing; insecure=True sends everything in plain text")
        has_identity = self.tls is not None and self.tls.certificate is not None
        if self.sharing and self.sharing.certificate is None and not has_identity:
            raise ClientConfigError("sharing needs a certificate: its own, or the one of tls")

    def _check_limits(self) -> None:
        ranges = (
            ("call_timeout_s", self.call_timeout_s, 0.001, math.inf),
            ("stall_timeout_s", self.stall_timeout_s, 0.001, math.inf),
            ("max_wait_s", self.max_wait_s, 0, MAX_WAIT_S),
            ("chunk_bytes", self.chunk_bytes, 256 * KIB, MAX_CHUNK_BYTES),
            ("inline_max_bytes", self.inline_max_bytes, 0, MAX_CHUNK_BYTES),
            ("max_model_bytes", self.max_model_bytes, 1, math.inf),
            ("deadline_margin_s", self.deadline_margin_s, 0, math.inf),
            ("progress_interval_s", self.progress_interval_s, 0.001, math.inf),
            ("min_device_noise_multiplier", self.min_device_noise_multiplier, 0, 1e6),
        )
        for name, value, low, high in ranges:
            if value is not None and not low <= value <= high:
                raise ClientConfigError(f"{name}={value} must lie in [{low}, {high}]")

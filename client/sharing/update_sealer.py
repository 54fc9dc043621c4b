"""Sealing updates to the share holders of a committee, on terms that the device accepts.

Needs the extra `fedagg[shared]`. A `MobileClient` seals by itself where `ClientConfig.sharing` is
set; an application with a training loop of its own calls `seal_update` and hands the result to
`FederationTransport.submit` as the payload of a `Submission`. In rounds of direct delivery it
awaits `deliver_update` before that.
"""

import math
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.compression.update_compressor import compresses
from client.config import ClientConfig, SharingConfig, TlsFiles
from client.errors import ClientConfigError, ProtocolError, TrainingError
from client.round_encoding import DeliveryContext, policy_refusal
from client.runtime import Runtime
from client.sharing.direct_payload import DirectPayload, delivered_bytes
from client.sharing.holder_delivery import HolderCalls, HolderDelivery
from client.sharing.sharing_policy import check_agreement, check_policy
from client.transport.connection import channel_credentials
from client.transport.federation_transport import Traffic
from client.transport.messages import Assignment, SealedPayload
from privacy.clipping import clip_by_norm
from privacy.errors import PrivacyError
from security.errors import SecurityError, SharingError, WrongRoundParametersError
from security.shared_round.keys.signing import DeviceSigner
from security.shared_round.terms.committee import Committee, load_committee
from security.shared_round.terms.parameters import RoundParameters
from security.shared_round.update.bundle import SealedUpdate
from updates.sparse import Content, SparseValues


class UpdateSealer:
    """Seals one device's updates. Reads its files once; used from any thread."""

    def __init__(self, config: ClientConfig) -> None:
        """Read the committee and the device's credentials.

        Raises:
            ClientConfigError: if a file is missing or is not what it should be, or the certificate
                is another device's.
        """
        sharing = config.sharing
        if sharing is None:
            raise ClientConfigError("sharing=None: there is no committee to seal to")
        chain, key = _credential_files(config, sharing)
        try:
            self.committee = load_committee(_read(sharing.committee))
            self.signer = DeviceSigner.from_pem(_read(chain), _read(key))
        except SecurityError as error:
            raise ClientConfigError(f"sharing cannot be used: {error}") from error
        if self.signer.device_id != config.device_id:
            raise ClientConfigError(
                f"the certificate is that of {self.signer.device_id!r}, "
                f"device_id is {config.device_id!r}"
            )
        self.policy = sharing
        self.calls = _holder_calls(config, self.committee)
        self.begun: DirectPayload | None = None  # the last that may have reached a holder

    @property
    def is_required(self) -> bool:
        """Whether the device refuses plain rounds."""
        return self.policy.required

    def encoding(self, assignment: Assignment) -> "SharedEncoding":
        """Return how a shared round wants its updates.

        Raises:
            PreconditionError: if the round protects the update less than the policy asks.
            ProtocolError: if its parameters cannot be read, or contradict the assignment.
        """
        try:
            params = RoundParameters.from_bytes(assignment.shared_parameters)
        except SecurityError as error:
            raise ProtocolError(f"the round's parameters cannot be read: {error}") from error
        check_agreement(params, assignment)
        check_policy(params, self.policy, self.committee)
        if assignment.direct_delivery:
            nowhere = [h.name for h in self.committee.holders if not h.address]
            if nowhere:
                raise policy_refusal(f"the committee has no address of {', '.join(nowhere)}")
        return SharedEncoding(self, params, assignment)

    def seal(
        self, params: RoundParameters, vector: NDArray[np.float32], *, model_version: int
    ) -> SealedPayload:
        """Share and seal a clipped update, (d,) float32.

        Raises:
            SharingError: if it is not finite, or longer than the round's norm bound.
            WrongRoundParametersError: if the round does not take an update of this version.
        """
        return SealedUpdate(
            params,
            self.committee,
            self.signer,
            vector,
            device_id=self.signer.device_id,
            model_version=model_version,
        )


class SharedEncoding:
    """Clips, shares and seals the updates of one shared round."""

    def __init__(
        self, sealer: UpdateSealer, params: RoundParameters, assignment: Assignment
    ) -> None:
        self.params = params
        self._sealer = sealer
        self._assignment = assignment
        most = sealer.policy.max_staleness
        limit = len(params.staleness_weights) - 1
        if compresses(assignment.compression):
            limit = 0  # each round has a map of its own
        self._max_staleness = limit if most is None else min(limit, most)

    @property
    def payload_bytes(self) -> int:
        """The size of all sealed bodies; 0 where devices send them to the holders."""
        if self._assignment.direct_delivery:
            return 0  # all that the server gets is what stands in front of the shares
        return sum(self.params.body_bytes(body) for body in range(self.params.num_bodies))

    @property
    def upload_bytes(self) -> int:
        """Bytes of shares and keys that leave the device, to the server or the holders."""
        if self._assignment.direct_delivery:
            return delivered_bytes(self.params)
        return self.payload_bytes

    @property
    def takes_stale(self) -> bool:
        """Whether the round takes versions before its own."""
        return self._max_staleness > 0

    @property
    def tells_training(self) -> bool:
        """Whether the device's policy lets the server know samples and losses."""
        return self._sealer.policy.tells_training

    def accepts(self, model_version: int) -> bool:
        """Tell whether the version is recent enough and has a weight in the round's terms."""
        if self.params.base_version - model_version > self._max_staleness:
            return False
        try:
            self.params.staleness_weight(model_version)
        except WrongRoundParametersError:
            return False
        return True

    def encode(
        self, content: Content, *, model_version: int, layer_sizes: tuple[int, ...] = ()
    ) -> SealedPayload:
        """Clip an update to the plan's norm, share it and seal the shares.

        Args:
            content: (d,) float32, or the (k,) that the round's common map makes of it. Not
                modified, and not to be modified while the result is used.
            model_version: version it was trained from.
            layer_sizes: not looked at.

        Returns:
            The payload; it is computed again for every read, so that a large one takes little
            memory, and every read gives the same bytes. Where delivery is direct, what the server
            gets; `deliver` sends the rest. Once it began, the round gets this update and no other:
            a holder that has its share takes no second one.

        Raises:
            TrainingError: if the content is no finite vector of the round's dimension, or the
                round does not take one of this version.
        """
        del layer_sizes
        assignment = self._assignment
        vector = _vector_of(content, self.params.dim)
        try:
            clipped = clip_by_norm(vector, assignment.plan.clipping_norm)
            sealed = self._sealer.seal(self.params, clipped, model_version=model_version)
        except (PrivacyError, SharingError, WrongRoundParametersError) as error:
            raise TrainingError(f"the update cannot be shared: {error}") from error
        if not assignment.direct_delivery:
            return _SerialPayload(sealed)
        if not isinstance(sealed, SealedUpdate):
            raise TrainingError("a payload that is no SealedUpdate cannot be delivered directly")
        begun = self._sealer.begun
        if begun is not None and begun.is_of(self.params, model_version=model_version):
            return begun
        return DirectPayload(self.params, sealed)

    def received(
        self, payload: bytes | SealedPayload, content: Content, *, layer_sizes: tuple[int, ...]
    ) -> Content:
        """Return what the round's sum is made of: `content`, up to its rounding to 2^-f."""
        del payload, layer_sizes
        return content

    async def deliver(
        self, payload: bytes | SealedPayload, context: DeliveryContext
    ) -> Mapping[int, bytes]:
        """Hand the holders their shares where delivery is direct.

        Args:
            payload: as `encode` returned it.
            context: the time there is.

        Returns:
            By holder, its signed receipt, from at least the round's quorum; empty where the
            server relays the shares.

        Raises:
            FedaggError: if fewer holders have theirs.
        """
        if not isinstance(payload, DirectPayload):
            return {}
        self._sealer.begun = payload
        delivery = HolderDelivery(self._sealer.calls, self.params, payload, context)
        await delivery.run()
        return {
            holder: receipt.SerializeToString() for holder, receipt in delivery.receipts.items()
        }


def _vector_of(content: Content, dim: int) -> NDArray[np.float32]:
    if isinstance(content, SparseValues):
        raise TrainingError("chosen coordinates cannot be shared")
    if content.shape != (dim,) or content.dtype != np.float32:
        raise TrainingError(
            f"the update is {content.shape} {content.dtype}, expected ({dim},) float32"
        )
    return content


class _SerialPayload:
    """Lets one thread at a time read: the read of a broken attempt may go on into the next."""

    def __init__(self, sealed: SealedPayload) -> None:
        self._sealed = sealed
        self._lock = threading.Lock()
        self.digest = sealed.digest

    def __len__(self) -> int:
        return len(self._sealed)

    def __getitem__(self, part: slice) -> bytes:
        with self._lock:
            return self._sealed[part]


def seal_update(
    vector: NDArray[np.float32],
    assignment: Assignment,
    config: ClientConfig,
    *,
    model_version: int | None = None,
) -> SealedPayload:
    """Clip, share and seal one update of a shared round, if its terms are acceptable.

    Args:
        vector: (d,) float32: trained minus received weights. Not modified.
        assignment: the round, as the check-in answered it.
        config: with `sharing` set.
        model_version: version it was trained from; None: the assignment's.

    Returns:
        What a `Submission` takes as its payload. Send the same object on every retry: sealing
        again gives other bytes, which the server refuses as a second update.

    Raises:
        ClientConfigError: if `config.sharing` cannot be used.
        PreconditionError: if the round protects the update less than the policy asks.
        ProtocolError: if its parameters cannot be read, or contradict the assignment.
        TrainingError: if the vector is no finite update of the round's dimension.
    """
    version = assignment.model_version if model_version is None else model_version
    return UpdateSealer(config).encoding(assignment).encode(vector, model_version=version)


async def deliver_update(
    payload: SealedPayload,
    assignment: Assignment,
    config: ClientConfig,
    *,
    runtime: Runtime | None = None,
    deadline_at: float = math.inf,
) -> Mapping[int, bytes]:
    """Hand the holders their shares of an update, before it is submitted.

    Args:
        payload: as `seal_update` returned it for this assignment.
        assignment: likewise.
        config: likewise.
        runtime: clock, sleep and randomness; None: the real ones.
        deadline_at: instant of the runtime's clock at which the round ends.

    Returns:
        By holder, its signed receipt; at least the round's quorum. Empty where the server relays.

    Raises:
        FedaggError: if fewer holders have their shares; the update must not be submitted then. It
            may be repeated.
    """
    context = DeliveryContext(
        runtime=runtime or Runtime(), deadline_at=deadline_at, traffic=Traffic()
    )
    return await UpdateSealer(config).encoding(assignment).deliver(payload, context)


def _holder_calls(config: ClientConfig, committee: Committee) -> HolderCalls:
    sharing = config.sharing
    if sharing is None:
        raise ClientConfigError("sharing=None: there is no committee to call")
    credentials = None
    if sharing.holders_ca or config.tls:
        certificate, private_key = _credential_files(config, sharing)
        root_ca = sharing.holders_ca or (config.tls.root_ca if config.tls else None)
        credentials = channel_credentials(
            TlsFiles(root_ca=root_ca, certificate=certificate, private_key=private_key)
        )
    return HolderCalls(
        committee=committee,
        device_id=config.device_id,
        credentials=credentials,
        retry=config.retry,
        patience_s=sharing.holder_patience_s,
        call_timeout_s=config.call_timeout_s,
        stall_timeout_s=config.stall_timeout_s,
    )


def _credential_files(config: ClientConfig, sharing: SharingConfig) -> tuple[Path, Path]:
    for files in (sharing, config.tls):
        if files and files.certificate and files.private_key:
            return files.certificate, files.private_key
    raise ClientConfigError("sharing needs a certificate: its own, or the one of tls")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClientConfigError(f"{path} cannot be read: {error.strerror}") from error

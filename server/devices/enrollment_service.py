"""The service that turns a one-time token into a device certificate.

Every replica can answer every call, and a call may be repeated: the ledger keeps, for each token,
the key it enrolled and the chain that was issued first. The token is checked before anything else
is read, so that only holders of a genuine token make the server do public-key work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import grpc.aio

from monitoring.logs import get_logger
from monitoring.metrics import Metrics
from protos.fedagg.v1.enrollment_pb2 import EnrollRequest, EnrollResponse
from protos.fedagg.v1.enrollment_pb2_grpc import EnrollmentServicer
from security.certificates.credentials import Credentials, read_chain
from security.certificates.enrollment import EnrollmentGrant, verify_token
from security.certificates.signing_request import sign_request
from security.errors import EnrollmentTokenError, SigningRequestError
from server.errors import (
    EnrollmentDisabled,
    EnrollmentTokenInvalid,
    EnrollmentTokenUsed,
    InvalidCsr,
    ServiceError,
)

# The ledger remembers a token longer than any replica's clock may still accept it.
_LEDGER_MARGIN_S: Final = 600
_ISSUED: Final = "issued"

_log = get_logger(__name__)


class EnrollmentLedger(Protocol):
    """Durable memory of used tokens, shared by all replicas."""

    async def remember_enrollment(
        self, token_id: str, *, csr_sha256: str, chain_pem: bytes, ttl_s: int
    ) -> tuple[str, bytes]:
        """Store a token's request and chain unless there is one, and return what is stored.

        Of several callers the first wins, and all get its values.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentAuthority:
    """What it takes to enroll devices. Its repr shows no key.

    Attributes:
        credentials: the certificate authority.
        token_key: what enrollment tokens are signed with, at least 32 bytes.
        certificate_lifetime_s: how long a device certificate is good, in seconds, > 0.
    """

    credentials: Credentials
    token_key: bytes = field(repr=False)
    certificate_lifetime_s: float


class EnrollmentService(EnrollmentServicer):
    """Implements `fedagg.v1.Enrollment`; refusals are raised as `ServiceError`."""

    def __init__(
        self,
        authority: EnrollmentAuthority | None,
        *,
        ledger: EnrollmentLedger,
        metrics: Metrics,
        now_s: Callable[[], float],
    ) -> None:
        """Serve with this authority.

        Args:
            authority: None where the server enrolls nobody.
            ledger: remembers used tokens.
            metrics: counts outcomes.
            now_s: the clock, seconds since the Unix epoch.
        """
        self._authority = authority
        self._ledger = ledger
        self._outcomes = metrics.enrollments_total
        self._now_s = now_s

    async def Enroll(  # noqa: N802  # named by the protocol
        self,
        request: EnrollRequest,
        context: grpc.aio.ServicerContext[EnrollRequest, EnrollResponse],  # noqa: ARG002
    ) -> EnrollResponse:
        """Answer one call.

        Raises:
            EnrollmentDisabled: if there is no authority.
            EnrollmentTokenInvalid: if the token is forged or has expired.
            InvalidCsr: if the request may not be certified.
            EnrollmentTokenUsed: if the token has enrolled another key.
        """
        try:
            response = await self._enroll(request)
        except ServiceError as error:
            self._outcomes.labels(outcome=error.reason.lower()).inc()
            raise
        self._outcomes.labels(outcome=_ISSUED).inc()
        return response

    async def _enroll(self, request: EnrollRequest) -> EnrollResponse:
        if self._authority is None:
            msg = "this server enrolls no devices"
            raise EnrollmentDisabled(msg)
        now_s = self._now_s()
        grant = _check_token(self._authority, request.token, now_s)
        try:
            issued = sign_request(
                self._authority.credentials,
                request.csr_pem,
                device_id=grant.device_id,
                now_s=now_s,
                valid_for_s=self._authority.certificate_lifetime_s,
            )
        except SigningRequestError as error:
            raise InvalidCsr(str(error)) from error
        # A device that lost the answer may have signed its request anew, so the request is known
        # by the key in it.
        key_sha256, chain_pem = await self._ledger.remember_enrollment(
            grant.token_id,
            csr_sha256=issued.key_sha256,
            chain_pem=issued.chain_pem,
            ttl_s=math.ceil(grant.expires_at_s - now_s) + _LEDGER_MARGIN_S,
        )
        if key_sha256 != issued.key_sha256:
            msg = "the enrollment token has already enrolled another key"
            raise EnrollmentTokenUsed(msg)
        _log.info("device_enrolled", enrollment=grant.token_id)
        stored = read_chain(chain_pem)
        return EnrollResponse(
            certificate_chain_pem=stored.chain_pem, not_after_s=stored.not_after_s
        )


def _check_token(authority: EnrollmentAuthority, token: str, now_s: float) -> EnrollmentGrant:
    try:
        return verify_token(token, key=authority.token_key, now_s=now_s)
    except EnrollmentTokenError as error:
        raise EnrollmentTokenInvalid(str(error)) from error

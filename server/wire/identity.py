"""Who is calling: the certificate's word against the request's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import grpc

from server.errors import DeviceIdMismatch, UnauthenticatedDevice

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext


class PeerIdentity:
    """Compares the device id of a request with the one the peer proved.

    Args:
        required: True where the transport is mutual TLS. False believes every device by its word,
            as `tls.insecure` says.
        gateways: common names that may submit for any device.
    """

    def __init__(self, *, required: bool, gateways: Iterable[str] = ()) -> None:
        self._required = required
        self._gateways = frozenset(gateways)

    def check(self, context: Context, device_id: str) -> None:
        """Refuse a request in another device's name.

        Raises:
            UnauthenticatedDevice: if the peer showed no certificate with a common name.
            DeviceIdMismatch: if it names another device.
        """
        if not self._required:
            return
        proved = self._common_name(context)
        if proved != device_id:
            msg = f"the certificate is of {proved}, the request says {device_id}"
            raise DeviceIdMismatch(msg)

    def check_submitter(self, context: Context) -> Callable[[str], None]:
        """Return what checks the device ids of a stream of submissions.

        A gateway may name any device, every other peer only itself.
        """
        if self._required and self._common_name(context) in self._gateways:
            return lambda _: None
        return lambda device_id: self.check(context, device_id)

    def check_gateway(self, context: Context) -> None:
        """Refuse everyone but gateways.

        Raises:
            UnauthenticatedDevice: if the peer showed no certificate with a common name.
            DeviceIdMismatch: if it names no gateway.
        """
        if self._required and (proved := self._common_name(context)) not in self._gateways:
            msg = f"the certificate is of {proved}, which may not call this"
            raise DeviceIdMismatch(msg)

    def check_any(self, context: Context) -> None:
        """Refuse a peer without a certificate.

        Raises:
            UnauthenticatedDevice: if the peer showed no certificate with a common name.
        """
        if self._required:
            self._common_name(context)

    @staticmethod
    def _common_name(context: Context) -> str:
        names = context.auth_context().get("x509_common_name") or ()
        for name in names:
            return name.decode("utf-8", "replace")
        msg = "the peer showed no client certificate"
        raise UnauthenticatedDevice(msg)

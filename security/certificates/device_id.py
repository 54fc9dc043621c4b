"""The form of a device id that a certificate can carry, as a common name."""

from protos.wire import CERTIFIED_ID
from security.errors import CredentialError

_MAX_SHOWN_CHARS = 128


def check_certified_id(device_id: str) -> str:
    """Return the device id if a certificate can carry it.

    Raises:
        CredentialError: if it is not 1 to 64 characters of [A-Za-z0-9_.-].
    """
    if CERTIFIED_ID.fullmatch(device_id) is None:
        shown = device_id[:_MAX_SHOWN_CHARS]
        msg = f"device_id={shown!r} must match {CERTIFIED_ID.pattern} to be certified"
        raise CredentialError(msg)
    return device_id

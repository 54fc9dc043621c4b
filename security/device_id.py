"""The form of a device id: also a certificate's common name, hence its length."""

import re
from typing import Final

from security.errors import CredentialError

# RFC 5280, ub-common-name.
MAX_CERTIFIED_ID_CHARS: Final = 64

_CERTIFIED_ID: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_CERTIFIED_ID_CHARS}}}")


def check_certified_id(device_id: str) -> str:
    """Return the device id if a certificate can carry it.

    Raises:
        CredentialError: if it is not 1 to 64 characters of [A-Za-z0-9_.-].
    """
    if _CERTIFIED_ID.fullmatch(device_id) is None:
        msg = (
            f"device_id={device_id[: 2 * MAX_CERTIFIED_ID_CHARS]!r} must be "
            f"1 to {MAX_CERTIFIED_ID_CHARS} characters of [A-Za-z0-9_.-] to be certified"
        )
        raise CredentialError(msg)
    return device_id

"""Loads what seals updates only where it is used: a plain device needs no `cryptography`."""

from client.config import ClientConfig
from client.errors import ClientConfigError
from client.round_encoding import RoundSealer


def load_sealer(config: ClientConfig) -> RoundSealer:
    """Return what seals the updates of a device whose `config.sharing` is set.

    Raises:
        ClientConfigError: if a file of it is missing or is not what it should be, or the extra
            `fedagg[shared]` is not installed.
    """
    try:
        # Its packages come with an extra that most devices do without.
        from client.sharing.update_sealer import UpdateSealer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ClientConfigError(
            f"sharing needs the extra fedagg[shared]: there is no package {error.name}"
        ) from error
    return UpdateSealer(config)

"""Loads a device's own noise only where a round asks for it: others need no `cryptography`."""

import secrets

from client.compression.update_compressor import NoiseAdder
from client.errors import ClientConfigError
from client.trainer import Plan
from updates.topk import Vector

_KEY_BYTES = 32


def load_noise() -> NoiseAdder:
    """Return what adds noise to the numbers of an update, fresh for every call.

    Raises:
        ClientConfigError: if the extra `fedagg[shared]` is not installed.
    """
    try:
        # Its packages come with an extra that most devices do without.
        from privacy.noise import add_device_noise  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ClientConfigError(
            f"device noise needs the extra fedagg[shared]: there is no package {error.name}"
        ) from error

    def add(values: Vector, terms: Plan) -> Vector:
        # Never from the runtime's generator: whoever can guess the key can take the noise out.
        return add_device_noise(
            values,
            secrets.token_bytes(_KEY_BYTES),
            noise_multiplier=terms.device_noise_multiplier,
            clip_norm=terms.clipping_norm,
        )

    return add

"""What both ends of a call hold each other to beside the messages: ids, limits, metadata keys.

The comments of the `.proto` files state them for people, this module for the device, the
coordinator and the share holders. Nothing else may write one of them down again.
"""

import re
from typing import Final

ERROR_METADATA_KEY: Final = "fedagg-error-bin"
"""Trailing metadata of a refused call: an `ErrorDetail`."""

ID_CHARACTERS: Final = "[A-Za-z0-9_.-]"
TASK_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
DEVICE_ID: Final = re.compile(ID_CHARACTERS + r"{1,128}")
CERTIFIED_ID: Final = re.compile(ID_CHARACTERS + r"{1,64}")
"""A device id that a certificate can carry: RFC 5280, ub-common-name."""
CALL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a device calls a check-in or a submission, so that it can repeat it."""
SHA256_HEX: Final = re.compile(r"[0-9a-f]{64}")
MAX_APP_VERSION_CHARS: Final = 64

MAX_WAIT_S: Final = 60
"""How long a check-in may ask to be held."""
MAX_NUMBER: Final = 2**53
"""Of a round or a model version: Lua's numbers are doubles."""
MAX_NUM_SAMPLES: Final = 2**31 - 1
MAX_DIM: Final = 2**31
"""Numbers of an update."""
DIGEST_BYTES: Final = 16
"""Of a payload: XXH3-128."""

MAX_CHUNK_BYTES: Final = 1 << 20
"""Of a payload or a model in one message of a stream, and of a payload that is sent inline."""
MAX_BATCH_UPDATES: Final = 4096
MAX_BATCH_BYTES: Final = 1 << 20
MAX_HOLDER_MESSAGE_BYTES: Final = 64 << 20
"""Of one message between a coordinator and a share holder."""

MAX_LISTED_ROUNDS: Final = 1_000
"""That the HTTP API answers with at once."""

"""Names of everything that lies in the blob store."""

import hashlib


def payload_blob(
    task: str, round_number: int, *, device_id: str, submission_id: str, digest: bytes
) -> str:
    """Return the blob key of one streamed payload.

    The device is part of it, so that no device can name another's payload; hashed, because device
    ids allow more than keys do.
    """
    device = hashlib.sha256(device_id.encode()).hexdigest()[:32]
    return f"{payloads_prefix(task, round_number)}{device}/{submission_id}-{digest.hex()}"


def updates_prefix(task: str) -> str:
    """Return the folder of the payloads of all rounds; the folders in it are named by number."""
    return f"updates/{task}/"


def payloads_prefix(task: str, round_number: int) -> str:
    """Return the folder of all payloads of a round."""
    return f"{updates_prefix(task)}{round_number:08d}/"


def kept_round_blob(task: str, round_number: int, model_sha256: str) -> str:
    """Return the blob key of what a model was built from, but for large payloads, which lie beside.

    Named by the model, so that a leader that was replaced cannot put its settings in the place of
    those that the published model was built with.
    """
    return f"{payloads_prefix(task, round_number)}kept/{model_sha256}"


def evidence_blob(task: str, round_number: int, selection_sha256: str) -> str:
    """Return the blob key of the statements that a shared round's selection follows from.

    In the payloads' folder, so that it goes with them; no device's folder has this name.
    """
    return f"{payloads_prefix(task, round_number)}evidence/{selection_sha256}"


def ballot_box_blob(task: str, round_number: int, set_sha256: str) -> str:
    """Return the blob key of the votes that fix the coin of a shared round's frozen set."""
    return f"{payloads_prefix(task, round_number)}evidence/box-{set_sha256}"


def noise_blob(task: str, round_number: int, holder: int) -> str:
    """Return the blob key of the sealed noise that a share holder dealt for a round."""
    return f"{payloads_prefix(task, round_number)}evidence/noise-{holder}"


def banded_noise_blob(task: str, run: str, round_number: int) -> str:
    """Return the blob key of a round's noise in a run of banded noise: a secret."""
    return f"noise/{task}/{run}/{round_number:08d}"


def installation_blob(installation: str) -> str:
    """Return the blob that shows which round store these blobs belong to."""
    return f"installation/{installation}"


def model_blob(task: str, round_number: int | None, sha256: str) -> str:
    """Return the blob key of a model file, named by the round that made it and by its content.

    Rounds share no file, though their models may be equal: what an abandoned round leaves can be
    deleted whatever else is there. None: the initial model.
    """
    return f"models/{task}/{round_number or 0:08d}-{sha256}.safetensors"


def state_blob(task: str, round_number: int | None, sha256: str) -> str:
    """Return the blob key of an aggregator's state, named as its model's file is."""
    return f"states/{task}/{round_number or 0:08d}-{sha256}.safetensors"

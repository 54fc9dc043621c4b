"""What Redis answers, as values: the one place that believes a reply to be of its type."""

from typing import cast

from server.storage.redis_client import Reply


def to_int(reply: Reply) -> int:
    """Return a reply that is a number, or the text of one."""
    return int(cast("bytes | int", reply))


def to_bytes(reply: Reply) -> bytes:
    """Return a reply that is a string."""
    return cast("bytes", reply)


def to_rows(reply: Reply) -> list[Reply]:
    """Return a reply that is a list."""
    return cast("list[Reply]", reply)


def to_pairs(reply: Reply) -> list[tuple[str, str]]:
    """Return a reply that is a hash: its fields, as text, with their values."""
    words = [to_bytes(row).decode() for row in to_rows(reply)]
    return list(zip(words[::2], words[1::2], strict=True))

"""What must never happen, as one kind of failure."""


class BrokenPromise(AssertionError):
    """The service did what it promises never to do."""


def require(holds: bool, problem: str) -> None:
    """Fail with `problem` unless `holds`."""
    if not holds:
        raise BrokenPromise(problem)

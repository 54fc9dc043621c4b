"""Tells whether kernels had to be compiled, or were loaded from where they are kept."""

from collections.abc import Callable


def compiles(load: Callable[[], object]) -> bool:
    """Call `load`, which loads kernels; tell whether it compiled one.

    To compile takes a hundred MB that the process keeps, and seconds.
    """
    try:
        from numba.core import event  # noqa: PLC0415  # an extra, and slow to load
    except ModuleNotFoundError:
        load()
        return False
    with event.install_recorder("numba:compile") as recorder:
        load()
    return bool(recorder.buffer)

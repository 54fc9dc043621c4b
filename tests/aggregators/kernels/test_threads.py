import os
import threading
from collections.abc import Generator, Iterator

import pytest

from aggregators.kernels.threads import cut, num_cores, run_pieces
from tests.looped import looped


def test_at_least_one_core_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert num_cores() == 1


@looped("stop", [1, 7, 8, 9, 100, 1000])
@looped("num_threads", [1, 2, 3, 16])
def test_pieces_cover_everything_once_and_start_at_multiples(stop: int, num_threads: int) -> None:
    pieces = cut(stop, step=8, num_threads=num_threads)
    assert [column for start, end in pieces for column in range(start, end)] == list(range(stop))
    assert all(start % 8 == 0 and start < end for start, end in pieces)


def test_one_thread_gets_one_piece() -> None:
    assert cut(1000, step=8, num_threads=1) == [(0, 1000)]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_answers_come_in_the_order_of_the_pieces(num_threads: int) -> None:
    first_may_end = threading.Event()

    def square(piece: int) -> int:
        # The first of several threads is made to end last.
        if num_threads > 1 and piece == 0:
            first_may_end.wait(timeout=10)
        if piece == 1:
            first_may_end.set()
        return piece * piece

    answers = run_pieces(square, range(40), num_threads=num_threads)
    assert list(answers) == [piece * piece for piece in range(40)]


def test_pieces_start_as_answers_are_taken() -> None:
    started: list[int] = []

    def note(piece: int) -> int:
        started.append(piece)
        return piece

    answers: Iterator[int] = run_pieces(note, range(100), num_threads=2)
    next(answers)
    assert len(started) <= 5
    assert list(answers) == list(range(1, 100))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_a_piece_raises_is_raised(num_threads: int) -> None:
    def fail(piece: int) -> int:
        if piece == 3:
            raise LookupError
        return piece

    with pytest.raises(LookupError):
        list(run_pieces(fail, range(10), num_threads=num_threads))


def test_pieces_that_are_no_longer_wanted_do_not_start() -> None:
    started: list[int] = []

    def note(piece: int) -> int:
        started.append(piece)
        return piece

    answers = run_pieces(note, range(100), num_threads=2)
    assert [next(answers), next(answers)] == [0, 1]
    assert isinstance(answers, Generator)
    answers.close()
    assert len(started) <= 6
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kernel")]


def test_several_pieces_run_at_once_on_several_threads() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(piece: int) -> int:
        both.wait()
        return piece

    assert list(run_pieces(meet, range(4), num_threads=2)) == [0, 1, 2, 3]


def test_one_thread_works_in_the_thread_that_asks() -> None:
    names = run_pieces(lambda _: threading.current_thread().name, range(3), num_threads=1)
    assert set(names) == {threading.current_thread().name}


def test_no_pieces_give_no_answers() -> None:
    assert list(run_pieces(abs, [], num_threads=4)) == []

"""The terminal while decoders in C work, in several threads at once."""

import os
from threading import Barrier, Thread

import pytest

from client.data.pixels.unheard import UNHEARD


def test_nothing_is_heard_while_any_thread_decodes(capfd: pytest.CaptureFixture[str]) -> None:
    """Two threads inside at once; the second is still there when the first has left."""
    both, first_left, heard = Barrier(2), Barrier(2), []

    def decode(last: bool) -> None:
        with UNHEARD:
            both.wait(10)  # with one at a time this would never be met
            if last:
                first_left.wait(10)
                os.write(2, b"a C library's words\n")
        if not last:
            os.write(2, b"between\n")
            first_left.wait(10)
        heard.append(last)

    threads = [Thread(target=decode, args=(last,)) for last in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    os.write(2, b"after\n")
    assert sorted(heard) == [False, True]
    assert capfd.readouterr().err == "after\n"


def test_the_terminal_comes_back_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    def decode() -> None:
        with UNHEARD:
            os.write(2, b"unheard\n")
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        decode()
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"

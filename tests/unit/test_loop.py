"""The event loop: sources, times and signals."""

import os
import signal
import socket
import time

from kevip.loop import Loop


def test_calls_what_is_readable_and_what_is_due() -> None:
    loop, called = Loop(), []
    reader, writer = socket.socketpair()
    with reader, writer:
        loop.watch(reader, lambda: called.append(reader.recv(10)))
        writer.send(b"x")
        loop.after(60, lambda: called.append(b"late"))
        loop.turn()
        loop.after(0.01, lambda: called.append(b"due"))
        loop.turn()
        loop.forget(reader)
    loop.close()
    assert called == [b"x", b"due"]


def test_a_time_is_replaced_cancelled_and_asked_for() -> None:
    loop, called = Loop(), []

    def action() -> None:
        called.append(time.monotonic() - begin)

    def never() -> None:
        called.append(-1.0)

    begin = time.monotonic()
    loop.after(60, action)
    loop.after(0.05, action)
    loop.after(0, never)
    loop.cancel(never)
    assert (loop.awaits(action), loop.awaits(never)) == (True, False)
    loop.turn()
    loop.close()
    assert [seconds >= 0.05 for seconds in called] == [True]


def test_an_action_that_ends_another_source_or_time_is_the_last_word() -> None:
    loop, called = Loop(), []
    pairs = [socket.socketpair() for _ in range(2)]
    readers = [pair[0] for pair in pairs]

    def end_all() -> None:
        called.append("source")
        for each in readers:
            loop.forget(each)

    for reader, writer in pairs:
        loop.watch(reader, end_all)
        writer.send(b"x")
    loop.turn()

    def first() -> None:
        called.append("time")
        loop.cancel(second)

    def second() -> None:
        called.append("never")

    loop.after(0, first)
    loop.after(0, second)
    loop.turn()
    loop.close()
    for reader, writer in pairs:
        reader.close()
        writer.close()
    assert called == ["source", "time"]


def test_a_signal_is_an_event_and_its_old_handler_comes_back() -> None:
    loop = Loop()
    called: list[signal.Signals] = []
    before = signal.getsignal(signal.SIGUSR1)
    with loop.signals({signal.SIGUSR1: called.append}):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.turn()
    loop.close()
    assert set(called) == {signal.SIGUSR1}
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_signal_that_is_to_be_ignored_from_now_on_stays_so() -> None:
    loop = Loop()
    before = signal.getsignal(signal.SIGUSR1)
    try:
        with loop.signals({signal.SIGUSR1: print}):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
    loop.close()

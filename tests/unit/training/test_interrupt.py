"""The first signal is a wish, the second SIGINT an order."""

import os
import signal

import pytest

from mvmae.training.interrupt import Interrupt, exit_status


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_noted_and_nothing_stops(number):
    with Interrupt() as interrupt:
        assert interrupt.signal == 0
        send(number)
        assert interrupt.signal == number


def test_second_sigint_stops_at_once():
    with Interrupt() as interrupt:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert interrupt.signal == signal.SIGINT


def test_sigint_after_sigterm_stops_at_once():
    with Interrupt() as interrupt:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert interrupt.signal == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_may_stop_at_once_too(number):
    with Interrupt(at_once=True) as interrupt:
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert interrupt.signal == number


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_sigterm_changes_nothing(first):
    with Interrupt() as interrupt:
        send(first)
        send(signal.SIGTERM)
        assert interrupt.signal == first


def test_handlers_before_are_back_afterwards():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
    assert {number: signal.getsignal(number) for number in before} == before


def test_handlers_before_are_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), Interrupt():
        _ = 1 / 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_status_is_the_one_a_shell_knows(number, status):
    assert exit_status(number) == status

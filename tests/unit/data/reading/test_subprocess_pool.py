"""Processes that die or hang take nothing along but the item they held."""

import os
import subprocess
import sys
import time

import pytest

from mvmae.data.reading.subprocess_pool import Lost, run_guarded

LIMITS = {"timeout": 60.0, "memory": 1 << 30}


def act(item):
    """What an item asks for."""
    what, value = item
    if what == "die":
        os.kill(os.getpid(), value)
    if what == "exit":
        os._exit(value)
    if what == "sleep":
        time.sleep(value)
    if what == "take":
        return len(bytearray(value))
    return value


def results(items, **limits):
    return dict(run_guarded(act, items, **{"workers": 2} | LIMITS | limits))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_item_is_answered_once_whatever_the_number_of_processes(workers):
    items = [("say", number) for number in range(75)]
    answers = list(run_guarded(act, items, workers=workers, **LIMITS))
    assert sorted(answers) == [(number, number) for number in range(75)]


def test_no_items_are_no_work():
    assert list(run_guarded(act, [], workers=2, **LIMITS)) == []


def test_a_killed_process_is_named_with_its_item_and_the_rest_goes_on():
    items = [("say", number) for number in range(40)]
    items[5], items[6], items[39] = ("die", 9), ("die", 11), ("exit", 3)
    found = results(items)
    assert found[5] == Lost(False, "its reader process was ended by signal 9 (Killed)")
    assert found[6].reason.startswith("its reader process was ended by signal 11")
    assert found[39] == Lost(False, "its reader process ended with status 3")
    assert {at: value for at, value in found.items() if at not in (5, 6, 39)} == {
        at: at for at in range(40) if at not in (5, 6, 39)
    }


def test_a_hanging_process_is_ended_and_the_rest_goes_on():
    items = [("say", 0), ("sleep", 600), ("say", 2)]
    began = time.monotonic()
    found = results(items, timeout=1.0)
    assert found == {0: 0, 1: Lost(True, "not done after 1 seconds"), 2: 2}
    assert time.monotonic() - began < 60


def test_slow_items_that_are_each_in_time_are_not_lost():
    items = [("sleep", 0.4)] * 4
    assert results(items, timeout=1.2, workers=1) == dict.fromkeys(range(4), 0.4)


def test_memory_beyond_the_limit_is_refused_to_the_process_alone():
    found = results([("take", 1 << 28), ("take", 3 << 30), ("say", 2)], memory=1 << 29)
    assert found[0] == 1 << 28
    assert isinstance(found[1], Lost)  # MemoryError, which nothing in `act` catches
    assert found[2] == 2


def test_leaving_early_ends_the_processes():
    walk = run_guarded(act, [("sleep", 0.01)] * 64, workers=2, **LIMITS)
    next(walk)
    walk.close()
    import multiprocessing

    assert not multiprocessing.active_children()


STARTED_UNDER_SIGNALS = """
import os, signal, threading
from mvmae.data.reading.subprocess_pool import run_guarded

signal.signal(signal.SIGINT, lambda *_: None)  # as a command that ends in its own time

def interrupt():
    for _ in range(40):
        os.killpg(0, signal.SIGINT)
        threading.Event().wait(0.05)

threading.Thread(target=interrupt).start()
items = [-number for number in range(40)]
answers = dict(run_guarded(abs, items, workers=2, timeout=60, memory=1 << 30))
assert answers == {number: number for number in range(40)}, answers
"""


@pytest.mark.skipif(os.name != "posix", reason="signals to a group of processes")
def test_ctrl_c_while_processes_start_ends_none_of_them():
    words = [sys.executable, "-c", STARTED_UNDER_SIGNALS]
    done = subprocess.run(words, start_new_session=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

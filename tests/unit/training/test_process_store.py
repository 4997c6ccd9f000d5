"""Messages between the processes of a command, played in one process through one store."""

import errno
import time

import pytest
import torch.distributed as dist

from mvmae.errors import OtherFailedError, ReportedError, UserError
from mvmae.training import process_store
from mvmae.training.process_store import ProcessStore, partition


@pytest.fixture
def three(monkeypatch) -> list[ProcessStore]:
    monkeypatch.setattr(process_store, "REPORT_SECONDS", 0.05)
    store = dist.HashStore()
    return [ProcessStore(store, rank, 3) for rank in range(3)]


@pytest.mark.parametrize(("items", "size"), [(0, 3), (2, 3), (3, 3), (10, 3), (1001, 8)])
def test_shares_are_all_even_and_in_a_row(items, size):
    shares = [partition(items, rank, size) for rank in range(size)]
    assert [item for one in shares for item in one] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_main_process_tells_one_thing_after_another(three):
    main, other, last = three
    assert [main.from_main(value) for value in ("a", None)] == ["a", None]
    assert [other.from_main(0), other.from_main(0)] == ["a", None]
    assert last.from_main(0) == "a"


def test_what_is_posted_comes_once_and_in_order(three):
    main, first, second = three
    first.post([1, "one"])
    second.post({"two": None})
    first.post(3)
    assert list(main.read_posts()) == [[1, "one"], 3, {"two": None}]
    assert list(main.read_posts()) == []
    second.post("\udcff.jpg")  # a file name that is not UTF-8
    assert list(main.read_posts()) == ["\udcff.jpg"]


def test_the_main_process_waits_for_all(three):
    main, _, second = three
    for one in three[:2]:
        one.finish_phase()
    turns = main.wait_for_others()
    next(turns)
    second.finish_phase()
    assert list(turns) == []
    main.finish_phase()  # the next share
    next(main.wait_for_others())
    for one in three[1:]:
        one.finish_phase()
    assert list(main.wait_for_others()) == []


def test_a_process_that_left_before_it_was_done_is_not_waited_for(three):
    main, first, second = three
    for one in (main, first):
        one.finish_phase()
    for one in (first, second):
        one.store.set(f"left/{one.rank}", "")
    with pytest.raises(OtherFailedError, match="process 2 of this command was interrupted"):
        list(main.wait_for_others())


def test_a_signal_of_one_stops_all(three):
    main, first, second = three
    assert main.check() == 0
    assert second.check(15) == 15
    assert [main.check(), first.check(2)] == [15, 15]  # the first that came


def test_a_number_that_is_told_replaces_the_one_before(three):
    main, first, _ = three
    assert first.latest("at") == -1
    main.publish("at", 3)
    main.publish("at", 7)
    assert first.latest("at") == 7


def test_another_process_that_fails_is_said_by_the_main_one(three, capsys):
    main, first, second = three
    ended = first.error_to_raise(UserError("no room"))  # nobody says it in its time: it does
    assert isinstance(ended, ReportedError)
    assert capsys.readouterr().err == "mvmae: no room\n"
    with pytest.raises(OtherFailedError, match="no room") as failure:
        main.check()
    assert isinstance(main.error_to_raise(failure.value), ReportedError)  # it was reported
    with pytest.raises(ReportedError):
        second.check()
    assert capsys.readouterr().err == ""


def test_what_all_find_wrong_the_main_process_says(three, capsys):
    main, first, _ = three
    error = UserError("no such folder")
    assert main.error_to_raise(error) is error  # which the command line prints
    assert isinstance(first.error_to_raise(UserError("no such folder")), ReportedError)
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_told_as_the_command_line_tells_it(three):
    main, first, _ = three
    first.error_to_raise(OSError(errno.ENOSPC, "No space left on device", "part"))
    with pytest.raises(UserError, match="No space left on device: part"):
        main.check()


def test_our_own_fault_keeps_its_stack_and_the_others_end(three, capsys):
    main, first, _ = three
    fault = KeyError("x")
    assert first.error_to_raise(fault) is fault
    with pytest.raises(OtherFailedError, match="process 1 failed: KeyError") as failure:
        main.check()
    assert isinstance(main.error_to_raise(failure.value), ReportedError)
    assert capsys.readouterr().err == ""


def test_a_connection_that_is_lost_is_said_in_words(three):
    main, first, _ = three
    ended = main.error_to_raise(
        RuntimeError("[gloo/tcp/pair.cc:537] Connection closed by peer [::1]")
    )
    assert str(ended) == "another process of this command is gone: was it killed?"
    assert isinstance(first.error_to_raise(RuntimeError("Connection reset by peer")), ReportedError)


def test_a_process_without_a_sign_of_life_is_missed(three, monkeypatch):
    main, first, second = three
    monkeypatch.setattr(process_store, "DEATH_SECONDS", 0.2)
    first.store.set("beat/1", "1")
    second.store.set("beat/2", "1")

    def watch() -> None:
        for number in range(200):
            first.store.set("beat/1", str(number))
            main.check()
            time.sleep(0.01)

    with pytest.raises(
        OtherFailedError,
        match="process 2 of this command died: it was killed, or its machine is lost",
    ):
        watch()


def test_a_process_that_is_done_is_not_missed(three, monkeypatch):
    main, first, second = three
    monkeypatch.setattr(process_store, "DEATH_SECONDS", 0.05)
    for one in (first, second):
        one.store.set(f"left/{one.rank}", "")
    for _ in range(20):
        main.check()
        time.sleep(0.01)


def test_one_process_alone_asks_nobody():
    assert process_store.current().check(15) == 15
    assert process_store.current().from_main("x") == "x"
    assert (
        list(process_store.current().read_posts())
        == list(process_store.current().wait_for_others())
        == []
    )
    process_store.current().post(1)
    process_store.current().finish_phase()
    assert process_store.current().latest("x") == -1

"""metrics.jsonl survives kills and resumes; lines for people are few."""

import json
import sys

import pytest

from mvmae.errors import UserError
from mvmae.training.log import Log


def open_log(folder, *, start=0, total=100, also=(), quiet=False) -> Log:
    return Log(folder, start=start, total=total, also=also, quiet=quiet)


def record(step: int, **more) -> dict:
    return {"step": step, "epoch": step / 10, "loss": 1 / step} | more


def read_records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_records(folder, steps) -> None:
    with open_log(folder) as log:
        for step in steps:
            log.write(record(step))


def test_records_are_lines_of_json_in_order(tmp_path):
    write_records(tmp_path, [10, 20, 30])
    lines = read_records(tmp_path)
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[1]["loss"] == 1 / 20
    assert (tmp_path / "metrics.jsonl").read_text().endswith("}\n")


def test_record_is_on_the_disk_as_soon_as_it_is_written(tmp_path):
    with open_log(tmp_path) as log:
        log.write(record(10))
        assert len(read_records(tmp_path)) == 1


@pytest.mark.parametrize(("start", "kept"), [(0, []), (20, [10, 20]), (25, [10, 20]), (99, None)])
def test_lines_after_the_step_of_a_resume_are_dropped(tmp_path, start, kept):
    write_records(tmp_path, [10, 20, 30, 40])
    with open_log(tmp_path, start=start) as log:
        log.write(record(start + 1))
    kept = [10, 20, 30, 40] if kept is None else kept
    assert [line["step"] for line in read_records(tmp_path)] == [*kept, start + 1]


def test_lines_that_are_kept_stay_as_they_were(tmp_path):
    write_records(tmp_path, [10, 20, 30])
    before = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    open_log(tmp_path, start=20)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(before[:2])


@pytest.mark.parametrize("cut", [1, 2, 10, 30])
def test_half_a_last_line_is_dropped(tmp_path, cut):
    """What a kill in the middle of a write leaves."""
    write_records(tmp_path, [10, 20, 30])
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[:-cut])
    with open_log(tmp_path, start=30) as log:
        log.write(record(40))
    steps = [line["step"] for line in read_records(tmp_path)]
    assert steps == ([10, 20, 30, 40] if cut == 1 else [10, 20, 40])


def test_quiet_process_writes_and_says_nothing(tmp_path, capsys):
    with open_log(tmp_path, quiet=True, also=("tensorboard",)) as log:
        log.write(record(10))
        log.say("hello")
        log.advance(10)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_without_a_terminal_about_twenty_plain_lines_tell_a_run(tmp_path, capsys):
    with open_log(tmp_path, total=1000) as log:
        for step in range(10, 1001, 10):
            log.advance(step)
            log.write(record(step))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert lines[0].startswith("step 50/1000  loss 0.020")
    assert lines[-1].startswith("step 1000/1000  loss 0.001")
    assert all("\x1b" not in line and line.endswith(" left") for line in lines)


def test_plain_line_names_what_people_watch(tmp_path, capsys):
    numbers = {"reconstruction": 0.5, "contrastive": 2.0, "lr": 1e-3, "images_per_second": 99.6}
    with open_log(tmp_path, total=10) as log:
        log.write(record(10, **numbers, knn_top1=41.23))
    (line,) = capsys.readouterr().out.splitlines()
    said = ("loss 0.100", "L_r 0.500", "L_c 2.000", "lr 1.0e-03", "images/s 100", "kNN 41.2")
    assert [word for word in said if word not in line] == []


def test_short_run_says_every_record(tmp_path, capsys):
    with open_log(tmp_path, total=3) as log:
        for step in (1, 2, 3):
            log.write(record(step))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_brackets_in_a_line_for_people_are_no_markup(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.say("runs/[red]a[/b] is done")
    assert capsys.readouterr().out == "runs/[red]a[/b] is done\n"


def test_long_line_for_people_is_not_broken(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.say("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"


def test_time_goes_on_where_the_run_before_stopped(tmp_path):
    with open_log(tmp_path) as log:
        log.began -= 500  # as if it had begun earlier
        log.write(record(10))
    assert read_records(tmp_path)[0]["seconds"] >= 500
    assert open_log(tmp_path, start=10).seconds() >= 500


def test_tensorboard_gets_every_number(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_log(tmp_path, also=("tensorboard",)) as log:
        log.write(record(10))
        log.write(record(20))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"epoch", "loss", "seconds"}
    loss = events.Scalars("loss")
    assert [event.step for event in loss] == [10, 20]
    assert [event.value for event in loss] == pytest.approx([0.1, 0.05])


def test_missing_tensorboard_is_the_users_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'mvmae\[logging\]'"):
        open_log(tmp_path, also=("tensorboard",))

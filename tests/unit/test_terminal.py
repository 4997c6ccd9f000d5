"""Text, bars and JSON go where the options send them, and nowhere else."""

import io
import json
import sys

import pytest
from rich.console import Console

from mvmae import terminal
from mvmae.errors import UserError


class Screen(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_quiet_lets_warnings_through_and_nothing_else(capsys):
    with terminal.output({"quiet"}):
        print("for people")
        terminal.console().print("for people")
        terminal.emit("result", {"a": 1})
        terminal.warn("it matters")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "mvmae: it matters\n")


def test_stdout_of_json_has_objects_only_whoever_prints(capsys):
    with terminal.output({"json"}):
        print("a line of somebody")
        terminal.console().print("for people")
        terminal.emit("metrics", {"loss": float("nan"), "all": [1.5, float("inf")]})
        terminal.warn("it matters")
    said = capsys.readouterr()
    first, second = (json.loads(line) for line in said.out.splitlines())
    assert first == {"event": "metrics", "loss": None, "all": [1.5, None]}
    assert second == {"event": "warning", "message": "it matters"}
    assert said.err.splitlines() == ["a line of somebody", "for people", "it matters"]


def test_json_and_quiet_is_the_json_alone(capsys):
    with terminal.output({"json", "quiet"}):
        print("for people")
        terminal.emit("result", {"a": 1})
    said = capsys.readouterr()
    assert (said.out, said.err) == ('{"event": "result", "a": 1}\n', "")


def test_without_json_nothing_is_emitted_and_all_is_as_before_afterwards(capsys):
    with terminal.output({"json"}), terminal.output({"plain"}):
        terminal.emit("result", {"a": 1})
    terminal.emit("result", {"a": 1})
    print("again")
    assert capsys.readouterr().out == "again\n"


def test_output_is_as_before_after_an_error(capsys):
    with pytest.raises(UserError), terminal.output({"quiet"}):
        raise UserError("no")
    print("again")
    assert capsys.readouterr().out == "again\n"


def test_the_environment_holds_where_nothing_is_asked(monkeypatch):
    monkeypatch.setenv(terminal.OUTPUT_VARIABLE, "json,quiet")
    assert terminal.requested_modes() == {"json", "quiet"}
    assert terminal.requested_modes({"plain"}) == {"plain"}
    assert terminal.requested_modes({"auto"}) == frozenset()
    monkeypatch.setenv(terminal.OUTPUT_VARIABLE, "loud")
    with pytest.raises(UserError, match="MVMAE_OUTPUT=loud: choose from auto, plain, quiet, json"):
        terminal.requested_modes()


@pytest.mark.parametrize(
    ("args", "words", "rest"),
    [
        (["run", "--json", "a"], {"json"}, ["run", "a"]),
        (["--quiet", "run", "--json"], {"json", "quiet"}, ["run"]),
        (["run"], set(), ["run"]),
        (["run", "--quiet", "--help"], {"auto"}, ["run", "--help"]),
    ],
)
def test_flags_are_taken_out_of_the_arguments(args, words, rest):
    assert terminal.flags(args) == (words, rest)


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("\x1b[31mred\x07.jpg", r"\x1b[31mred\x07.jpg"),
        ("a\udcff\u202egpj.b", r"a\udcff\u202egpj.b"),
        ("two\nlines 96\u00a0% 写", "two\nlines 96\u00a0% 写"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(capsys, said, seen):
    terminal.console().print(said)
    terminal.warn(said)
    assert capsys.readouterr().out == f"{seen}\n{seen}\n"
    with terminal.output({"quiet"}):
        terminal.warn(said)
    assert capsys.readouterr().err == f"mvmae: {seen}\n"


def test_bars_are_for_terminals_that_can_draw_over(monkeypatch):
    screen = Console(file=Screen(), _environ={"TERM": "xterm"})
    assert terminal.has_bars(screen)
    with terminal.output({"plain"}):
        assert not terminal.has_bars(screen)
    assert not terminal.has_bars(Console(file=Screen(), _environ={"TERM": "dumb"}))
    assert not terminal.has_bars(Console(file=io.StringIO()))
    forced = Console(file=io.StringIO(), force_terminal=True)
    assert forced.is_terminal
    assert not terminal.has_bars(forced)


@pytest.mark.parametrize("width", [40, 71, 72, 120])
def test_a_bar_fits_its_terminal(width):
    file = Screen()
    console = Console(file=file, width=width, color_system=None, _environ={"TERM": "xterm"})
    bar = terminal.StepBar("pretrain", 10_000, unit="steps", console=console)
    bar.say({name: f"{name} 12.345" for name in ("loss", "L_r", "L_c", "kNN", "images/s")})
    bar.update(bar.task, completed=9_876)
    console.print(bar.get_renderable())
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "9876/10000" in lines[0]
    assert "…" not in file.getvalue()
    assert all(f"{name} 12.345" in file.getvalue() for name in ("loss", "kNN", "images/s"))


def test_items_are_packed_without_breaking_one():
    assert terminal.pack_items(["aaa", "bbb", "", "ccc"], 8) == ["aaa  bbb", "ccc"]
    assert terminal.pack_items(["a" * 9], 4) == ["a" * 9]
    assert terminal.pack_items([], 4) == []


def progress_lines(capsys, seconds: float) -> list[str]:
    with terminal.Bar(200) as bar:
        bar.name("runs/[red]")
        bar.began -= seconds  # as if it had taken so long already
        for _ in range(200):
            bar.advance(1)
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()


def test_long_work_without_a_terminal_says_ten_lines_on_stderr(capsys):
    lines = progress_lines(capsys, 60.0)
    assert len(lines) == 10
    assert lines[0].startswith("runs/[red]: 1/200 images, ")
    assert lines[5].startswith("runs/[red]: 100/200 images, 1:0")
    assert all(line.endswith(" left") for line in lines)


def test_short_work_without_a_terminal_says_nothing(capsys):
    assert progress_lines(capsys, 0.0) == []


def test_quiet_work_says_nothing(capsys):
    with terminal.output({"quiet"}):
        assert progress_lines(capsys, 60.0) == []


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (61.0, "1:01"), (3599.6, "1:00:00"), (90061.0, "25:01:01")]
)
def test_a_time_is_read_as_on_a_clock(seconds, said):
    assert terminal.clock(seconds) == said


def test_the_module_needs_no_torch():
    import subprocess

    code = "import sys, mvmae.terminal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Output of the same commands for a user, a log and a program."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mvmae.cli.main import main

OPTIONS = {
    "recipe": "demo",
    "model.image-size": 16,
    "model.decoder-dim": 32,
    "batch-size": 8,
    "epochs": 6,
    "warmup-epochs": 0,
    "log-every": 2,
    "eval-every": 2,
    "device": "cpu",
    "workers": 0,
}


@pytest.fixture
def command(image_folder) -> list[str]:
    images, judged = image_folder(), image_folder("judged", per_class=5, seed=1)
    options = (word for name, value in OPTIONS.items() for word in (f"--{name}", str(value)))
    return ["pretrain", str(images), *options, "--eval-data", str(judged)]


def parse_lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_json_is_the_records_as_they_come_and_then_the_result(command, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*command, "--out", str(run), "--json"]) == 0
    said = capsys.readouterr()
    *records, result = parse_lines(said.out)
    assert {record.pop("event") for record in records} == {"metrics"}
    assert records == parse_lines((run / "metrics.jsonl").read_text())
    assert (result["event"], result["command"], result["out"]) == ("result", "pretrain", str(run))
    assert result["steps"] == 6
    assert result["knn_top1"] == records[-1]["knn_top1"]
    assert result["health"] == json.loads((run / "health.json").read_text())["status"]
    assert "6 epochs of 1 step" in said.err
    config = json.loads((run / "config.json").read_text())
    assert not {"quiet", "json"} & config.keys()


def test_results_of_judging_are_json_of_one_line(command, tmp_path, capsys, image_folder):
    run, images = tmp_path / "run", str(tmp_path / "judged")
    assert main([*command, "--out", str(run), "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    for command in ("knn", "probe"):
        assert main(["--json", command, str(run), images, "--workers", "0", "--no-baselines"]) == 0
        (result,) = parse_lines(capsys.readouterr().out)
        kept = json.loads(Path(result["file"]).read_text())
        assert result[f"{command}_top1"] == result["headline"]["top1"] == kept["headline"]["top1"]
        assert result["rows"] == kept["rows"]
    for words, key in (
        (["reconstruct", str(run), images, "--count", "1"], "file"),
        (["embed", str(run), images, "--workers", "0"], "folder"),
        (["export", str(run), "--format", "safetensors"], "folder"),
        (["curves", str(run)], "file"),
    ):
        assert main([*words, "--json"]) == 0
        (result,) = parse_lines(capsys.readouterr().out)
        assert (result["event"], result["command"]) == ("result", words[0])
        assert Path(result[key]).exists()
    assert main(["show", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["folder"] == str(run)


def test_quiet_and_json_still_tell_mistakes(tmp_path, capsys):
    for flag in ("--quiet", "--json"):
        assert main(["knn", str(tmp_path / "none"), flag]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("mvmae: ")
        assert len(said.err.splitlines()) == 1


def test_help_is_shown_to_those_who_ask_for_quiet(capsys):
    assert main(["curves", "--help", "--quiet"]) == 0
    assert "mvmae curves" in capsys.readouterr().out


def test_a_wrong_word_in_the_environment_is_told(monkeypatch, capsys):
    monkeypatch.setenv("MVMAE_OUTPUT", "silent")
    assert main(["curves", "run"]) == 2
    assert "MVMAE_OUTPUT=silent: choose from" in capsys.readouterr().err


def test_a_run_ends_with_how_it_went(command, tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*command, "--out", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    labels = [line[:14].strip() for line in lines]
    end = lines[labels.index("steps") :]
    assert end[0] == "steps         6 of 8 images, 6 epochs"
    assert re.fullmatch(
        r"time          0:\d\d, \d+ images/s \(median\), \d+% of the time waiting for data", end[1]
    )
    records = parse_lines((run / "metrics.jsonl").read_text())
    first, *_, last = [record for record in records if "loss" in record]
    assert end[2] == f"loss          {first['loss']:.3f} → {last['loss']:.3f}"
    assert end[4].endswith(f"(chance: {last['chance']:.3f})")
    assert lines[-1] == f"How it went: mvmae curves {run}"


def session(args: list[str], width: int, **environment: str) -> str:
    """Return what a terminal of this width gets."""
    main_end, other_end = pty.openpty()
    fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    plain = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "mvmae", *args],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        env=plain | {"TERM": "xterm-256color"} | environment,
    ):
        os.close(other_end)
        got = b""
        while True:
            try:
                part = os.read(main_end, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            got += part
    os.close(main_end)
    return got.decode()


@pytest.mark.slow
@pytest.mark.parametrize("width", [40, 100])
def test_knn_stays_in_sight_of_a_terminal_once_it_is_measured(command, tmp_path, width):
    got = session([*command, "--out", str(tmp_path / "run")], width, NO_COLOR="1")
    frames = re.split(r"\d/6 ", got)  # each begins with the number of its step
    shown = ["kNN" in frame for frame in frames[1:]]
    assert any(shown)
    assert all(shown[shown.index(True) :])
    assert not re.search(r"\x1b\[[\d;]*3[0-8]", got)  # no colours, as NO_COLOR asks


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"TERM": "dumb"}, {"MVMAE_OUTPUT": "plain", "NO_COLOR": "1"}]
)
def test_a_terminal_without_bars_gets_lines(command, tmp_path, environment):
    got = session([*command, "--out", str(tmp_path / "run")], 80, **environment)
    assert "\x1b" not in got
    assert "━" not in got
    assert "step 6/6  loss" in got


@pytest.mark.slow
def test_a_pipe_gets_no_control_characters(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mvmae", *command, "--out", str(tmp_path / "run")],
        env=os.environ | {"FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stdout + done.stderr)
    assert sum(line.startswith("step ") for line in done.stdout.splitlines()) == 3

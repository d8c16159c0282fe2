"""What comes from files cannot steer the terminal, and a pipe may close."""

import ast
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from vankit import cli
from vankit.cli.terminal import LogFormatter, console, say, say_failure, stopped_by_sigterm

EVIL = "\x1b]0;evil\x07\x9b2J\r[/red][bold]:smile:"
SHOWN = r"\x1b]0;evil\x07\x9b2J\r[/red][bold]:smile:"


def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL + "\n")
    say(EVIL, file=sys.stderr)
    assert capsys.readouterr() == (SHOWN + "\\n\n", SHOWN + "\n")


def test_a_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=EVIL)
    table.add_column("two\nlines")
    table.add_row(EVIL)
    console().print(table)
    page = capsys.readouterr().out
    assert page.count(SHOWN) == 2 and not set("\x1b\x07\x9b\r") & set(page)
    assert "lines" in page and r"two\n" not in page


def test_a_log_is_escaped_and_keeps_its_traceback() -> None:
    try:
        raise KeyError(EVIL)
    except KeyError:
        record = logging.LogRecord("vankit", logging.WARNING, "", 0, "%s: bad", (EVIL + "\n",), sys.exc_info())
    first, *others = LogFormatter().format(record).split("\n")
    assert first == f"WARNING: {SHOWN}\\n: bad" and others[0].startswith("Traceback") and len(others) > 3
    assert not set("\x1b\x07\x9b\r") & set("".join(others))


def test_errors_are_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (OSError(EVIL), KeyError(EVIL)):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(cli, "app", fail)
        with pytest.raises(SystemExit):
            cli.main([])
        text = capsys.readouterr().err
        assert "evil" in text and not set("\x1b\x07\x9b\r") & set(text)


def test_commands_print_by_say_alone() -> None:
    for path in Path(cli.__file__).parent.glob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert path.name == "terminal.py" or "print" not in [c.id for c in calls if isinstance(c, ast.Name)], path


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no SIGPIPE")
@pytest.mark.parametrize(("flags", "text", "status"), [((), "x", 141), (("-u",), "x", 141), ((), "", 0)])
def test_a_closed_pipe_ends_quietly(flags: tuple[str, ...], text: str, status: int) -> None:
    """Also of a few lines, which Python only writes as it ends."""
    program = "import sys; from vankit import cli\n"
    program += "cli.prepare_next_start = lambda _: sys.argv[1] and cli.say('prepared', file=sys.stderr)\n"
    program += "cli.app = lambda *_, **__: sys.stdin.read() or (print(sys.argv[1]) if sys.argv[1] else 0)\ncli.main([])"
    command = [sys.executable, *flags, "-c", program, text]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait(60)) == (b"", status)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_said_once(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    program = "import sys; from vankit import cli; cli.app = lambda *_, **__: cli.say('x')\n"
    program += "cli.prepare_next_start = lambda _: cli.say('prepared', file=sys.stderr)\ncli.main([])"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "vankit: cannot write to the standard output: No space left on device\n",
    )


def test_an_error_of_another_pipe_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 1 and "Broken pipe" in capfd.readouterr().err


def test_sigterm_ends_a_block_and_then_does_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, stopped_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143 and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("a.jpg is empty", "a.jpg is empty"),
        ("no such image file: a.jpg (looked from /)", "no such image file: a.jpg (looked from /)"),
        ("the network's output is NaN", "a.jpg: the network's output is NaN"),
    ],
)
def test_a_failure_names_its_image_once(error: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    say_failure("a.jpg", error)
    assert capsys.readouterr().err == f"{line}\n"

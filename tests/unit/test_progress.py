"""The progress of a long task, in a log and on a terminal."""

from __future__ import annotations

import io

import pytest

from verl_aer._progress import ProgressDisplay


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def display_of(total: int | None, stream: io.StringIO) -> tuple[ProgressDisplay, Clock]:
    display, clock = ProgressDisplay(total, stream), Clock()
    display._progress.get_time = display._task._get_time = clock
    display._task.start_time = clock()
    return display, clock


def test_a_log_has_a_plain_line_from_time_to_time_and_the_last_state() -> None:
    stream = io.StringIO()
    display, clock = display_of(5, stream)
    with display:
        for done in range(1, 6):
            clock.seconds += 20
            display.show(done, "rows :smile: [b]")
        display.show(5, "rows :smile: [b]")
    assert stream.getvalue().splitlines() == [
        "0:20  1/5 rows :smile: [b]",
        "1:00  3/5 rows :smile: [b]  ETA 0:40",
        "1:40  5/5 rows :smile: [b]",
    ]


def test_before_the_first_unit_the_line_is_repeated() -> None:
    stream = io.StringIO()
    display, clock = display_of(5, stream)
    for _ in range(3):
        display.show(0, "starting")
        clock.seconds += 20
    assert stream.getvalue().splitlines() == ["0:00  starting", "0:40  starting"]


def test_the_remaining_time_leaves_out_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    display, clock = display_of(10, stream)
    for done, seconds in ((0, 0), (1, 1000), (2, 40), (3, 40)):
        clock.seconds += seconds
        display.show(done, "steps")
    # Two steps in 80 s and seven to go.
    assert stream.getvalue().splitlines()[-1] == "18:00  3/10 steps  ETA 4:40"


def test_without_a_total_only_the_text_is_shown() -> None:
    stream = io.StringIO()
    display, _ = display_of(None, stream)
    display.show(1200, "1,200 rows read")
    assert stream.getvalue() == "0:00  1,200 rows read\n"


def test_a_terminal_has_a_bar_that_is_gone_at_the_end() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with ProgressDisplay(5, stream) as display:
        display.show(2, "rows")
        display._progress.refresh()
        assert "2/5 rows" in stream.getvalue()
        display.note("a line")
    assert stream.getvalue().count("a line") == 1
    assert stream.getvalue().endswith("\x1b[2K")

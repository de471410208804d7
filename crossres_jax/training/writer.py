"""What a run tells: one JSON object per logged step, and a line of progress."""

import json
import os
import sys
import time
from pathlib import Path


def write_json(path: str | os.PathLike, value) -> None:
    """Writes a JSON file whole or not at all, even if the power fails."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class MetricsWriter:
    """Appends to `metrics.jsonl`; TensorBoard's event files are left to others.

    A last line that was not finished, because the run was killed or the disk full, is
    dropped.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        if self._path.exists():
            written = self._path.read_bytes()
            os.truncate(self._path, written.rfind(b"\n") + 1)

    def write(self, values: dict) -> None:
        """Appends one object; not-a-number and infinities become null."""
        finite = {
            key: None if isinstance(value, float) and not _is_finite(value) else value
            for key, value in values.items()
        }
        with self._path.open("a") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")


def _is_finite(value: float) -> bool:
    return value - value == 0.0


class Progress:
    """One line of progress: rewritten on a terminal, now and then a new one in a log.

    Args:
      title: what is being done.
      total: number of steps.
      unit: what a step handles `per_step` of, for the rate.
      per_step: see `unit`.
    """

    def __init__(self, title, total, *, unit="images", per_step=1):
        self._title, self._total = title, total
        self._unit, self._per_step = unit, per_step
        self._interactive = sys.stderr.isatty()
        self._seconds_between_lines = 0.2 if self._interactive else 15.0
        self._shown = time.monotonic()
        self._first = None  # (step, time) from which the rate counts

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the steps are done."""
        now = time.monotonic()
        if self._first is None:  # compilation is over
            self._first = done, now
        last = done >= self._total
        if now - self._shown < self._seconds_between_lines and not last:
            return
        self._shown = now
        steps, seconds = done - self._first[0], now - self._first[1]
        if steps and seconds:
            rate = steps / seconds
            eta = _clock((self._total - done) / rate)
            speed = f"{rate * self._per_step:.0f} {self._unit}/s, {eta} left"
        else:
            speed = "…"
        line = f"{self._title}  {done}/{self._total}  {speed}  {note}".rstrip()
        if self._interactive:
            sys.stderr.write("\r\x1b[K" + line + ("\n" if last else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

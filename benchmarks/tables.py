"""Markdown tables, and the place of each in the docs."""

from collections.abc import Sequence
from pathlib import Path


class Section:
    """What stands between `<!-- name -->` and `<!-- /name -->` in a file.

    Args:
      target: "FILE:NAME".

    Raises:
      ValueError: if the file has no such section.
    """

    def __init__(self, target: str):
        path, _, name = target.partition(":")
        self._path = Path(path)
        self._begin, self._end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        self._around()

    def write(self, text: str) -> None:
        """Replaces what stands there."""
        before, after = self._around()
        self._path.write_text(before + self._begin + text + "\n" + self._end + after)

    def _around(self):
        before, begin, rest = self._path.read_text().partition(self._begin)
        _, end, after = rest.partition(self._end)
        if not begin or not end:
            raise ValueError(
                f"{self._path} needs the lines {self._begin}{self._end}to write between"
            )
        return before, after


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])

"""What a run shows: a page with its scores, ranked lists and restored pictures."""

from crossres_jax.report.page import write_report

__all__ = ["write_report"]

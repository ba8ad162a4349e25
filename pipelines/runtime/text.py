"""Moved to `pipelines.text`, which the configuration may import too."""

from pipelines.text import columns, did_you_mean, listed, more, one_line, redact

__all__ = ["columns", "did_you_mean", "listed", "more", "one_line", "redact"]

"""The former name of `pipelines.restore`: `denoise.denoise` is `restore.restore`."""

from __future__ import annotations

from pipelines.restore import Format, Incomplete
from pipelines.restore import RestoreError as DenoiseError
from pipelines.restore import restore as denoise

__all__ = ["DenoiseError", "Format", "Incomplete", "denoise"]

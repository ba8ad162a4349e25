"""MLflow's database, made once a process and copied: making its tables takes two seconds, a copy nothing."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from pipelines.tracking import store


def new_store(folder: Path) -> str:
    """Put a database without runs into a folder; gives its URI."""
    (folder / "mlflow.db").write_bytes(_empty())
    return f"sqlite:///{folder}/mlflow.db"


@cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory(prefix="d2sm-test-") as folder:
        file = Path(folder) / "mlflow.db"
        store.prepare(f"sqlite:///{file}")
        return file.read_bytes()

"""Every name that becomes a path: of a run, of a checkpoint, of a file that a bucket or a meta.json names.

All of them are checked here, because any of them may come from a stranger: a configuration, a bucket, a copied folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from pipelines.config import ConfigError
from pipelines.runtime.files import LONGEST_NAME

OF_MLFLOW = ("mlflow.db", "mlflow.db.lock", "mlartifacts")  # what MLflow keeps in train.storage, beside the runs
INFO = "run.json"  # the run's MLflow run, the fingerprint of its data, the step that was evaluated


def is_plain(name: object) -> bool:
    """Whether this is a name for a file or folder that does not lead elsewhere: no path, not hidden, printable."""
    return (
        isinstance(name, str)
        and name != ""
        and name.isprintable()
        and Path(name).name == name
        and not name.startswith(".")
        and len(name.encode()) <= LONGEST_NAME
    )


def check_name(name: str, asked_by: str) -> None:
    """Make sure that a name is a folder's and does not lead elsewhere.

    Args:
        asked_by: the key or option that gave it, for the message.

    Raises:
        ConfigError: it is empty, hidden or too long, holds a slash or a control character, or is a checkpoint's or
            one of `OF_MLFLOW`.
    """
    if name in OF_MLFLOW:
        raise ConfigError(f"{asked_by}={name}: MLflow's own file or folder in train.storage; give another name")
    if is_plain(name) and not is_checkpoint(name):
        return
    raise ConfigError(
        f"{asked_by}={name[:300]!r}: not a plain name; give one without slashes and control characters that begins "
        f"with no dot, is no checkpoint's (step-00000001) and has at most {LONGEST_NAME} bytes"
    )


def shortened(name: str, suffix: str, key: str, *, always: bool = False) -> str:
    """`name` and `suffix`, or what a file system takes of `name` with a digest of `key` in place of its end.

    A name that fits stays as it is, so that what was written under it is found again.

    Args:
        always: add the digest to a name that fits, too: it is taken.
    """
    if not always and len((name + suffix).encode()) <= LONGEST_NAME:
        return name + suffix
    end = f"-{hashlib.sha256(key.encode()).hexdigest()[:12]}{suffix}"
    return name.encode()[: LONGEST_NAME - len(end.encode())].decode(errors="ignore") + end


def checkpoint_name(step: int) -> str:
    """The name of a step's checkpoint; names sort by step.

    Raises:
        ConfigError: a name has eight digits, and the step has more.
    """
    name = f"step-{step:08d}"
    if not is_checkpoint(name):
        raise ConfigError(f"step {step}: a checkpoint's name has eight digits; train for fewer steps")
    return name


def is_checkpoint(name: str) -> bool:
    """Whether this is exactly a checkpoint's name: step- and eight digits. step-best, a copy of somebody's, is none."""
    return re.fullmatch(r"step-[0-9]{8}", name) is not None


def unsent_name(checkpoint: str, run: str) -> str:
    """The name of a checkpoint in a copy of a run at a URI until it is at the URI: until then it does not count.

    Args:
        run: tells this run from another one of its name, see `storage.run_of`.
    """
    return f"unsent-{checkpoint}-{run}"


def unsent(run_dir: Path) -> list[tuple[Path, str, str]]:
    """The checkpoints in a run's folder that are not at its URI: folder, name of the checkpoint, run; by step."""
    found = [(path, re.fullmatch(r"unsent-(step-[0-9]{8})-([0-9a-f]*)", path.name)) for path in _folders(run_dir)]
    return [(path, match[1], match[2]) for path, match in found if match]


def checkpoints(run_dir: Path) -> list[Path]:
    """The folders in a run's folder that have a checkpoint's name, whole or not, by step. A link is none."""
    return [path for path in _folders(run_dir) if is_checkpoint(path.name)]


def outdated(
    found: Sequence[str], is_complete: Callable[[str], bool], keep: int, best_of: Callable[[Sequence[str]], set[str]]
) -> list[str]:
    """The checkpoints to remove so that the newest complete ones stay; none as long as no complete one is there.

    One that is newer than all complete ones stays too: it is being written, or is damaged and may be mended.

    Args:
        found: the names of all.
        is_complete: whether the one of this name is; asked from the newest on, until enough are found.
        keep: how many stay.
        best_of: the best ones that those which stay name, and which stay too (`best.names_of`).
    """
    kept = list(islice(filter(is_complete, sorted(found, reverse=True)), keep))
    stay = {*kept, *best_of(kept)}
    return [name for name in found if kept and name < kept[0] and name not in stay]


def unfinished(run_dir: Path) -> list[Path]:
    """The temporary folders of checkpoints that a killed writer left in a run's folder."""
    return [path for path in _folders(run_dir) if path.name.startswith(".") and is_checkpoint(path.name[1:])]


def _folders(run_dir: Path) -> list[Path]:
    if not run_dir.is_dir():
        return []
    with os.scandir(run_dir) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))

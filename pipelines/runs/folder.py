"""A run's folder: where it is, what its files are called, and whose run it is."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from typing_extensions import TypedDict

from pipelines import config as configs
from pipelines import parsing
from pipelines.config import Config, ConfigError
from pipelines.runs import best, checkpoint, lease, names, storage
from pipelines.runs.names import INFO
from pipelines.runs.results import RESULTS
from pipelines.runtime import files, owner, provenance
from pipelines.text import listed

SKIPPED = "skipped.json"  # the images that could not be read, and why
PICTURES = "pictures"

# What killed writers of earlier versions and earlier versions of Ray Train left in a run's folder.
_OLD_LEFTOVERS = (f".{INFO}", "checkpoint_manager_snapshot.json")


class _Info(TypedDict, total=False):
    fingerprint: str
    run_id: str
    page: str
    evaluated: int
    completed: bool
    best: best.Best
    seconds: float


@dataclass(frozen=True)
class RunFolder:
    """Where a run is kept: made once from its configuration or from what a user typed, then passed on.

    A run at a URI has a copy on this disk. `path` is that copy: `refresh` brings it up to date before it is read, and
    `push` sends what was written to it; for an ordinary folder both do nothing. Sent to another node, a RunFolder
    stands for that node's own copy.

    A sweep and a table of runs keep their own record in a folder of the same kind.

    Attributes:
        path: the folder on this disk.
        uri: where it is a copy of; None for an ordinary folder.
    """

    path: Path
    uri: str | None = None

    @classmethod
    def of(cls, config: Config) -> Self:
        """The folder of a run, which need not exist yet.

        Raises:
            ConfigError: `train.name` is no plain name, or none for a URI; `train.storage` is a URI that holds a secret,
                or of a kind that no file system is known for.
        """
        names.check_name(config.train.name, "train.name")
        if storage.is_uri(config.train.storage):
            runs = storage.check(config.train.storage, asked_by="train.storage")
            return cls.at(storage.run_at(runs, config.train.name, asked_by="train.name"))
        return cls(Path(config.train.storage).absolute() / config.train.name)

    @classmethod
    def at(cls, place: str | Path) -> Self:
        """The folder at a path or a URI, or that a copy on this disk stands for."""
        if storage.is_uri(place):
            uri = str(place).rstrip("/")
            return cls(storage.place_of_copy(uri), uri)
        return cls(Path(place), storage.uri_of(Path(place)))

    def __reduce__(self) -> tuple[Callable[[str], RunFolder], tuple[str]]:
        return RunFolder.at, (self.place,)

    @property
    def place(self) -> str:
        """Its path or URI, as others find it."""
        return self.uri or str(self.path)

    def place_of(self, name: str) -> str:
        """The path or URI of a file or checkpoint in it, as others find it."""
        return storage.joined(self.uri, name) if self.uri else str(self.path / name)

    @property
    def config_file(self) -> Path:
        """The configuration, in YAML."""
        return self.path / checkpoint.CONFIG

    @property
    def info_file(self) -> Path:
        """What `read_info` reads; a folder that has it is a run's."""
        return self.path / INFO

    @property
    def results_file(self) -> Path:
        """The numbers of its evaluation (`results.Results`)."""
        return self.path / RESULTS

    @property
    def skipped_file(self) -> Path:
        """The images that could not be read: file -> why."""
        return self.path / SKIPPED

    @property
    def pictures(self) -> Path:
        """The folder of the pictures drawn after its evaluation."""
        return self.path / PICTURES

    @contextmanager
    def owned(self, remedy: str = "wait until it has ended, or choose another train.name") -> Iterator[None]:
        """Be the only process that writes to the run while the block runs; within one thread the blocks may nest.

        On a disk this is a lock of the operating system, which ends with its process; at a URI see `lease`.

        Args:
            remedy: the end of the message if another process owns it.

        Raises:
            InUseError: another process does. One line with its id, its machine, and since when.
            RemoteError: its URI cannot be read or written.
        """
        nested = owner.is_owned(self.path)
        self._make_copy()
        with owner.owned(self.path, remedy=remedy):
            if self.uri is None or nested:
                yield
                return
            with lease.leased(self.uri, self.path, remedy=remedy):
                yield

    def open(self, config: Config, fingerprint: str) -> str:
        """Make the folder of a new run, or make sure that it is this run's: same configuration, same data.

        Returns:
            In what another run of this name differed, which came to no checkpoint and is replaced; "": there was none.

        Raises:
            ConfigError: the name belongs to another run.
            CheckpointError: it has checkpoints, but all are damaged.
            RemoteError: its URI cannot be read or written.
        """
        self.refresh()
        self._check_kind(config)
        self.sweep()
        last = self.latest()
        if last is None and (faults := checkpoint.damaged(self.path)):
            raise checkpoint.CheckpointError(
                f"{self.path}: no checkpoint to go on from ({faults}); copy one back, remove the folder to begin anew, "
                "or choose another train.name"
            )
        if replaced := self._replaced(last, config, fingerprint):
            for noted in (self.info_file, self.skipped_file):
                noted.unlink(missing_ok=True)
        new = not self.config_file.exists() and last is None
        self._make_copy()
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_text(self.config_file, config.dumps())
        if new:
            provenance.mark(self.path)
        self.push(self.config_file)  # first: run.json alone would be that of a table, a study or a sweep
        self.write_info(fingerprint=fingerprint)
        return replaced

    def check(self, config: Config, fingerprint: str, another: str = "another train.name") -> None:
        """Make sure, without writing anything, that `open` would accept this run.

        Args:
            another: what the message advises to choose.

        Raises:
            ConfigError: the name belongs to another run, or to a table, a study or a sweep.
        """
        self._check_kind(config)
        self._replaced(self.latest(), config, fingerprint, another)

    def check_no_run(self) -> None:
        """Make sure that this folder, of a table, a study or a sweep, is not that of a training run.

        Raises:
            ConfigError: it is.
        """
        if self.config_file.exists():
            raise ConfigError(
                f"--name={self.path.name}: {self.path} is the folder of a training run; choose another --name"
            )

    def _check_kind(self, config: Config) -> None:
        """Make sure that this folder, of a training run, does not hold the record of a table, a study or a sweep."""
        if self.info_file.exists() and not self.config_file.exists() and self.latest() is None:
            raise ConfigError(
                f"train.name={config.train.name}: {self.path} is the folder of a table, a study or a sweep; choose "
                "another train.name"
            )

    def _replaced(
        self, last: Path | None, config: Config, fingerprint: str, another: str = "another train.name"
    ) -> str:
        """In what a run of this name differed that never came to a checkpoint; "": there is none, or it is the same.

        Where config.yaml or run.json is lost, the last checkpoint says what the run was.

        Raises:
            ConfigError: it did come to one, `last`, and was another one.
        """
        if last is None:
            if not self.config_file.exists():
                return ""
            changed = configs.load(self.config_file).differences(config)
            differing = [f"{key}={before}" for key, (before, _) in changed.items()]
            if self.known_fingerprint() not in ("", fingerprint):
                differing.append("other data")
            return listed(differing, 4)
        saved = configs.load(self.config_file if self.config_file.exists() else last / checkpoint.CONFIG)
        for key, (before, now) in saved.differences(config, "results", "run").items():
            raise ConfigError(
                f"{key}={now}: the run {config.train.name} was started with {before}; choose {another}, or leave the "
                "key as it was to resume that run"
            )
        known = self.known_fingerprint()
        if known not in ("", fingerprint):
            raise ConfigError(
                f"train.name={config.train.name}: that run was trained on other data (fingerprint {known}, now "
                f"{fingerprint}); choose {another}"
            )
        return ""

    def known_fingerprint(self) -> str:
        """That of the images that the run is trained on, from its last checkpoint where run.json is lost; "": unknown.

        Raises:
            ConfigError: see `read_info`.
        """
        known = self.read_info().get("fingerprint")
        if known is None and (last := self.latest()):
            known = checkpoint.meta(last).get("data")
        return str(known or "")

    def read_info(self) -> dict[str, Any]:
        """What is known of the run beside its configuration: fingerprint, run_id, page, evaluated (a step), best.

        completed: whether all that follows its evaluation was done too.
        Of a run of a table or a study also: seconds, that it took in all.

        Raises:
            ConfigError: the file is damaged.
        """
        if not self.info_file.exists():
            return {}
        remedy = "copy it back, or remove it: the run then goes on with a new MLflow run"
        info = parsing.read_json(self.info_file, error=ConfigError, remedy=remedy)
        parsing.shaped(info, _Info, source=self.info_file, error=ConfigError, remedy=remedy)
        return info

    def write_info(self, **entries: Any) -> None:
        """Add to what is known of the run. Raises ConfigError (see `read_info`) and RemoteError."""
        self._make_copy()
        files.write_text(self.info_file, json.dumps({**self.read_info(), **entries}, indent=2))
        self.push(self.info_file)

    def latest(self) -> Path | None:
        """The last complete checkpoint on this disk, to train on from."""
        return checkpoint.latest(self.path)

    def selected(self) -> Path | None:
        """The checkpoint whose weights are the run's model, see `checkpoint.selected`."""
        return checkpoint.selected(self.path)

    def sweep(self) -> list[Path]:
        """Remove what killed writers left; gives the unfinished checkpoints among it.

        A checkpoint that was finished and is damaged stays, in case it can be mended; it does not count.
        """
        for name in _OLD_LEFTOVERS:
            (self.path / name).unlink(missing_ok=True)
        files.sweep(self.path)
        # Its meta.json is written last.
        left = [folder for folder in names.checkpoints(self.path) if not checkpoint.is_finished(folder)]
        left += names.unfinished(self.path)
        for folder in left:
            shutil.rmtree(folder)
        return left

    def prune(self, keep: int, intact: set[str] | None = None) -> None:
        """Remove all but the newest complete checkpoints and the best ones they name, on this disk and at the URI.

        Args:
            keep: how many stay.
            intact: names of checkpoints that this process wrote or has found complete; others that are found so are
                added. Those named are not read again, since the digests of a large one take seconds.

        Raises:
            RemoteError: the URI cannot be read or written.
        """
        known = set() if intact is None else intact

        def is_complete(name: str) -> bool:
            if name not in known and checkpoint.is_complete(self.path / name):
                known.add(name)
            return name in known

        found = [folder.name for folder in names.checkpoints(self.path)]
        for name in names.outdated(
            found, is_complete, keep, lambda kept: best.names_of(checkpoint.meta(self.path / name) for name in kept)
        ):
            shutil.rmtree(self.path / name)
        if self.uri:
            storage.prune(self.uri, keep)

    def refresh(self) -> Self:
        """Bring the copy of a run at a URI up to date: its files, and its newest complete checkpoint.

        Raises:
            RemoteError: it cannot be read.
        """
        if self.uri:
            storage.pull(self.uri, self.path)
        return self

    def _make_copy(self) -> None:
        """Make the folder of a run at a URI before something is written to it."""
        if self.uri:
            storage.copy_of(self.uri)

    def push(self, *paths: Path) -> None:
        """Send files or folders of the copy to the URI. Raises RemoteError."""
        if self.uri:
            storage.push(self.uri, self.path, *paths)

    @contextmanager
    def adding(self, name: str) -> Iterator[Path]:
        """Yield the folder to write a checkpoint to; it counts once the block has ended and it is at the URI too.

        What could not be sent stays in the copy, and `refresh` by the run's next owner sends it.

        Raises:
            OSError: it cannot be written.
            RemoteError: it cannot be sent.
        """
        self._make_copy()
        target = storage.unsent(self.path, name) if self.uri else self.path / name
        # A folder of this name does not count, or training would have resumed from it.
        with files.replacing(target, temporary=self.path / f".{name}") as unfinished:
            yield unfinished
        if self.uri:
            storage.send(self.uri, target, name)


def named(config: Config) -> Config:
    """The configuration with a run name: its own, or one of the recipe and the time.

    Raises:
        ConfigError: `train.name`, or the recipe's name in its place, is no plain name.
    """
    if config.train.name:
        names.check_name(config.train.name, "train.name")
        return config
    if config.recipe:
        names.check_name(config.recipe, "recipe")
    return config.replace({"train.name": f"{config.recipe or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"})


def runs_folder(config: Config, *, what: str) -> Path:
    """The folder of all runs, for what writes to folders only.

    Args:
        what: that writes there, for the message: "a sweep".

    Raises:
        ConfigError: `train.storage` is a URI.
    """
    if storage.is_uri(config.train.storage):
        raise ConfigError(
            f"train.storage={config.train.storage}: {what} writes to folders only; mount it on every node, and give "
            "that path"
        )
    return Path(config.train.storage).absolute()

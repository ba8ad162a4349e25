"""Every file that is read may be a stranger's: each case ends in success, or in one line of ours that names the file.

The cases are drawn by hypothesis, the same ones at each run. `make test-long` draws many more. The counts are printed
after the last test of this file.
"""

from __future__ import annotations

import gzip
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cluster import nodes
from d2sm.models import ESPNet
from pipelines import config as configs
from pipelines import registry
from pipelines.comparison import render
from pipelines.comparison.report import tables
from pipelines.comparison.rows import read_rows
from pipelines.config import Config
from pipelines.data import images, manifest, shards
from pipelines.networks import segmenters
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import RESULTS, Results
from pipelines.scenes import writing
from pipelines.text import one_line
from pipelines.tracking import outbox, store
from tests.helpers.finished_runs import results, write_run
from tests.helpers.hostile import NUMBERS, TEXTS, YAML_TEXTS, Change, changed_bytes, json_changes, yaml_changes
from tuning import space, trial, trials

FIXTURES = Path(__file__).parent / "fixtures/57e4321"
OURS = ("d2sm", "pipelines", "tuning", "cluster")
EXAMPLES = 50  # of each kind
SECONDS = 5.0  # of one case, on a busy machine; an alias bomb took 21
MEMORY = 2**30  # bytes that the whole process may grow by; that bomb took 3.8 GB


@dataclass
class Tally:
    """What was tried of a kind: cases, how many were refused, seconds in all, and of the slowest case."""

    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


TALLIES: dict[str, Tally] = {}


@pytest.fixture(scope="module", autouse=True)
def counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the counts after the last test."""
    yield
    lines = [
        f"fuzzed {name:<22} {tally.cases:6} cases, {tally.refused:6} refused in one line, {tally.seconds:6.1f} s "
        f"(slowest {tally.slowest:.2f} s)"
        for name, tally in sorted(TALLIES.items())
    ]
    cases, seconds = sum(t.cases for t in TALLIES.values()), sum(t.seconds for t in TALLIES.values())
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # else pytest shows it beside a failure only
        print("", *lines, f"fuzzed {len(TALLIES)} kinds, {cases} cases, {seconds:.0f} s", sep="\n", flush=True)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        source: writes a valid file into an empty folder; gives the file.
        read: reads it, as the verbs do, and uses what was read.
        changes: what is done to its content.
        named: part of every message: the file's name, or that of its folder; None: the file's whole path.
    """

    source: Callable[[Path], Path]
    read: Callable[[Path], object]
    changes: st.SearchStrategy[Change] = field(default_factory=changed_bytes)
    named: str | None = None


def copied(below: str, *, without: str = "") -> Callable[[Path], Path]:
    """A file of the fixtures, copied with the folder that it is in, but for one file, whose digests would tell."""

    def copy(folder: Path) -> Path:
        source = FIXTURES / below
        copy = folder / source.parent.name
        shutil.copytree(source.parent, copy)
        if without:
            (copy / without).unlink()
        return copy / source.name

    return copy


def run(file: str) -> Callable[[Path], Path]:
    """A finished run; one of its files."""

    def write(folder: Path) -> Path:
        config = Config().replace({"recipe": "ffdnet_l1_cpu", "data.root": "/data"})
        written = write_run(folder / "run", config, results())
        RunFolder.at(written).write_info(run_id="abc", page="#/x", evaluated=8)
        step = written / checkpoint.name_of(8)
        (step / checkpoint.META).write_text((step / checkpoint.META).read_text())
        return step / file if (step / file).exists() else written / file

    return write


def text(content: str, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def segmenter(folder: Path) -> Path:
    network = ESPNet(p=1, q=1, classes=19)
    save_file(network.state_dict(), folder / "small.safetensors", {"p": "1", "q": "1", "classes": "19"})
    return folder / "small.safetensors"


def pickled(folder: Path) -> Path:
    torch.save(ESPNet(classes=20, p=2, q=8, shallow="conv").state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def compare(path: Path) -> None:
    """Read the run that a file is of as `table` and `report` do."""
    folder = next(parent for parent in path.parents if parent.name == "run")
    rows = read_rows([folder])
    render.document(rows)
    render.text(rows)
    tables.table(rows)
    for level in rows[0].runs[0].results.restored:
        tables.bars(rows, level)


def read_checkpoint(path: Path) -> None:
    folder = path.parent
    checkpoint.latest(folder.parent)
    checkpoint.is_of(folder, "x")
    checkpoint.log(folder)
    RunFolder.at(folder.parent).latest()
    checkpoint.resolve(folder.parent)


def read_set(path: Path) -> None:
    """All items of a prepared set, and the pixels of the first."""
    found = manifest.items(path.parent, "train", layout="cityscapes", labels="optional")
    for where in found[0][1:4]:
        if where:
            stored = shards.open_stored(where)
            assert stored is not None
            stored[:, :]


def read_shard(path: Path) -> None:
    for column in ("image", "label"):
        where = shards.place(path, column, 0)
        stored = shards.open_stored(where)
        assert stored is not None
        stored[:, :]
        shards.source_bytes(where)


def check_shard(path: Path) -> None:
    """As `prepare` does: it says whether the shard is whole."""
    item = {"name": "x", "height": 1, "width": 1, "image": None, "label": None, "noisy": None}
    shards.is_whole(path, [item])


def read_space(path: Path) -> None:
    found = space.load(str(path))
    space.check(found)
    space.draw(found, 3, 0, lambda point: None)


def read_trials(path: Path) -> None:
    found = trials.load(path.parent)
    trials.text(found, [], ["psnr.sigma25"])


def read_nodes(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2SM_CLUSTER", str(path))
        nodes.read()


def read_results(path: Path) -> None:
    found = Results.load(path)
    found.table()
    found.line()
    found.flat()


(BUNDLE,) = (str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("storage/mlartifacts/**/model.safetensors"))
(IMAGE,) = (str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("scenes/leftImg8bit/val/*/*.png"))
(LABELS,) = (str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("scenes/gtFine/val/*/*.png"))
NAME = "step-00000005"
STEP = f"storage/d2sm/{NAME}"
STATE = (
    '{"mark": "d2sm-0123abcd", "address": "127.0.0.1:6379", "dashboard": "http://127.0.0.1:8265", "temp": '
    '"/tmp/d2sm-0123abcd-x", "nodes": 3, "sessions": [4194305], "boot": ""}'
)
UNSENT = (
    '{"kind": "metric", "key": "loss", "value": 0.5, "step": 3, "timestamp": 1}\n'
    '{"kind": "tag", "key": "a", "value": "b"}\n{"kind": "artifact", "path": "/x/mlflow-unsent/1/a", "folder": ""}\n'
)
SPACE = "loss.queue_size: [256, 1024]\ntrain.lr: {low: 0.001, high: 0.1, log: true}\nloss.l1: [0.0, 1.0]\n"
SCENES = '{"version": 1, "train": 1, "val": 1, "height": 96, "width": 192, "seed": 0}'

KINDS: dict[str, Kind] = {
    "config.yaml": Kind(copied("storage/d2sm/config.yaml"), configs.load, yaml_changes()),
    "meta.json": Kind(copied(f"{STEP}/meta.json"), read_checkpoint, json_changes(), named=NAME),
    "log.json": Kind(
        copied("storage/gan/step-00000005/log.json"), read_checkpoint, json_changes(), named="step-00000005"
    ),
    "model.safetensors": Kind(copied(BUNDLE, without="meta.json"), lambda path: checkpoint.load_model(path.parent)),
    "state.pt": Kind(copied(f"{STEP}/state.pt", without="meta.json"), lambda path: checkpoint.load_state(path.parent)),
    "run.json": Kind(run("run.json"), compare, json_changes(), named="run"),
    "results.json": Kind(run(RESULTS), read_results, json_changes()),
    "results.json compared": Kind(run(RESULTS), compare, json_changes(), named="run"),
    "meta.json compared": Kind(run("meta.json"), compare, json_changes(), named="run"),
    "prepared.json": Kind(copied("prepared/prepared.json"), read_set, json_changes(), named="prepared"),
    "shard": Kind(copied("prepared/train/00000.arrow"), read_shard),
    "shard checked": Kind(copied("prepared/train/00000.arrow"), check_shard),
    "space.yaml": Kind(text(SPACE, "space.yaml"), read_space, yaml_changes(), named=""),
    "sweep.json": Kind(copied("storage/sweep/sweep.json"), lambda path: trial.settings_of(path.parent), json_changes()),
    "trials.json": Kind(copied("storage/sweep/trials.json"), read_trials, json_changes()),
    "scenes.json": Kind(text(SCENES, "scenes.json"), writing._read, json_changes()),
    "mlflow-unsent.jsonl": Kind(text(UNSENT, "mlflow-unsent.jsonl"), outbox._unsent),
    "cluster.json": Kind(text(STATE, "cluster.json"), read_nodes, json_changes()),
    "image": Kind(copied(IMAGE), lambda path: (images.size_of(path), images.read_rgb(path))),
    "labels": Kind(copied(LABELS), images.read_labels),
    "segmenter.safetensors": Kind(segmenter, lambda path: segmenters.load("espnet-scenes", weights=path)),
    "segmenter.pth": Kind(pickled, lambda path: segmenters.load("espnet-cityscapes", weights=path)),
}


def ours(error: BaseException, named: str) -> str:
    """Why an error is not one line of ours that names a file; "" if it is."""
    kind = type(error)
    if not isinstance(error, (ValueError, OSError)):
        return f"the command line shows a traceback of {kind.__name__}"
    if kind.__module__.split(".")[0] not in OURS and not (isinstance(error, OSError) and error.filename):
        return f"{kind.__name__} is none of ours"
    if named not in str(error):
        return f"does not name {named}"
    if not one_line(error, None).isprintable():  # as the command line shows it
        return "is not one line that can be printed"
    return ""


def judge(name: str, named: str, case: Callable[[], object]) -> None:
    """Try one case, and count it."""
    tally, since = TALLIES.setdefault(name, Tally()), time.process_time()
    try:
        case()
    except Exception as error:
        tally.refused += 1
        if why := ours(error, named):
            pytest.fail(f"{why}: {type(error).__name__}: {str(error)[:300]}")
    finally:
        took = time.process_time() - since
        tally.cases, tally.seconds = tally.cases + 1, tally.seconds + took
        tally.slowest = max(tally.slowest, took)
    assert took < SECONDS


def drawn(examples: int) -> Callable[[Any], Any]:
    """The same cases at each run."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


def fuzz(name: str, folder: Path, examples: int) -> None:
    kind = KINDS[name]
    path = kind.source(folder)
    original = path.read_bytes()
    kind.read(path)  # as it is
    named = str(path) if kind.named is None else kind.named
    before = peak()

    @drawn(examples)
    @given(kind.changes)
    def case(change: Change) -> None:
        path.write_bytes(change(original))
        judge(name, named, lambda: kind.read(path))

    case()
    assert peak() - before < MEMORY


def peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


CHARACTERS = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20))


def test_overrides() -> None:
    """Words of the command line: key=value, any key or a real one."""
    words = st.one_of(CHARACTERS, st.sampled_from(list(configs.keys())), st.sampled_from(["train", "loss", "data.x"]))
    values = st.one_of(CHARACTERS, st.sampled_from(YAML_TEXTS), st.sampled_from(NUMBERS).map(_digits))

    @drawn(EXAMPLES)
    @given(words, values)
    def case(key: str, value: str) -> None:
        judge("override", "", lambda: Config().replace(configs.parse([f"{key}={value}"])).dumps())

    case()


def _digits(number: float) -> str:
    return "9" * 5000 if isinstance(number, int) and abs(number) > 10**4000 else repr(number)


SCHEMES = ("sqlite", "http", "https", "postgresql+x", "file", "s3", "sftp+x", "", "models", "memory", "\x1b", "a b")


def test_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stores, models and folders. Where one is opened, s3 is left out: it would be looked up in the network."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rest = st.lists(st.one_of(CHARACTERS, st.sampled_from(["/", "?", "#", "@", ":", "[", "]", "%", "*"])), max_size=5)
    parts = st.tuples(st.sampled_from(SCHEMES), st.sampled_from(["://", ":///", ":", "//", ""]), rest.map("".join))

    @drawn(EXAMPLES)
    @given(parts.map("".join))
    def case(uri: str) -> None:
        def read() -> None:
            config = Config().replace({"tracking.uri": uri})
            store.sqlite_file(store.uri_of(config))
            store.ui_command(store.uri_of(config))

        judge("tracking.uri", "", read)
        judge("model", "", lambda: registry.model_folder(uri, uri=f"sqlite:///{tmp_path}/none.db"))

        if not uri.startswith("s3"):
            judge(
                "train.storage", "", lambda: RunFolder.of(Config().replace({"train.storage": uri, "train.name": "x"}))
            )

    case()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connection = sqlite3.connect(path)
    connection.executescript(gzip.decompress((FIXTURES / "mlflow.sql.gz").read_bytes()).decode())
    connection.close()
    return path


def damaged_stores() -> dict[str, Callable[[Path], object]]:
    """What may happen to the file of a store."""

    def execute(statement: str) -> Callable[[Path], object]:
        def changed(path: Path) -> None:
            connection = sqlite3.connect(path)
            connection.execute(statement)
            connection.commit()
            connection.close()

        return changed

    def overwritten(path: Path) -> None:
        content = bytearray(path.read_bytes())
        for at in range(100, len(content), 997):
            content[at] ^= 0xFF
        path.write_bytes(bytes(content))

    return {
        "no database": lambda path: path.write_bytes(b"no database" * 1000),
        "cut short": lambda path: path.write_bytes(path.read_bytes()[:5000]),
        "bytes changed": overwritten,
        "a folder": lambda path: (path.unlink(), path.mkdir()),
        "another version": execute("UPDATE alembic_version SET version_num = 'ffff'"),
        "a table is gone": execute("DROP TABLE registered_models"),
        "a column is gone": execute("ALTER TABLE model_versions RENAME COLUMN version TO v"),
        "another type": execute("UPDATE registered_models SET creation_time = 'x'"),
    }


@pytest.mark.parametrize("how", damaged_stores())
def test_a_damaged_store(how: str, database: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copyfile(database, path)
    damaged_stores()[how](path)
    uri = f"sqlite:///{path}"
    for read in (
        lambda: registry.models(uri),
        lambda: registry.lookup("d2sm-fixture@champion", uri=uri),
        lambda: store.prepare(uri),
    ):
        judge("mlflow.db", str(path), read)
    assert "Traceback" not in capfd.readouterr().err  # MLflow logs what it raises


@pytest.mark.parametrize("name", KINDS)
def test_files(name: str, tmp_path: Path) -> None:
    fuzz(name, tmp_path, EXAMPLES)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_many_files(name: str, tmp_path: Path) -> None:
    fuzz(name, tmp_path, 20 * EXAMPLES)

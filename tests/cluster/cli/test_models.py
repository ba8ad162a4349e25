"""The verbs of registered models, as their user types them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.cli.main import main
from pipelines import registry, tracking
from pipelines.config import Config
from pipelines.experiment import register
from pipelines.recipes import recipe
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import Results
from tests.helpers.finished_runs import results, write_run
from tests.helpers.stores import new_store


@dataclass(frozen=True)
class Trained:
    """A finished run with its MLflow run in the database beside it."""

    folder: Path
    uri: str
    run_id: str
    config: Config
    results: Results


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    storage = tmp_path_factory.mktemp("runs")
    uri = new_store(storage)
    folder = write_run(storage / "first", recipe("ffdnet_l1_cpu").replace({"train.storage": str(storage)}), results())
    config = checkpoint.load_model(folder / checkpoint.name_of(8))[1]
    with tracking.open_run(config, run_dir=folder, tags={}) as run:
        run.results(results().flat())
    RunFolder.at(folder).write_info(run_id=run.id, page=run.page, evaluated=8)
    return Trained(folder, uri, run.id, config, results())


def test_a_run_is_registered_as_at_the_end_of_its_training(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    last = trained.folder / checkpoint.name_of(8)
    named = trained.config.replace({"tracking.register_as": "net", "tracking.alias": "champion"})
    with tracking.open_run(trained.config, run_dir=trained.folder, tags={}, run_id=trained.run_id) as run:
        wanted = register(last, named, trained.results, run)
    assert main(["models", "register", str(trained.folder), "--as", "net", "--alias", "champion"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "registered net version 2 champion"
    found = registry.lookup("net@champion", uri=trained.uri)
    assert (found.version, found.run_id, dict(found.tags)) == (2, trained.run_id, dict(wanted.tags))
    assert found.tags["psnr.sigma25"] == "27" and found.tags["segmenter"] == "espnet-camvid"


def test_a_store_that_does_not_hold_the_run(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/other.db"
    with tracking.open_run(trained.config.replace({"tracking.uri": uri}), run_dir=tmp_path / "x", tags={}):
        pass
    assert main(["models", "register", str(trained.folder), "--as", "net", "--tracking-uri", uri]) == 0
    assert "does not hold the run" in capsys.readouterr().out
    assert registry.lookup("net", uri=uri).run_id == ""


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "", " ", "a\nb"])
def test_a_name_that_the_registry_refuses(trained: Trained, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "register", str(trained.folder), "--as", name]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2sm: ")]
    rule = "a name holds no /, @ or :, one kind of quotes at most, and at most 256 characters"
    assert line == f"d2sm: --as={name!r}: {rule}; give one such as d2sm-ffdnet"


def test_what_is_no_finished_run(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        tmp_path / "none": "no run with a complete checkpoint there",
        write_run(tmp_path / "half", trained.config, results(), final=False): "train it to its last step first",
        write_run(tmp_path / "bare", trained.config): "run `d2sm evaluate",
    }
    for folder, message in cases.items():
        assert main(["models", "register", str(folder), "--as", "net"]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2sm: ")]
        assert message in line and str(tmp_path) in line
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize("width", [60, 100])
def test_compare_shows_what_differs_within_the_width(
    trained: Trained, tmp_path: Path, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    uri = f"sqlite:///{tmp_path}/store.db"
    last = trained.folder / checkpoint.name_of(8)
    for psnr, split in ((27.0, "val"), (28.5, "another split with a long name " * 3)):
        numbers = registry.numbers_of(results(psnr)) | {"split": split}
        registry.register(last, name="net", run_id=None, uri=uri, results=numbers)
    assert main(["models", "compare", "net/1", "net/2", "--tracking-uri", uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["net/1", "net/2", "difference"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:-1] if not line.startswith(" ")}
    assert rows["psnr.sigma25"] == ["27", "28.5", "+1.5"] and rows["split"][:2] == ["val", "another"]
    assert "recipe" not in rows and lines[-1].endswith(" other tags are the same")
    words = " ".join(line.strip() for line in lines)
    assert words.count("long") == 3  # wrapped, not cut


def test_compare_with_itself(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/store.db"
    registry.register(trained.folder / checkpoint.name_of(8), name="net", run_id=None, uri=uri)
    assert main(["models", "compare", "net/1", "net/1", "--tracking-uri", uri]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "tags" in line]
    assert line.endswith("other tags are the same")

"""A stored configuration imports nothing that its user did not name, whichever verb reads it."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.cli.arguments import for_cluster
from cluster.cli.main import main
from pipelines import config as configs
from pipelines.comparison.photographs import compared_photographs
from pipelines.comparison.rows import read_rows
from pipelines.config import Config
from pipelines.evaluate import evaluate
from pipelines.registry import open_model, register
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.runs.results import CONVENTION, Results, Score
from pipelines.runs.trust import TrustError, check_config
from pipelines.runtime import provenance
from tests.conftest import tiny_config
from tests.helpers.checkpoints import bundle_of
from tests.helpers.finished_runs import write_run
from tuning.run import run as run_sweep
from tuning.sweep import Sweep

STRANGE = "strange_segmenter:build"


@pytest.fixture(autouse=True)
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the current folder, which is on the path; gives the file that it makes when it is imported."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    ran = tmp_path / "ran"
    text = f"open({str(ran)!r}, 'w')\nfrom tests.helpers.segmenters import segmenter as build\n"
    (tmp_path / "strange_segmenter.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield ran
    sys.modules.pop("strange_segmenter", None)


@pytest.fixture
def config(scenes_root: Path, tmp_path: Path) -> Config:
    return tiny_config(
        scenes_root, tmp_path, train__name="run", evaluate__actors=0, evaluate__limit=1, evaluate__sigmas=[25],
        evaluate__segmenter=STRANGE,
    )  # fmt: skip


def written(folder: Path, config: Config) -> Path:
    """A finished run as somebody else left it."""
    score = Score(30.0, 0.9, 0.5, {})
    judge = config.evaluate.segmenter or ""
    results = Results(1, "val", "x", judge, CONVENTION, {"25": score}, {"25": score}, score)
    return write_run(folder, config, results)


@pytest.fixture
def run(config: Config, tmp_path: Path) -> Path:
    """The folder of a stranger's finished run."""
    return written(tmp_path / "run", config)


Words = Callable[[Path], list[str]]
VERBS: dict[str, Words] = {
    "evaluate a run": lambda run: ["evaluate", str(run)],
    "evaluate a checkpoint": lambda run: ["evaluate", str(checkpoint.resolve(run))],
    "evaluate a URI": lambda run: ["evaluate", run.as_uri()],
    "evaluate with other keys": lambda run: [
        "evaluate",
        str(run),
        "evaluate.segmenter_weights=x",
        "loss.features=a:b",
    ],
    "report": lambda run: ["report", str(run)],
    "figures": lambda run: ["figures", str(run), "--only", "comparison"],
    "train": lambda run: ["train", "--config", str(run / "config.yaml")],
    "tune": lambda run: ["tune", "--config", str(run / "config.yaml"), "--space", "weights", "--trials", "1"],
    "check": lambda run: ["check", "--config", str(run / "config.yaml")],
    "register": lambda run: ["models", "register", str(run), "--as", "net"],
    "submit": lambda run: ["submit", "--", "train", "--config", str(run / "config.yaml")],
}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "register"])
def test_no_verb_imports_it(verb: str, run: Path, strange: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(VERBS[verb](run)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2sm: ")]
    assert line.startswith(f"d2sm: evaluate.segmenter={STRANGE}: ") and line.count("--trust") == 1
    assert str(run) in line or verb == "evaluate a URI"  # its copy on this disk is named
    assert not strange.exists()


def test_verbs_that_need_no_segmenter_read_the_model(run: Path, config: Config, tmp_path: Path, strange: Path) -> None:
    assert not open_model(run).training
    uri = f"sqlite:///{tmp_path}/store.db"
    register(checkpoint.resolve(run), name="strange", run_id=None, uri=uri)
    assert not open_model("models:/strange", uri=uri).training
    assert not strange.exists()


def test_python_imports_it_only_when_told_to(run: Path, config: Config, strange: Path) -> None:
    with pytest.raises(TrustError, match=f"^evaluate.segmenter={STRANGE}: .*trust=True"):
        evaluate(run, quiet=True)
    with pytest.raises(TrustError, match=f"^evaluate.segmenter={STRANGE}: "):
        compared_photographs(read_rows([run]), count=1)
    assert not strange.exists()
    assert evaluate(run, trust=True, quiet=True).segmenter == STRANGE
    assert strange.exists()
    assert evaluate(run, config, quiet=True).segmenter == STRANGE  # the caller's own configuration
    assert compared_photographs(read_rows([run], trust=True), count=1)[0].classes


@pytest.mark.parametrize("words", [["--trust"], [f"evaluate.segmenter={STRANGE}"]])
def test_a_user_who_names_it_or_trusts_the_folder(run: Path, strange: Path, words: list[str], tmp_path: Path) -> None:
    assert main(["evaluate", str(run), "--quiet", "--out", str(tmp_path / "out.json"), *words]) == 0
    assert strange.exists()


def test_ones_own_run_is_trusted(config: Config, tmp_path: Path, strange: Path) -> None:
    """Whoever made it here named the segmenter then."""
    RunFolder.of(config).open(config, "fingerprint")
    bundle_of(tmp_path / "run" / checkpoint.name_of(0), config)
    assert main(["evaluate", str(tmp_path / "run"), "--quiet", "--out", str(tmp_path / "out.json")]) == 0
    assert strange.exists()
    RunFolder.of(config).open(config, "fingerprint")  # resumed
    assert provenance.made_here(tmp_path / "run")


def test_a_strangers_run_is_not_ones_own_for_being_resumed(run: Path) -> None:
    config = configs.load(run / checkpoint.CONFIG)
    RunFolder.of(config).open(config, "fingerprint")
    assert not provenance.made_here(run)


def test_what_is_trusted_here_is_trusted_by_the_job(config: Config, tmp_path: Path) -> None:
    for name, wanted in ((STRANGE, ["--trust"]), (None, [])):
        file = tmp_path / "mine.yaml"
        config.replace({"evaluate.segmenter": name}).save(file)
        given = [f"evaluate.segmenter={name}"] if name else []
        words, _ = for_cluster(["train", "--config", str(file), *given])
        assert [word for word in words if word == "--trust"] == wanted


SERVER = "http://127.0.0.1:9"  # where nothing listens
READING = ("evaluate a run", "report", "figures", "train", "tune", "check", "register")


@pytest.mark.parametrize("verb", READING)
def test_no_server_is_sent_a_password_on_a_configurations_word(
    verb: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t")
    run = written(tmp_path / "run", config.replace({"tracking.uri": SERVER, "evaluate.segmenter": None}))
    assert main(VERBS[verb](run)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2sm: ")]
    assert line.startswith(f"d2sm: tracking.uri={SERVER}: ") and "your MLFLOW_TRACKING_TOKEN" in line
    assert "s3cr3t" not in line and line.count("--trust") == 1


def test_a_server_in_run_json_is_not_sent_one_either(
    run: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t")
    RunFolder.at(run).write_info(store=SERVER)
    for place in (run, checkpoint.resolve(run)):
        with pytest.raises(TrustError, match=f"^tracking.uri={SERVER}: .*MLFLOW_TRACKING_TOKEN"):
            check_config(config, place, given=["evaluate.segmenter", "tracking.uri"])
    named = config.replace({"tracking.uri": SERVER})
    check_config(named, run, given=["evaluate.segmenter", "tracking.uri"])


def test_a_server_that_the_user_named(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t")
    named = config.replace({"tracking.uri": SERVER, "evaluate.segmenter": None})
    with pytest.raises(TrustError, match=f"^tracking.uri={SERVER}: .*MLFLOW_TRACKING_PASSWORD"):
        check_config(named, tmp_path)
    check_config(named, tmp_path, given=["tracking.uri"])
    check_config(named, tmp_path, trust=True)
    check_config(config.replace({"evaluate.segmenter": None}), tmp_path)  # a file of the user's own disk
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{SERVER}/")
    check_config(named, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    check_config(named, tmp_path)  # there is nothing to send


@pytest.mark.parametrize("verb", ["figures", "report"])
@pytest.mark.parametrize(
    "theirs",
    [{"tracking.uri": SERVER}, {"loss.weight": 1.0, "loss.features": "strange_segmenter:build"}],
    ids=["server", "import"],
)
def test_every_compared_run_is_asked_not_only_the_first(
    verb: str,
    theirs: dict[str, object],
    config: Config,
    tmp_path: Path,
    strange: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first run was made here, and needs no trust: L1 alone, so the features shown are those of the second."""
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cr3t")
    plain = config.replace({"evaluate.segmenter": None, "loss.weight": 0.0})
    mine = written(tmp_path / "mine", plain)
    provenance.mark(mine)
    run = written(tmp_path / "run", plain.replace({"train.lr": 0.5, **theirs}))
    words = VERBS[verb](run)
    at = words.index(str(run))
    assert main([*words[:at], str(mine), *words[at:]]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("d2sm: ")]
    key = next(key for key in reversed(theirs))
    assert line.startswith(f"d2sm: {key}={theirs[key]}: ") and str(run) in line and "s3cr3t" not in line
    assert not strange.exists()


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["a stranger's", "changed"])
def test_a_sweep_of_a_stranger_is_not_unpickled(kind: str, config: Config, tmp_path: Path, strange: Path) -> None:
    sweep = Sweep(
        config.replace({"evaluate.segmenter": None}), {"train.lr": [1e-3]}, "s", search="grid", scheduler="none",
        metrics=("loss.l1",), reports=1,
    )  # fmt: skip
    tune = tmp_path / "s" / "tune"
    tune.mkdir(parents=True)
    if kind == "changed":
        (tune / "tuner.pkl").write_bytes(b"")
        provenance.mark(tune, "tuner.pkl")
    (tune / "tuner.pkl").write_bytes(pickle.dumps(Planted(strange)))
    with pytest.raises(TrustError, match=r"^name=s: .*s/tune holds pickles.*--trust.*another --name"):
        run_sweep(sweep, quiet=True)
    assert not strange.exists()


def test_the_keys_that_may_name_code() -> None:
    """Whatever else is imported for a configuration is an entry of a list in d2sm, not a name in a file."""
    assert configs.keys_with_code() == (
        "degrade.chain", "model.name", "loss.features", "loss.segmenter", "evaluate.levels", "evaluate.segmenter",
        "evaluate.segmenters",
    )  # fmt: skip


@pytest.mark.parametrize(
    "key, value", [("degrade.chain", f"blur:2+{STRANGE}:1"), ("evaluate.levels", ["jpeg:10", f"{STRANGE}:1"])]
)
def test_a_degradation_of_a_stranger_is_not_imported(
    key: str, value: object, config: Config, tmp_path: Path, strange: Path
) -> None:
    asked = Config().replace({key: value, "data.root": config.data.root})
    shown = value if isinstance(value, str) else f"jpeg:10, {STRANGE}:1"
    with pytest.raises(TrustError, match=rf"^{key}=.*--trust") as caught:
        check_config(asked, tmp_path / "run")
    assert str(shown) in str(caught.value) and not strange.exists()
    check_config(asked, tmp_path / "run", given=[key])
    check_config(asked, tmp_path / "run", trust=True)


def test_degradations_of_the_list_need_no_trust(tmp_path: Path) -> None:
    check_config(Config().replace({"degrade.chain": "blur:1..2+jpeg:10..60"}), tmp_path / "run")
    check_config(Config().replace({"evaluate.levels": ["jpeg:10", "blur:2+noise:10"]}), tmp_path / "run")

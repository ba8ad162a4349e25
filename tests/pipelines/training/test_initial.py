"""`train.init`: a run starts from other weights, which are found, compared, recorded and brought to the workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.cli.arguments import for_cluster
from d2sm.weights import fingerprint
from pipelines import registry
from pipelines.check import NotReady, check
from pipelines.comparison.rows import RunsError, label, read_rows
from pipelines.config import Config, ConfigError
from pipelines.experiment import resolved
from pipelines.networks.models import build
from pipelines.runs import checkpoint
from pipelines.runs.folder import RunFolder
from pipelines.tracking import store
from pipelines.train import Trained, fit
from pipelines.training import initial
from pipelines.training.state import TrainState
from tests.conftest import tiny_config
from tests.helpers.checkpoints import CONFIG, bundle_of
from tests.helpers.finished_runs import results, write_run
from tests.helpers.published import convolutions, write_kair
from tests.helpers.stores import new_store
from tests.helpers.training_steps import CPU
from tuning.sweep import Sweep
from tuning.sweep import resolved as resolved_sweep

SMALL = {"model.width": 4, "model.depth": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one that is finished, `first`, its model registered as net/1, net@best."""
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "first", Config().replace({"train.storage": str(folder)}), results(), perturbed_by="first")
    registry.register(
        folder / "first" / checkpoint.name_of(8),
        name="net",
        run_id=None,
        uri=new_store(folder),
        alias="best",
    )
    return folder


def weights_of(runs: Path) -> dict[str, torch.Tensor]:
    return load_file(runs / "first" / checkpoint.name_of(8) / "model.safetensors")


def starting(runs: Path, init: str, **changes: Any) -> Config:
    keys = {"train.init": init, "train.storage": str(runs), "tracking.uri": f"sqlite:///{runs}/mlflow.db", **SMALL}
    return Config().replace(keys | {key.replace("__", "."): value for key, value in changes.items()})


def test_what_can_be_started_from(runs: Path, tmp_path: Path) -> None:
    """A run by name, folder or checkpoint, a registered model, and files: one and the same weights."""
    last, weights = runs / "first" / checkpoint.name_of(8), weights_of(runs)
    save_file(weights, tmp_path / "own.safetensors")
    torch.save(weights, tmp_path / "own.pth")
    kair = {name.replace("body", "model"): tensor for name, tensor in weights.items()}
    torch.save(kair, tmp_path / "kair.pth")
    files = {str(tmp_path / name): str(tmp_path / name) for name in ("own.safetensors", "own.pth", "kair.pth")}
    names = dict.fromkeys(["first", str(runs / "first"), str(last)], str(last))
    models = dict.fromkeys(["models:/net@best", "net@best", "models:/net/1", "models:/net"], "models:/net/1")
    for given, source in {**files, **names, **models}.items():
        found = initial.read(starting(runs, given))
        assert (found.source, found.fingerprint) == (source, fingerprint(weights)), given
    assert registry.lookup("net", uri=f"sqlite:///{runs}/mlflow.db").tags["weights.fingerprint"] == fingerprint(weights)


def test_a_file_comes_before_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = bundle_of(tmp_path / "bundle", CONFIG) / checkpoint.MODEL
    file.rename("net@2x.safetensors")
    config = CONFIG.replace({"train.init": "net@2x.safetensors"})
    assert initial.read(config).source == str(tmp_path / "net@2x.safetensors")


def test_what_does_not_fit_is_said_in_one_line(runs: Path, tmp_path: Path) -> None:
    """The first key, both shapes, the remedy."""
    (tmp_path / "text.pth").write_text("no weights")
    shapes = r"body\.0\.bias is \(4,\) there and \(8,\) here \(and 4 more\)"
    cases: dict[str, tuple[Config, str]] = {
        "width": (starting(runs, "first", model__width=8), f"{shapes}; they fit model.name=ffdnet model.width=4 model"),
        "depth": (starting(runs, "first", model__depth=4), r"body\.4\.bias is \(12,\) there and \(4,\) here"),
        "backbone": (
            starting(runs, "first", model__name="sadnet", model__width=96, model__depth=12),
            "model.name=sadnet as",
        ),
        "nothing": (starting(runs, "frist"), r"train.init=frist: no such file, folder, or run in train.storage="),
        "alias": (starting(runs, "models:/net@bset"), r"train.init=models:/net@bset: .*best"),
        "text": (starting(runs, str(tmp_path / "text.pth")), "text.pth: no tensors"),
        "empty": (starting(runs, str(tmp_path)), "no complete checkpoint"),
    }
    for config, why in cases.values():
        with pytest.raises(ConfigError, match=why) as refused:
            initial.read(config)
        assert "\n" not in str(refused.value)


def test_it_is_checked_before_the_run(runs: Path, scenes_root: Path) -> None:
    config = tiny_config(scenes_root, runs, train__init="first", train__lr=1e-3)
    with pytest.raises((ConfigError, NotReady), match=r"train.init=first: .*body\.0\.bias"):
        check(config, evaluates=False)
    told: list[str] = []
    fits = config.replace(SMALL)
    check(fits, evaluates=False, tell=lambda one: told.append(str(one)))
    (line,) = [line for line in told if " init " in line]
    assert fingerprint(weights_of(runs)) in line and "no optimizer state, no feature queues" in line


def test_a_run_keeps_its_own_copy(runs: Path, tmp_path: Path) -> None:
    """Workers read it; a run that began is not changed by what its source becomes."""
    file = write_kair(tmp_path / "kair.pth", convolutions())
    config = starting(tmp_path, str(file), model__width=12, model__depth=4, train__name="new")
    folder = RunFolder.of(config)
    folder.path.mkdir()
    initial.prepare(config, folder)
    entry = json.loads(folder.info_file.read_text())["init"]
    assert (entry["given"], entry["source"]) == (str(file), str(file))
    file.unlink()
    initial.prepare(config, folder)
    weights = initial.load(config, folder)
    assert weights is not None and fingerprint(weights) == entry["fingerprint"]
    with pytest.raises(ConfigError, match="train.init"):
        initial.prepare(config.replace({"train.init": "gone.pth"}), folder)
    save_file({name: 2 * tensor for name, tensor in weights.items()}, folder.path / initial.FILE)
    with pytest.raises(ConfigError, match="not the weights that run.json names"):
        initial.load(config, folder)
    (folder.path / initial.FILE).unlink()
    with pytest.raises(ConfigError, match=r"init.safetensors: No such file.*remove the run's folder"):
        initial.load(config, folder)
    assert initial.load(config.replace({"train.init": ""}), folder) is None


def test_what_a_run_started_from_is_known_from_its_checkpoint_where_run_json_is_lost(tmp_path: Path) -> None:
    config, started_from = Config().replace({"train.init": "net.pth", "train.name": "new"}), "/net.pth (weights 12)"
    folder = RunFolder.at(write_run(tmp_path / "new", config, init=started_from))
    assert initial.note(config, folder) == started_from
    assert initial.note(config.replace({"train.init": ""}), folder) == ""
    folder.write_info(**{initial.ENTRY: {"given": "net.pth", "source": "/net.pth", "fingerprint": "34"}})
    assert initial.note(config, folder) == "/net.pth (weights 34)"


def test_training_starts_with_them(runs: Path) -> None:
    """The network and the EMA; the optimizer is new, and the random generator stands where it does without them."""
    config = starting(runs, "first", train__ema=0.9, loss__weight=0, loss__l1=1)
    plain = TrainState(config, 10, device=CPU)
    drawn = torch.rand(3)
    state = TrainState(config, 10, initial=weights_of(runs), device=CPU)
    assert torch.equal(torch.rand(3), drawn)
    assert fingerprint(state.network.state_dict()) == fingerprint(state.weights()) == fingerprint(weights_of(runs))
    assert fingerprint(plain.weights()) != fingerprint(state.weights())
    assert not state.optimizer.state


def test_other_processes_are_given_what_stays_the_same(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table and a sweep: versions for aliases, a copy in train.storage for a file, absolute paths for runs."""
    monkeypatch.chdir(tmp_path)
    save_file(weights_of(runs), tmp_path / "own.safetensors")
    copy = str(runs / ".init" / f"{fingerprint(weights_of(runs))}.safetensors")
    cases = {"models:/net@best": "models:/net/1", "own.safetensors": copy, "first": str(runs / "first"), "": ""}
    for given, pinned in cases.items():
        assert resolved(starting(runs, given), what="a table").train.init == pinned
    assert fingerprint(load_file(copy)) == fingerprint(weights_of(runs))
    space: dict[str, Any] = {"train.init": list(cases)}
    assert resolved_sweep(Sweep(starting(runs, ""), space, "s", search="grid")).space == {
        "train.init": list(cases.values())
    }


def test_a_job_is_sent_the_file(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    save_file(weights_of(runs), tmp_path / "sub/own.safetensors")
    verb = ["train", "--recipe", "ffdnet_l1", "data.root=/data", "train.storage=/storage"]
    words, files = for_cluster([*verb, "train.init=sub/own.safetensors"])
    assert words == [*verb, "train.init=own.safetensors"] and files == [Path("sub/own.safetensors")]
    for same in ("models:/net@best", "first", "/storage/own.pth", "s3://bucket/runs/first"):
        assert for_cluster([*verb, f"train.init={same}"]) == ([*verb, f"train.init={same}"], [])
    with pytest.raises(ConfigError, match="train.init=sub/gone.pth: a relative path"):
        for_cluster([*verb, "train.init=sub/gone.pth"])


def test_a_table_tells_them_apart(runs: Path, tmp_path: Path) -> None:
    config = starting(tmp_path, "models:/net@best")
    assert "train.init=models:/net@best" in label(config)
    folders = []
    for seed, init in enumerate(["models:/net/1 (weights ab)", "models:/net/2 (weights cd)"]):
        folder = write_run(tmp_path / f"run{seed}", config.replace({"train.seed": seed}), results())
        meta = json.loads((folder / checkpoint.name_of(8) / "meta.json").read_text())
        meta = {key: value for key, value in meta.items() if key != "digest"} | {"init": init}
        (folder / checkpoint.name_of(8) / "meta.json").write_text(json.dumps(meta))
        folders.append(folder)
    assert len(read_rows(folders[:1])) == 1
    with pytest.raises(RunsError, match=r"run1: started from models:/net/2 .*, .*run0 from models:/net/1"):
        read_rows(folders)


def started(root: Path, storage: Path, file: Path) -> Trained:
    """Two steps on two workers, of a length that leaves the weights as they were."""
    config = tiny_config(root, storage, train__init=str(file), train__lr=1e-12, train__max_steps=2, loss__weight=0)
    return fit(config, quiet=True)


def written(file: Path) -> dict[str, torch.Tensor]:
    """Weights of the tiny network, in a file."""
    torch.manual_seed(7)
    network = build(Config().replace({"model.width": 8, "model.depth": 3}).model)
    weights = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in network.state_dict().items()}
    save_file(weights, file)
    return weights


@pytest.mark.slow
def test_a_run_on_two_workers(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    """Its first step starts there; it is recorded everywhere."""
    file = tmp_path / "weights.safetensors"
    weights = written(file)
    done = started(scenes_root, tmp_path, file)
    trained = checkpoint.load_model(done.checkpoint)[0].state_dict()
    assert max(float((trained[name] - weights[name]).abs().max()) for name in weights) < 1e-9
    recorded = f"{file} (weights {fingerprint(weights)})"
    assert checkpoint.meta(done.checkpoint)["init"] == recorded
    run = store.client(done.uri).get_run(done.run_id)
    assert run.data.tags["d2sm.init"] == recorded and run.data.params["train.init"] == str(file)
    with pytest.raises(ConfigError, match="train.init=other: the run tiny was started with"):
        fit(done.config.replace({"train.init": "other"}), quiet=True)


@pytest.mark.long
def test_the_source_may_be_gone_when_the_run_is_resumed(ray_session: None, scenes_root: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    written(file)
    done = started(scenes_root, tmp_path, file)
    file.unlink()
    resumed = fit(done.config.replace({"train.max_steps": None}), quiet=True)
    assert (resumed.step, resumed.run_id) == (6, done.run_id)

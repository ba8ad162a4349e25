"""Checkpoints on disk: whole or not at all, of this model or refused, and never unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from pipelines.config import Config, ConfigError
from pipelines.networks.models import build
from pipelines.runs import checkpoint, integrity
from pipelines.runs.checkpoint import CheckpointError
from pipelines.runs.folder import RunFolder

CONFIG = Config().replace({"model.width": 8, "model.depth": 3})


def write(folder: Path, step: int = 1, config: Config = CONFIG) -> Path:
    torch.manual_seed(step)
    weights = build(config.model).state_dict()
    state = {"model": weights, "queue": torch.arange(5.0), "random": torch.get_rng_state(), "average": None}
    checkpoint.write(folder, weights=weights, state=state, config=config, meta={"step": step})
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the checkpoints of steps 2, 10 and 100."""
    for step in (100, 2, 10):
        write(tmp_path / checkpoint.name_of(step), step)
    return tmp_path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "step-1")
    model, config = checkpoint.load_model(folder)
    assert config == CONFIG
    assert not model.training
    torch.manual_seed(1)
    for name, tensor in build(CONFIG.model).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    state = checkpoint.load_state(folder)
    assert torch.equal(state["queue"], torch.arange(5.0))
    assert state["average"] is None
    assert checkpoint.meta(folder)["step"] == 1


def test_tensors_in_any_memory_layout(tmp_path: Path) -> None:
    """Channels-last weights, as training holds them, are written with their values in place."""
    torch.manual_seed(0)
    model = build(CONFIG.model).to(memory_format=torch.channels_last)
    checkpoint.write(tmp_path / "a", weights=model.state_dict(), state={}, config=CONFIG, meta={})
    loaded = checkpoint.load_model(tmp_path / "a")[0].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_the_latest_is_the_one_of_the_highest_step(run: Path) -> None:
    assert checkpoint.latest(run) == run / "step-00000100"
    assert checkpoint.resolve(run) == run / "step-00000100"
    assert checkpoint.resolve(run / "step-00000002") == run / "step-00000002"


@pytest.mark.parametrize(
    "file", [checkpoint.MODEL, checkpoint.CONFIG, checkpoint.STATE, checkpoint.LOG, checkpoint.META]
)
@pytest.mark.parametrize("how", ["missing", "truncated", "empty"])
def test_a_half_written_one_never_counts(run: Path, file: str, how: str) -> None:
    path = run / "step-00000100" / file
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(data[: len(data) // 2] if how == "truncated" else b"")
    assert not checkpoint.is_complete(run / "step-00000100")
    assert checkpoint.latest(run) == run / "step-00000010"
    # What was finished once is not removed: it may be mended. Without a meta.json it never was.
    unfinished = [run / "step-00000100"] if (file, how) == (checkpoint.META, "missing") else []
    assert RunFolder.at(run).sweep() == unfinished
    left = {"step-00000002", "step-00000010", "step-00000100"} - {path.name for path in unfinished}
    assert {path.name for path in run.iterdir()} == left


def reseal(folder: Path) -> None:
    """Make meta.json agree with the other files, as whoever planted them would."""
    named = (checkpoint.MODEL, checkpoint.CONFIG, checkpoint.STATE, checkpoint.LOG)
    (folder / checkpoint.META).write_text(integrity.sealed({"step": 2}, folder, named))


def flip(path: Path, at: float = 0.5) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.CONFIG, checkpoint.STATE, checkpoint.LOG])
def test_one_flipped_bit_is_found_and_the_older_one_is_used(
    run: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    flip(run / "step-00000100" / file)
    for _ in range(2):
        assert checkpoint.resolve(run) == run / "step-00000010"
    (line,) = caplog.messages  # said once, with both
    assert line == (
        f"{run / 'step-00000100' / file} differs from what was written (sha256); step-00000010 is used instead"
    )
    with pytest.raises(CheckpointError) as error:
        folder = run / "step-00000100"
        checkpoint.load_model(folder)
        checkpoint.load_state(folder)
        checkpoint.log(folder)
    one_line(error, run / "step-00000100" / file, "copy it again, or use another checkpoint")


def test_a_flipped_digit_of_meta_is_found(run: Path) -> None:
    path = run / "step-00000100" / checkpoint.META
    path.write_text(path.read_text().replace('"step": 100', '"step": 101'))
    assert checkpoint.latest(run) == run / "step-00000010"
    with pytest.raises(CheckpointError, match=r"meta\.json differs"):
        checkpoint.load_model(path.parent)


def test_one_of_earlier_code_has_no_digests_and_is_accepted(run: Path) -> None:
    folder = run / "step-00000100"
    meta = json.loads((folder / checkpoint.META).read_text())
    (folder / checkpoint.META).write_text(json.dumps({key: meta[key] for key in ("step", "sizes")}, indent=2))
    flip(folder / checkpoint.LOG)  # which it cannot know
    assert checkpoint.latest(run) == folder
    checkpoint.load_model(folder)


def test_all_are_damaged(run: Path) -> None:
    for step in (2, 10, 100):
        flip(run / checkpoint.name_of(step) / checkpoint.MODEL)
    with pytest.raises(CheckpointError) as error:
        checkpoint.resolve(run)
    one_line(error, run, "step-00000100/model.safetensors differs", "step-00000002/model.safetensors differs")


@pytest.mark.parametrize("name", ["step-best", "step-1", "step-000000100", "step-0000010a", "step-00000100 (copy)"])
def test_another_name_is_no_checkpoint(run: Path, name: str) -> None:
    shutil.copytree(run / "step-00000100", run / name)
    (run / "step-00000200").symlink_to(run / "step-00000002")
    (run / "step-00000300").symlink_to(run / "nowhere")
    assert checkpoint.latest(run) == run / "step-00000100"
    folder = RunFolder.at(run)
    assert folder.sweep() == []
    folder.prune(1)
    assert sorted(path.name for path in run.iterdir() if not path.is_symlink()) == sorted(["step-00000100", name])
    assert (run / "step-00000200").is_symlink() and (run / "step-00000300").is_symlink()


def test_more_steps_than_a_name_has_digits() -> None:
    with pytest.raises(ConfigError, match="step 100000000: a checkpoint's name has eight digits"):
        checkpoint.name_of(100_000_000)


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", "{}", '{"sizes": 3}'])
def test_a_meta_file_of_something_else(run: Path, text: str) -> None:
    (run / "step-00000100" / checkpoint.META).write_text(text)
    assert checkpoint.latest(run) == run / "step-00000010"


def test_sweeping_leaves_all_else_alone(run: Path) -> None:
    (run / "run.json").write_text("{}")
    (run / "pictures").mkdir()
    assert RunFolder.at(run).sweep() == []
    assert RunFolder.at(run / "none").sweep() == []
    assert len(list(run.iterdir())) == 5


def one_line(error: pytest.ExceptionInfo[CheckpointError], *words: object) -> None:
    assert "\n" not in str(error.value)
    assert all(str(word) in str(error.value) for word in words), error.value


def test_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(CheckpointError) as error:
            checkpoint.resolve(path)
        one_line(error, path, "step-*")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_model(tmp_path)
    one_line(error, tmp_path, checkpoint.MODEL)


@pytest.mark.parametrize("other", [{"model.width": 12}, {"model.depth": 4}])
def test_weights_of_another_model(run: Path, other: dict[str, int]) -> None:
    folder = run / "step-00000002"
    CONFIG.replace(other).save(folder / checkpoint.CONFIG)
    reseal(folder)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_model(folder)
    one_line(error, folder / checkpoint.MODEL, "another model than FFDNet")


def test_damaged_weights(run: Path) -> None:
    path = run / "step-00000002" / checkpoint.MODEL
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="has 100 bytes instead of"):
        checkpoint.load_model(path.parent)
    reseal(path.parent)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_model(path.parent)
    one_line(error, path, "damaged")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_checkpoint_is_refused_and_not_run(run: Path) -> None:
    mark, path = run / "it-ran", run / "step-00000002" / checkpoint.STATE
    zipped = run / "zipped.pt"
    torch.save({"model": Evil(mark)}, zipped)
    for data in (pickle.dumps(Evil(mark), protocol=2), zipped.read_bytes()):
        path.write_bytes(data)
        reseal(path.parent)
        with pytest.raises(CheckpointError) as error:
            checkpoint.load_state(path.parent)
        one_line(error, path)
        assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it would have run


def test_a_damaged_state(run: Path) -> None:
    path = run / "step-00000002" / checkpoint.STATE
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="has 300 bytes instead of"):
        checkpoint.load_state(path.parent)
    reseal(path.parent)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_state(path.parent)
    one_line(error, path)


def test_meta_vouches_for_the_other_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "a")
    sizes = json.loads((folder / checkpoint.META).read_text())["sizes"]
    assert sizes == {
        name: (folder / name).stat().st_size
        for name in (checkpoint.MODEL, checkpoint.CONFIG, checkpoint.STATE, checkpoint.LOG)
    }

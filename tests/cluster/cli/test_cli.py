"""The command line: help for every verb, and one line for every mistake."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from cluster.cli.main import main
from pipelines.config import Config, keys, parse
from pipelines.data.images import write_png
from pipelines.networks.models import build
from pipelines.recipes import recipes
from pipelines.runs import checkpoint
from pipelines.runtime import leaving

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["model.width=8", "model.depth=3", "loss.features=squeezenet1_0.fire3", "loss.features_weights=random",
         "data.crop_size=64", "data.crops_per_image=2", "train.batch_size=4", "loss.queue_size=32"]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the repository's own runs is seen, and nothing is left in it."""
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a verb that must fail; gives its one line."""
    code = main(argv)
    out, err = capsys.readouterr()
    # On a busy machine a line says what takes long.
    err = "".join(line for line in err.splitlines(keepends=True) if "looking at the photographs" not in line)
    assert code == 2
    assert out == ""
    assert err.startswith("d2sm: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_the_lists_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--keys"]) == 0
    out = capsys.readouterr().out
    assert [key for key in keys() if f"\n{key}=" not in f"\n{out}"] == []
    assert main(["train", "--recipes"]) == 0
    out = capsys.readouterr().out
    assert [name for name in recipes() if f"\n{name}: " not in f"\n{out}"] == []


def entries(text: str) -> dict[str, list[str]]:
    """What a list of `d2sm train` prints: each heading with the lines indented below it."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith(" "):
            found[list(found)[-1]].append(line.strip())
        else:
            found[line] = []
    return found


def test_what_the_lists_of_train_print_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--keys"]) == 0
    printed = list(entries(capsys.readouterr().out))
    assert Config().replace(parse(printed)) == Config()
    assert {"loss.patch_size=null", "data.flip=true", "noise.sigma=[0.0,75.0]", "tracking.uri="} <= set(printed)
    assert main(["train", "--recipes"]) == 0
    shown = {heading.partition(": ")[0]: below for heading, below in entries(capsys.readouterr().out).items()}
    for name, config in recipes().items():
        assert Config().replace(parse(" ".join(shown[name]).split()) | {"recipe": name}) == config


def test_the_values_of_a_closed_set_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--keys"]) == 0
    listed = {
        heading.partition("=")[0]: below[-1].removeprefix("one of ").split(", ")
        for heading, below in entries(capsys.readouterr().out).items() if below[-1].startswith("one of ")
    }  # fmt: skip
    assert listed["noise.draw"] == ["uniform", "list"]
    assert listed["evaluate.lpips"] == ["vgg16", "alexnet", "squeezenet1_1", "null"]
    assert not {"evaluate.tile", "data.flip", "model.name"} & set(listed)
    needs_others = {"data.layout"}  # with pairs, the level of their noise
    words = [f"{key}={name}" for key, names in listed.items() if key not in needs_others for name in names]
    assert len(words) > 20 and all(Config().replace(parse([word])) for word in words)


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    """As a user meets it: the exit code, and all that is on stderr."""
    command = [sys.executable, "-m", "cluster.cli", "train", "--recipe", "demo", "loss.queue_sise=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("d2sm: loss.queue_sise: ") and done.stderr.count("\n") == 1
    assert "loss.queue_size?" in done.stderr and "--keys" in done.stderr
    assert not list(tmp_path.iterdir())


def test_ray_that_starts_beside_the_checks_ends_with_them(tmp_path: Path) -> None:
    """`train` begins to start Ray at once: a failed check says so no later, and leaves no process behind."""
    marked = {**os.environ, "D2SM_TEST_MARK": str(tmp_path)}
    words = ["train", "--recipe", "ffdnet_l1_cpu", f"data.root={tmp_path}/none", "evaluate.segmenter=null"]
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *words], capture_output=True, text=True, env=marked, check=False
    )
    assert done.returncode == 2 and "starting Ray" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"d2sm: {tmp_path}/none: does not exist")
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("D2SM_TEST_MARK") == str(tmp_path) and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.cmdline())
    assert left == []


def test_verbose_shows_where_it_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-v", "--recipe", "none"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "ConfigError: recipe 'none'" in err


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (
        ["tran"],
        [],
        ["train", "--recipe"],
        ["train", "--recipe", "demo", "--config", "x"],
        ["models"],
        ["denoise", "a", "b"],
    ):
        with pytest.raises(SystemExit) as end:
            main(argv)
        assert end.value.code == 2
        assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ["--recipe", "--config"]),
        (["--recipe", "demos"], ["demos", "did you mean demo?"]),
        (["--config", "none.yaml"], ["none.yaml", "No such file"]),
        (["--recipe", "demo"], ["data.root"]),
        (["--recipe", "demo", "train.epochs"], ["train.epochs", "key=value"]),
        (["--recipe", "demo", "train.epochs=many"], ["train.epochs='many'", "integer"]),
        (["--recipe", "demo", "queue=3"], ["queue: no such key"]),
        (["--recipe", "demo", "loss.queue_size=15"], ["loss.queue_size=15", "16 samples"]),
        (["--recipe", "demo", "train.batch_size=5"], ["train.batch_size=5", "train.num_workers=2"]),
        (["--recipe", "demo", "data.root=nowhere", "evaluate.segmenter=none"], ["nowhere: does not exist"]),
        (["--recipe", "demo", "data.root=nowhere", "data.layout=cities"], ["data.layout='cities'", "'folder'"]),
    ],
)
def test_train_refuses(capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], words: list[str]) -> None:
    line = refused(capsys, "train", *argv)
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir())


PAIR = ("noise.sigma=[25]", "noise.draw=list")


def test_wrong_data(capsys: pytest.CaptureFixture[str], tmp_path: Path, scenes_root: Path) -> None:
    def line(root: Path, *more: str) -> str:
        keys = {key.partition("=")[0]: key for key in (*SMALL, *more)}  # a key is typed once
        words = ["train", "--recipe", "ffdnet_d2sm_cpu", f"data.root={root}", "evaluate.segmenter=null"]
        return refused(capsys, *words, *keys.values())

    (tmp_path / "empty").mkdir()
    assert "is empty" in line(tmp_path / "empty")
    (tmp_path / "odd").mkdir()
    for name in "ab":
        write_png(tmp_path / "odd" / f"{name}.png", np.zeros((80, 80, 3), np.uint8))
    assert "train.batch_size=4: larger than the 2 crops" in line(tmp_path / "odd")  # as data.layout=folder
    assert "data.layout=folder fits" in line(tmp_path / "odd", "data.layout=pairs", *PAIR)
    assert "data.layout=cityscapes" in line(scenes_root, "data.layout=folder")
    assert "train" in line(scenes_root, "data.train_split=trian")
    too_large = line(scenes_root, "data.crop_size=128")
    assert "192x96" in too_large and "data.crop_size=128" in too_large
    assert "train.batch_size=16" in line(scenes_root, "train.batch_size=16")
    assert "'fire3'" in line(scenes_root, "loss.features=squeezenet1_0.fire33")
    assert "loss.patch_size=2: " in line(scenes_root, "loss.patch_size=2", "loss.queue_size=4096")
    storage = line(scenes_root, "train.storage=weird://a/runs", "tracking.uri=sqlite:///x.db")
    assert "train.storage=weird://a/runs" in storage and "no file system" in storage
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "mode, words",
    [
        ("L", "8-bit grey"),
        ("RGBA", "with alpha"),
        ("I;16", "16-bit grey"),
        ("text", "is not a PNG or JPEG"),
        ("cut", "truncated"),
    ],
)
def test_wrong_images(capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: str, words: str) -> None:
    photos = tmp_path / "photos"
    for number in range(4):
        write_png(photos / f"{number}.png", np.random.default_rng(number).integers(0, 255, (80, 80, 3), dtype=np.uint8))
    bad = photos / "2.png"
    if mode == "text":
        bad.write_text("no picture")
    elif mode == "cut":
        bad.write_bytes(bad.read_bytes()[:1000])
    else:
        shape = (80, 80, 4) if mode == "RGBA" else (80, 80)
        Image.fromarray(np.zeros(shape, np.uint16 if mode == "I;16" else np.uint8)).save(bad)
    line = refused(capsys, "train", "--recipe", "ffdnet_d2sm_cpu", f"data.root={photos}", "data.layout=folder", *SMALL)
    assert f"{bad}: " in line
    assert words in line


def test_an_image_without_its_label_and_one_of_another_size(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, scenes_root: Path
) -> None:
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    folder = written(tmp_path / "model")
    first, second = sorted(root.glob("gtFine/val/*/*.png"))
    first.unlink()
    argv = ["evaluate", str(folder), f"data.root={root}", "evaluate.segmenter=tests.helpers.segmenters:segmenter"]
    assert "without a label" in refused(capsys, *argv)
    write_png(second, np.zeros((10, 10), np.uint8))
    assert f"{second}: is 10x10" in refused(capsys, *argv)


def written(folder: Path, *, width: int = 8) -> Path:
    """A checkpoint of a small model; another `width` than that of its weights is in its configuration."""
    config = Config().replace({"model.width": 8, "model.depth": 3})
    torch.manual_seed(0)
    weights = build(config.model).state_dict()
    other = config.replace({"model.width": width})
    checkpoint.write(folder, weights=weights, state={}, config=other, meta={"step": 1})
    return folder


@pytest.mark.parametrize("verb", [["evaluate"], ["denoise", "a.png", "b.png", "--sigma", "25", "--model"]])
def test_wrong_models(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: list[str]) -> None:
    write_png(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
    folder = written(tmp_path / "model")
    assert "runs/nothing: no such folder" in refused(capsys, *verb, "runs/nothing")
    assert "runs/mlflow.db: no such file" in refused(capsys, *verb, "models:/d2sm-ffdnet@champion")
    (tmp_path / "empty").mkdir()
    assert "empty: no complete checkpoint" in refused(capsys, *verb, "empty")
    other = written(tmp_path / "other", width=12)
    assert "weights of another model than FFDNet" in refused(capsys, *verb, str(other))
    (folder / checkpoint.MODEL).write_bytes(b"12")
    assert "is damaged" in refused(capsys, *verb, str(folder))
    assert not (tmp_path / "b.png").exists()


def test_denoise(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.full((40, 41, 3), 128, np.uint8))
    model = ["--model", str(written(tmp_path / "model"))]
    assert main(["denoise", "a.png", "b.png", *model, "--sigma", "25"]) == 0
    assert capsys.readouterr().out == "1 restored: b.png\n"
    assert (tmp_path / "b.png").exists()
    assert "--sigma" in refused(capsys, "denoise", "a.png", "c.png", *model)
    assert "a.png: " in refused(capsys, "denoise", "a.png", "a.png", *model, "--sigma", "25")
    assert "--sigma=300: give a noise level" in refused(capsys, "denoise", "a.png", "c.png", *model, "--sigma", "300")
    assert "device=tpu" in refused(capsys, "denoise", "a.png", "c.png", *model, "--sigma", "25", "--device", "tpu")
    assert "tile=-3" in refused(capsys, "denoise", "a.png", "c.png", *model, "--sigma", "25", "--tile", "-3")
    assert "source: is empty" in refused(capsys, "denoise", "", "c.png", *model, "--sigma", "25")
    assert "target: is empty" in refused(capsys, "denoise", "a.png", "", *model, "--sigma", "25")
    assert not (tmp_path / "c.png").exists()


def test_denoise_a_folder_with_a_bad_photograph(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_png(tmp_path / "photos" / "a.png", np.full((40, 41, 3), 128, np.uint8))
    (tmp_path / "photos" / "b.png").write_text("no picture")
    argv = ["denoise", "photos", "out/", "--model", str(written(tmp_path / "model")), "--sigma", "25"]
    assert main([*argv, "--format", "jpg"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "1 restored, 1 skipped: b.png: is not a PNG or JPEG file, nor TIFF, WebP or BMP\n"
    assert "skipped: photos/b.png: is not a PNG" in printed.err and (tmp_path / "out" / "a.jpg").exists()


def test_scenes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["--train", "1", "--val", "1", "--height", "64", "--width", "96"]
    assert main(["scenes", "streets", *small]) == 0
    assert "data.root=streets" in capsys.readouterr().out
    assert len(list((tmp_path / "streets").rglob("*_leftImg8bit.png"))) == 2
    assert "other built-in scenes" in refused(capsys, "scenes", "streets", *small, "--seed", "1")
    assert "height=10" in refused(capsys, "scenes", "more", "--height", "10")


def test_models_of_no_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for argv in (["list"], ["show", "a@b"], ["promote", "a/1"], ["compare", "a/1", "a/2"]):
        assert "runs/mlflow.db: no such file" in refused(capsys, "models", *argv)
    assert not list(tmp_path.iterdir())


def trained(database: Path) -> bool:
    """Whether the log of a run has an entry."""
    if not database.exists():
        return False
    with contextlib.suppress(sqlite3.OperationalError), sqlite3.connect(database) as store:  # tables in the making
        return store.execute("select count(*) from metrics where key = 'loss'").fetchone()[0] > 0
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "times"), [(1, 1), (0, 2)])
def test_ctrl_c_ends_the_run_as_killed_and_keeps_the_checkpoint(
    workers: int, times: int, scenes_root: Path, tmp_path: Path
) -> None:
    words = ["train", "--recipe", "demo", "--no-evaluate", f"data.root={scenes_root}", f"train.storage={tmp_path}"]
    words += ["train.name=stopped", "train.epochs=4000", "train.checkpoint_every=10000", "train.log_every=2"]
    words += ["loss.weight=0", f"train.num_workers={workers}", "train.batch_size=4", "model.width=8", "model.depth=3"]
    command = [sys.executable, "-c", "import sys; from cluster.cli import main; sys.exit(main())", *words]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            deadline = time.monotonic() + 200
            while not trained(tmp_path / "mlflow.db") and time.monotonic() < deadline:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.5)
            for _ in range(times):
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)  # a step takes longer
            _, errors = process.communicate(timeout=90)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "with a checkpoint" in errors and "Ctrl-C again" in errors
    assert (
        "d2sm: stopped; the same command goes on from what is complete on disk" in errors and "Traceback" not in errors
    )
    if times == 1:
        last = checkpoint.latest(tmp_path / "stopped")
        assert last is not None and 2 <= checkpoint.meta(last)["step"] < 10000
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("KILLED",)]


def test_an_error_of_ray_itself_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as of a machine out of memory, whose message has sixty lines."""
    from ray.exceptions import OutOfMemoryError

    def run_scenes(args: object) -> None:
        raise OutOfMemoryError("4 worker(s) were killed due to the node running low on memory.\nObject store: ...\n")

    monkeypatch.setattr("cluster.cli.scenes.run_scenes", run_scenes)
    assert main(["scenes", "streets"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        "d2sm: Ray ended the work: 4 worker(s) were killed due to the node running low on memory. (-v shows all of it)"
        "; the same command goes on from what is complete on disk (the last checkpoint), or begins again"
    )


@pytest.mark.parametrize(
    "words, line",
    [
        (["jobs", "wait", "x"], "stopped; the job is left as it is"),
        (["models", "list"], "stopped"),
        (["train", "--recipes"], leaving.STOPPED),
    ],
)
def test_ctrl_c_says_what_is_kept(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    assert main(words, first=interrupted) == leaving.INTERRUPTED
    assert capsys.readouterr().err == f"d2sm: {line}\n"

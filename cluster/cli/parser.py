"""The whole command line: every verb, its options, and the function that runs it.

A verb's function is named as text, "cluster.cli.train:run_train", and imported when the verb runs: `d2sm --help` loads
neither torch nor Ray. It takes the parsed options and returns an exit code, or None for 0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.cli.argument_parser import ArgumentParser, Place, without_equals
from cluster.constants import DASHBOARD_PORT, GCS_PORT, LOOPBACK

SPACES = "queue_and_patch, weights, queue_patch_weight, learning_rate"
ADDRESS = (
    "address of the cluster's dashboard, such as http://head:8265 (default: RAY_API_SERVER_ADDRESS, else the cluster "
    f"that `d2sm cluster up` started, else {LOOPBACK}:{DASHBOARD_PORT})"
)
QUIET = "no progress line and no stage messages"
TRUST = (
    "import the Python (module:callable) that the configuration names, and send MLflow's password or token to the "
    "server that it names; only if you trust its author"
)
TRUST_MODEL = "import the Python (module:callable) that the model names as its backbone; only if you trust its author"
TRUST_RUN = "send MLflow's password or token to the server that the run names; only if you trust its author"
TRUST_SWEEP = f"{TRUST}; also unpickle what a sweep that was not begun here has left, which can run any code"
MODEL = "a run's folder, one of its checkpoints, a URI of either, or models:/name@alias"
STORE = "MLflow tracking URI of the registry (default: MLFLOW_TRACKING_URI, else runs/mlflow.db)"
EXAMPLES = """
examples:
  d2sm demo
  d2sm train --recipe ffdnet_d2sm_cpu data.root=photos train.name=first
  d2sm restore noisy.png restored.png --model runs/first --sigma 25
"""
_Verbs = Any  # argparse's own type for sub-commands is private


def parser() -> ArgumentParser:
    """All verbs and their options."""
    top = ArgumentParser(
        prog="d2sm",
        description="Image restoration with the D2SM loss: train, sweep, evaluate, restore, and look models up.",
        epilog=EXAMPLES + "\n`d2sm COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _verb(verbs, "demo", "run the whole pipeline on drawn street scenes, in minutes on a CPU")
    demo("--dir", type=Path, default=Path("demo"), help="folder for everything the demo writes (default: demo)")

    scenes = _verb(verbs, "scenes", "write drawn street scenes as a data set in the Cityscapes layout")
    scenes("root", type=Path, help="folder to write")
    scenes("--train", type=int, default=24, help="number of training scenes (default: 24)")
    scenes("--val", type=int, default=6, help="number of evaluation scenes (default: 6)")
    scenes("--height", type=int, default=256, help="in pixels (default: 256)")
    scenes("--width", type=int, default=512, help="in pixels (default: 512)")
    scenes("--seed", type=int, default=0, help="another seed draws other streets (default: 0)")

    prepare = _verb(verbs, "prepare", "decode a data set once, so that training reads plain pixels")
    prepare("source", type=Path, help="folder with the photographs, as in data.root")
    prepare("target", type=Path, help="folder to write; run again, the command resumes, or verifies and repairs it")
    prepare("--layout", default="cityscapes", choices=["cityscapes", "folder", "pairs"],
            help="layout of the source, as in data.layout (default: cityscapes, or the one that fits)")  # fmt: skip
    prepare(
        "--labels",
        default="cityscapes",
        metavar="SET",
        place="labels",
        help="label set of the photographs, as in data.labels (default: cityscapes)",
    )
    prepare("--splits", nargs="+", default=["train", "val"], metavar="SPLIT",
            help="splits to prepare, as in data.train_split and data.val_split (default: train val)")  # fmt: skip
    prepare("--shard-mb", type=float, default=256, metavar="MB", help="size of a file in MB (default: 256)")
    prepare("--quiet", action="store_true", help=QUIET)

    train = _verb(verbs, "train", "train a restoration network, evaluate it, and register it if asked")
    _configuration(train, lists=True)
    train("--dry-run", action="store_true", help="only run the checks, train nothing; exit code 1 if one fails")
    train("--no-evaluate", action="store_true", help="train only")
    train("--no-preflight", action="store_true", help="on a cluster: do not ask every node first (see `d2sm check`)")
    train("--quiet", action="store_true", help=QUIET)
    _overrides(train)

    tune = _verb(verbs, "tune", "search the best values of configuration keys, such as queue size and loss weight")
    _configuration(tune, trust=TRUST_SWEEP)
    tune("--space", required=True, help=f"what is searched: {SPACES}, or a YAML file with lines `key: [values]` or "
         "`key: {low: 0.1, high: 100, log: true}`")  # fmt: skip
    tune("--trials", type=int, help="number of points to try; required unless --search grid, which tries all")
    tune("--search", default="random", choices=["random", "grid", "optuna"],
         help="how points are chosen; grid: all combinations of lists; optuna: TPE (default: random)")  # fmt: skip
    tune("--scheduler", default="asha", choices=["asha", "pbt", "none"],
         help="asha stops bad trials early; pbt replaces them by copies of better ones; none: all run to their end "
         "(default: asha)")  # fmt: skip
    tune("--metric", nargs="+", type=without_equals("metric"), default=["psnr.sigma25"], metavar="METRIC",
         help="what is optimised, such as miou.sigma25; several: a Pareto front; asha, pbt and the best trial go by "
         "the first (default: psnr.sigma25)")  # fmt: skip
    tune("--reports", type=int, default=3, help="how often each trial is measured (default: 3)")
    tune("--name", help="name of the sweep; the same name resumes it (default: recipe, space and time)")
    tune("--concurrent", type=int, help="most trials at the same time (default: as many as fit)")
    tune(
        "--trial-epochs", type=int, help="epochs of a trial (default: the recipe's); --retrain-best takes the recipe's"
    )
    tune("--retrain-best", action="store_true", help="at the end, train the best point with the recipe's epochs")
    tune("--quiet", action="store_true", help="no table while it runs")
    _overrides(tune)

    table = _verb(verbs, "table", "train and evaluate recipes with several seeds, and compare them in a table")
    table("--recipes", dest="rows", nargs="+", required=True, metavar="ROW",
          help="recipes, patterns such as 'ffdnet_*_cpu', or NAME:key=value[:key=value] for changed keys")  # fmt: skip
    table("--seeds", type=int, default=2, help="runs of each row, with seeds from train.seed upwards (default: 2)")
    table("--name", default="table", help="folder in train.storage; the same name resumes it (default: table)")
    table("--data", type=Path, metavar="ROOT", help="the same as data.root=ROOT")
    table("--dry-run", action="store_true", help="only check the rows, and say what is left to train")
    table("--concurrent", type=int, help="most runs at the same time (default: as many as fit)")
    table("--quiet", action="store_true", help=QUIET)
    _overrides(table)

    study = _verb(verbs, "study", "train objectives in several settings from a plan, and say where each of them helps")
    study("plan", type=Path, metavar="FILE", help="YAML file with the plan (see pipelines/README.md); or the "
          "study.json.xz of a study, whose tables are printed")  # fmt: skip
    study("--name", default="study", help="folder in train.storage; the same name resumes it (default: study)")
    study("--concurrent", type=int, help="most runs at the same time (default: as many as fit)")
    study("--dry-run", action="store_true", help="only check the plan, and say what it will cost")
    study("--against", metavar="OBJECTIVE", help="objective that a study.json.xz is compared with (default: its first)")
    _trust(study)
    study("--quiet", action="store_true", help=QUIET)
    _overrides(study)

    evaluate = _verb(verbs, "evaluate", "measure PSNR, SSIM and MIoU of a model")
    evaluate("model", place="model", help=MODEL)
    evaluate("--out", type=Path, help="file for the results, which then go nowhere else (default: in the run's folder)")
    evaluate("--quiet", action="store_true", help=QUIET)
    _trust(evaluate)
    _overrides(evaluate, such_as="evaluate.sigmas=[25] data.root=photos")

    restore = _verb(verbs, "restore", "restore a photograph, or all photographs of a folder", former="denoise")
    restore("source", place="path", help="a photograph (PNG, JPEG, TIFF, WebP or BMP), or a folder of them")
    restore(
        "target",
        place="path",
        help="file to write, in the format of its suffix; or a folder outside the source; a trailing / creates it",
    )
    restore("--model", required=True, place="model", help=MODEL)
    level = restore.exclusive()
    level("--sigma", type=_sigma, help="sigma of the photographs' noise, 0 to 255; auto: estimated for each")
    level("--add-noise", type=float, metavar="SIGMA", help="first add noise of this sigma, to try a model out")
    restore("--unclipped", action="store_true",
            help="with --add-noise: do not clip the noisy image or round it to the file's bit depth")  # fmt: skip
    _trust(restore, TRUST_MODEL)
    restore("--tile", type=_tile, default="auto",
            help="side of the tiles in pixels; 0: whole images; auto: whole images, or tiles that fit into the free "
            "memory (default: auto)")  # fmt: skip
    restore("--format", choices=["png", "jpg", "tif", "webp", "same"], default="png",
            help="format of the files written to a target folder; same: as each source; jpg: quality 95 "
            "(default: png)")  # fmt: skip
    restore("--device", default="cpu", help="cpu or cuda (default: cpu)")
    restore("--tracking-uri", place="store", help=STORE)

    export = _verb(verbs, "export", "write a model as an ONNX file, for programs without d2sm and PyTorch")
    export("model", place="model", help=MODEL)
    export("target", nargs="?", type=Path, help="file to write (default: NAME.onnx here)")
    export("--to", choices=["onnx"], default="onnx", help="format of the file (default: onnx)")
    _trust(export, TRUST_MODEL)
    export("--tracking-uri", place="store", help=STORE)

    report = _verb(verbs, "report", "compare finished runs on one HTML page")
    report("runs", nargs="+", metavar="RUN", type=Path, help="folders of finished runs")
    report("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    report("--pictures", type=int, default=4, help="number of photographs to show (default: 4)")
    report("--no-figures", action="store_true", help="leave out learning curves and t-SNE, which take longest")
    _trust(report)
    report("--quiet", action="store_true", help=QUIET)

    figures = _verb(
        verbs, "figures", "draw t-SNE of features, restored images, learning curves and fronts of finished runs"
    )
    figures(
        "runs",
        nargs="+",
        metavar="RUN",
        place="model",
        help="folders of finished runs; seeds of one setting form a row",
    )
    figures("--out", type=Path, default=Path("figures"), help="folder for PNG and SVG files (default: figures)")
    figures("--only", choices=["tsne", "comparison", "convergence", "front"], help="draw only this one; "
            "convergence: learning curves; front: MIoU over PSNR of runs that differ in the weight of a term of the "
            "loss, or in loss.gradient_ratio; with front.md, front.json")  # fmt: skip
    _trust(figures)
    figures("--quiet", action="store_true", help=QUIET)

    models = _group(verbs, "models", "registered models: list, show, register, import, promote, compare")
    listing = _verb(models, "list", "list all registered models and their versions", "models:run_list")
    show = _verb(models, "show", "show what is recorded of a registered version", "models:run_show")
    show("reference", help="name@alias, name/version, or name for the newest version")
    register = _verb(models, "register", "register the model of a finished run, without training it again",
                     "models:run_register")  # fmt: skip
    register("folder", metavar="RUN", place="model", help="a run's folder, or its URI")
    register("--as", dest="name", required=True, metavar="NAME", help="name of the registered model; made if new")
    _trust(register, TRUST_RUN)
    register("--alias", default="", help="alias to set on the new version, such as champion")
    imports = _verb(models, "import", "register weights that others publish: FFDNet's for colour, or a file of d2sm",
                    "models:run_import")  # fmt: skip
    imports("file", type=Path, help="KAIR's ffdnet_color.pth, the authors' ffdnet_color.mat, ffdnet-pytorch's "
            "net_rgb.pth, or weights of a d2sm network (.safetensors, .pth)")  # fmt: skip
    imports("--as", dest="name", required=True, metavar="NAME", help="name of the registered model; made if new")
    imports("--alias", default="", help="alias to set on the new version, such as published")
    imports("--source", default="", metavar="TEXT", help="where the file is from, such as its URL; recorded as a tag")
    imports("--licence", default="", metavar="TEXT", help="of the weights (default: no licence stated)")
    promote = _verb(models, "promote", "point an alias at a version", "models:run_promote")
    promote("reference", help="name/version")
    promote("--alias", default="champion", help="alias to set (default: champion)")
    promote("--if-better", metavar="METRIC", help="only if its value is better, such as miou.sigma25")
    compare = _verb(models, "compare", "show two versions side by side", "models:run_compare")
    compare("a", help="name@alias or name/version")
    compare("b", help="the version that it is compared with, named likewise")
    register("--tracking-uri", place="store", help="MLflow tracking URI of the registry (default: the run's own store)")
    for verb in (listing, show, imports, promote, compare):
        verb("--tracking-uri", place="store", help=STORE)

    submit = _verb(verbs, "submit", "send a command to a Ray cluster as a job, and follow its log", "submit:run_submit")
    submit.followed_by_another("d2sm submit [options] -- COMMAND [words ...]")
    submit("--address", help=ADDRESS)
    submit("--detach", action="store_true", help="print the job's id and return; do not follow the log")
    submit("--no-preflight", action="store_true", help="start the command without the checks of `d2sm check`")
    submit("--install", action="store_true", help="install pins.txt on the nodes first, if their image lacks packages")
    submit("--include", type=Path, action="append", default=[], help="a file or folder to send along with the code")
    submit("--env", action="append", default=[], metavar="NAME=VALUE", help="an environment variable for the job")
    submit("--cpus", type=_amount, default=0,
           help="CPUs reserved for the driver process; with 0 it runs on the head node (default: 0)")  # fmt: skip
    submit("--gpus", type=_amount, default=0, help="GPUs reserved for the driver process (default: 0)")
    submit("--memory", type=_bytes, help="bytes of memory reserved for the driver process")
    submit("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its options")

    jobs = _group(verbs, "jobs", "look after submitted jobs: list, logs, wait, stop")
    listing = _verb(jobs, "list", "list the jobs of a cluster, newest first", "jobs:run_list")
    logs = _verb(jobs, "logs", "print what a job has printed so far", "jobs:run_logs")
    logs("-f", "--follow", action="store_true", help="keep printing until the job ends")
    wait = _verb(
        jobs, "wait", "wait until a job ends, and exit with its exit code; 130 if it was stopped", "jobs:run_wait"
    )
    wait("--timeout", type=_amount, help="seconds to wait; then exit with code 3, while the job goes on")
    stop = _verb(jobs, "stop", "stop a job as Ctrl-C would: its last checkpoint stays", "jobs:run_stop")
    for verb in (logs, wait, stop):
        verb("id", help="the job's id, from `d2sm jobs list`")
    for verb in (listing, logs, wait, stop):
        verb("--address", help=ADDRESS)

    check = _verb(verbs, "check", "check what a run needs before it starts; on a cluster ask every node")
    _configuration(check)
    _overrides(check)

    cluster = _group(
        verbs, "cluster", "run several Ray nodes on this machine, to try a cluster: up, status, add, kill, down"
    )
    up = _verb(cluster, "up", "start Ray nodes on this machine, with the dashboard on loopback", "nodes:run_up")
    up("--nodes", type=int, default=3, help="number of nodes, the head included (default: 3)")
    up("--cpus-per-node", type=int, default=2, help="CPUs each node reports; all share this machine's (default: 2)")
    up("--port", type=int, default=GCS_PORT, help=f"port of the head; 0: a free one (default: {GCS_PORT})")
    up(
        "--dashboard-port",
        type=int,
        default=DASHBOARD_PORT,
        help=f"port of the dashboard; 0: a free one (default: {DASHBOARD_PORT})",
    )
    _verb(cluster, "status", "show which nodes are alive", "nodes:run_status")
    add = _verb(cluster, "add", "start one more worker node", "nodes:run_add")
    add("--cpus", type=int, default=2, help="CPUs the node reports (default: 2)")
    kill = _verb(cluster, "kill", "kill a worker node, as a power cut would, to see a run survive it", "nodes:run_kill")
    kill("number", type=int, nargs="?", default=1, help="which of the living worker nodes, from 1 (default: 1)")
    _verb(cluster, "down", "end all nodes that `up` started, and their jobs", "nodes:run_down")
    return top


class _Options:
    """A verb: called with an option's name and argparse's settings, it adds the option.

    `place` says what the option may be if it says where something is; with type=Path it is "path" by itself.
    """

    def __init__(self, add_argument: Callable[..., Any], verb: ArgumentParser) -> None:
        self._add_argument, self._verb = add_argument, verb

    def __call__(self, *names: str, place: Place | None = None, **settings: Any) -> None:
        action = self._add_argument(*names, **settings)
        if place or settings.get("type") is Path:
            self._verb.places.append((action, place or "path"))

    def exclusive(self, *, required: bool = False) -> _Options:
        """Options of which one may be given."""
        return _Options(self._verb.add_mutually_exclusive_group(required=required).add_argument, self._verb)

    def followed_by_another(self, usage: str) -> None:
        """Everything from the first word on belongs to another verb, its options included."""
        self._verb.usage, self._verb.intermixed = usage, False


def _verb(verbs: _Verbs, name: str, help: str, run: str = "", *, former: str = "") -> _Options:
    """A verb; without `run`, its function is run_NAME in the file of its name. `former`: another name that it has."""
    aliases, about = [former] if former else [], f"{help[0].upper()}{help[1:]}."
    verb: ArgumentParser = verbs.add_parser(name, aliases=aliases, help=help, description=about)
    verb.intermixed = True
    verb.add_argument("-v", "--verbose", action="store_true", help="show Ray's own log and full tracebacks")
    verb.set_defaults(run=f"cluster.cli.{run or f'{name}:run_{name}'}", places=verb.places)
    return _Options(verb.add_argument, verb)


def _group(verbs: _Verbs, name: str, help: str) -> _Verbs:
    group = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    return group.add_subparsers(title="commands", required=True, metavar="COMMAND")


def _configuration(verb: _Options, *, lists: bool = False, trust: str = TRUST) -> None:
    which = verb.exclusive(required=not lists)
    which("--recipe", help="a named configuration; `d2sm train --recipes` lists them")
    which("--config", type=Path, help="a saved configuration, such as runs/NAME/config.yaml")
    _trust(verb, trust)
    if lists:
        which("--recipes", action="store_true", help="list the recipes and the keys they set")
        which("--keys", action="store_true", help="list every configuration key with its default and meaning")
        which("--layers", metavar="NETWORK", help="list the layers of a network that loss.features can name, such as "
              "timm:resnet50 or segmenter:espnet-camvid (with loss.features_weights=FILE)")  # fmt: skip


def _trust(verb: _Options, about: str = TRUST) -> None:
    verb("--trust", action="store_true", help=about)


def _overrides(verb: _Options, *, such_as: str = "loss.queue_size=1024 train.num_workers=8") -> None:
    help = f"configuration keys to change, such as {such_as}"
    verb("overrides", nargs="*", default=[], metavar="key=value", help=help)


def _tile(text: str) -> int | str | None:
    try:
        return "auto" if text == "auto" else int(text) or None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of pixels, 0 or auto") from None


def _amount(text: str) -> float:
    """A number from 0 on. Python's float takes nan too, which no comparison holds for."""
    try:
        if 0 <= (number := float(text)) < math.inf:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 on")


def _bytes(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r}: give a number of bytes, at least 1")


def _sigma(text: str) -> float | str:
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number from 0 to 255, or auto") from None


class _Version(argparse.Action):
    def __call__(self, top: argparse.ArgumentParser, *_: Any) -> None:
        from d2sm import __version__

        print(f"d2sm {__version__}")
        top.exit()

"""The command line: one verb a job. Heavy imports wait until a verb runs, so that help is quick."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.cli import arguments, figures, prepare, table, tune
from cluster.cli import jobs as cli_jobs
from cluster.cli import report as reporting
from pipelines.runtime import auth
from pipelines.text import columns, one_line

if TYPE_CHECKING:
    from pipelines.config import Config
    from pipelines.experiment import Outcome
    from pipelines.inference.tiling import Tile


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; bad input gives one line and exit code 2, Ctrl-C 130."""
    args = parser().parse_args(argv)
    try:
        auth.offer_token()
        return int(args.run(args) or 0)
    except KeyboardInterrupt:
        print("d2sm: stopped; the last complete checkpoint is kept, the same command goes on from it", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if args.verbose:
            raise
        print(f"d2sm: {one_line(error, None)}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="d2sm",
        description="D2SM image restoration: train, sweep, evaluate, denoise and look models up, on Ray with MLflow.",
    )
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    _demo(verbs)
    _scenes(verbs)
    prepare.add(_verb(verbs, "prepare", "store a data set so that training decodes nothing", prepare.run_prepare))
    _train(verbs)
    _tune(verbs)
    _table(verbs)
    _evaluate(verbs)
    _denoise(verbs)
    reporting.add(_verb(verbs, "report", "finished runs side by side as one HTML file", reporting.run_report))
    _models(verbs)
    figures.add(_verb(verbs, "figures", "t-SNE, comparison and convergence of finished runs", figures.run_figures))
    cli_jobs.add(verbs, _verb)
    return top


def _verb(verbs: argparse._SubParsersAction, name: str, help: str, run: object) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    verb.add_argument("-v", "--verbose", action="store_true", help="show Ray's own log and full tracebacks")
    verb.set_defaults(run=run)
    return verb


def _overrides(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="dotted keys, such as loss.queue_size=1024 train.num_workers=8",
    )


def _demo(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    verb = _verb(verbs, "demo", "the whole pipeline on built-in street scenes, in minutes on a CPU", run_demo)
    verb.add_argument("--dir", type=Path, default=Path("demo"), help="folder for everything it makes (demo)")


def run_demo(args: argparse.Namespace) -> None:
    from pipelines.demo import demo

    demo(args.dir, verbose=args.verbose)


def _scenes(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    verb = _verb(verbs, "scenes", "write the built-in street scenes as a Cityscapes data set", run_scenes)
    verb.add_argument("root", type=Path, help="folder to write")
    verb.add_argument("--train", type=int, default=24, help="training scenes (24)")
    verb.add_argument("--val", type=int, default=6, help="evaluation scenes (6)")
    verb.add_argument("--height", type=int, default=256, help="pixels (256)")
    verb.add_argument("--width", type=int, default=512, help="pixels (512)")
    verb.add_argument("--seed", type=int, default=0, help="other streets for another seed (0)")


def run_scenes(args: argparse.Namespace) -> None:
    from pipelines.scenes import write_scenes

    root = write_scenes(args.root, train=args.train, val=args.val, height=args.height, width=args.width, seed=args.seed)
    print(f"{args.train} + {args.val} scenes in {root}; train on them with data.root={root}")


def _train(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    verb = _verb(verbs, "train", "train a denoiser, evaluate it, and register it if asked", run_train)
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--recipe", help="a named run; --recipes lists them")
    which.add_argument("--config", type=Path, help="a saved configuration, such as RUN/config.yaml")
    which.add_argument("--recipes", action="store_true", help="list the recipes and what they change")
    which.add_argument("--keys", action="store_true", help="list every key with its default and meaning")
    verb.add_argument("--no-evaluate", action="store_true", help="train only")
    verb.add_argument("--quiet", action="store_true", help="no progress line")
    _overrides(verb)


def run_train(args: argparse.Namespace) -> None:
    from pipelines.recipes import recipes

    if args.keys:
        print(_keys())
        return
    if args.recipes:
        print(_recipes(recipes()))
        return
    config = arguments.training(args)
    if args.no_evaluate:
        from pipelines.train import fit

        trained = fit(config, quiet=args.quiet, verbose=args.verbose)
        print(f"checkpoint {trained.where}")
        return
    from pipelines.experiment import run

    outcome = run(config, quiet=args.quiet, verbose=args.verbose)
    report(outcome)


def report(outcome: Outcome) -> None:
    """What a job left behind, as text."""
    from pipelines.tracking.run import ui_command

    print(f"\n{outcome.results.table(outcome.trained.config.recipe or 'restored')}\n\n({outcome.results.convention})")
    if not outcome.results.segmenter:
        print("MIoU was not measured: no labels, or no evaluate.segmenter")
    print(f"checkpoint {outcome.trained.where}")
    for path in outcome.pictures:
        print(f"picture    {path}")
    if outcome.record:
        print(f"registered {outcome.record.name} version {outcome.record.version} {' '.join(outcome.record.aliases)}")
    print(f"MLflow     {ui_command(outcome.trained.uri)}  then open http://127.0.0.1:5000/{outcome.page}")


def _tune(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    verb = _verb(verbs, "tune", "search over queue size, K, loss weights or any other key", tune.run_tune)
    tune.add(verb)
    _overrides(verb)


def _table(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    verb = _verb(verbs, "table", "train and evaluate recipes with several seeds, side by side", table.run_table)
    table.add(verb)
    _overrides(verb)


def _evaluate(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    verb = _verb(verbs, "evaluate", "PSNR, SSIM and MIoU of a checkpoint or a registered model", run_evaluate)
    verb.add_argument("model", help="a run's folder, a checkpoint, or models:/name@alias")
    verb.add_argument("--out", type=Path, help="where results.json goes (a run's own folder, else here)")
    verb.add_argument("--quiet", action="store_true", help="no progress line")
    _overrides(verb)


def run_evaluate(args: argparse.Namespace) -> None:
    from pipelines import config as configs
    from pipelines.experiment import evaluate_run
    from pipelines.runs import checkpoint

    changes = configs.parse(args.overrides)
    folder = _folder(args.model, changes)
    config = configs.load(checkpoint.resolve(folder) / checkpoint.CONFIG).replace(changes)
    results, out = evaluate_run(folder, config, out=args.out, quiet=args.quiet, verbose=args.verbose)
    print(f"{results.table()}\n\n({results.convention})\n{results.images} images; {out}")


def _denoise(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    verb = _verb(verbs, "denoise", "restore a photograph or a folder of them", run_denoise)
    verb.add_argument("source", type=Path, help="a PNG or JPEG file, or a folder")
    verb.add_argument("target", type=Path, help="the file or folder to write")
    verb.add_argument("--model", required=True, help="a run's folder, a checkpoint, or models:/name@alias")
    level = verb.add_mutually_exclusive_group()
    level.add_argument("--sigma", type=float, help="noise level of the photographs, 0 to 255")
    level.add_argument("--add-noise", type=float, metavar="SIGMA", help="add such noise first, for a trial")
    verb.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        help="side of the tiles, which bounds memory; 0: whole; auto: whole, or as large as free memory allows (auto)",
    )
    verb.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    verb.add_argument("--tracking-uri", help="where registered models are")


def _tile(text: str) -> Tile:
    try:
        return "auto" if text == "auto" else int(text) or None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of pixels, 0 or auto") from None


def run_denoise(args: argparse.Namespace) -> None:
    from pipelines.denoise import denoise, load

    uri = _uri(args.tracking_uri) if args.model.startswith("models:") or "@" in args.model else None
    written = denoise(
        args.source,
        args.target,
        model=load(args.model, uri=uri, device=args.device),
        sigma=args.sigma,
        add=args.add_noise,
        tile=args.tile,
    )
    print(f"{len(written)} restored: {args.target}")


def _models(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    models = verbs.add_parser("models", help="look registered models up: list, show, promote, compare")
    inner = models.add_subparsers(title="verbs", required=True, metavar="VERB")
    listing = _verb(inner, "list", "every registered model and version", run_list)
    show = _verb(inner, "show", "what a registered version says of itself", run_show)
    show.add_argument("reference", help="name@alias, name/version, or name for the newest")
    promote = _verb(inner, "promote", "point an alias at a version", run_promote)
    promote.add_argument("reference", help="name/version")
    promote.add_argument("--alias", default="champion", help="the alias (champion)")
    promote.add_argument("--if-better", metavar="METRIC", help="only if better on this, such as miou.sigma25")
    compare = _verb(inner, "compare", "two versions side by side", run_compare)
    compare.add_argument("a")
    compare.add_argument("b")
    for verb in (listing, show, promote, compare):
        verb.add_argument("--tracking-uri", help="MLflow's tracking URI (MLFLOW_TRACKING_URI, else runs/mlflow.db)")


def run_list(args: argparse.Namespace) -> None:
    from pipelines import registry

    found = registry.models(_uri(args.tracking_uri))
    rows = [["model", "version", "aliases", "recipe", "psnr.sigma25", "miou.sigma25"]]
    for record in found:
        tags = record.tags
        rows.append(
            [
                record.name,
                str(record.version),
                " ".join(record.aliases),
                tags.get("recipe", ""),
                _short(tags.get("psnr.sigma25")),
                _short(tags.get("miou.sigma25")),
            ]
        )
    print(columns(rows) if found else "no registered models")


def run_show(args: argparse.Namespace) -> None:
    from pipelines import registry

    record = registry.lookup(args.reference, uri=_uri(args.tracking_uri))
    facts = {"model": record.name, "version": record.version, "aliases": " ".join(record.aliases), "run": record.run_id}
    print(columns([[name, str(value)] for name, value in {**facts, **dict(sorted(record.tags.items()))}.items()]))


def run_promote(args: argparse.Namespace) -> None:
    from pipelines import registry

    record = registry.promote(args.reference, args.alias, if_better=args.if_better, uri=_uri(args.tracking_uri))
    print(f"{record.name}@{args.alias} is now version {record.version}")


def run_compare(args: argparse.Namespace) -> None:
    from pipelines import registry

    uri = _uri(args.tracking_uri)
    rows = registry.compare(registry.lookup(args.a, uri=uri), registry.lookup(args.b, uri=uri))
    print(columns([list(rows[0]), *([_short(value) for value in row.values()] for row in rows)]))


def _folder(model: str, changes: dict[str, object]) -> Path:
    """The folder of a model: a path, or the download of a registered version."""
    from pipelines import registry
    from pipelines.runs import checkpoint, storage

    if storage.is_uri(model):
        return checkpoint.resolve(model)
    if Path(model).exists() and not model.startswith("models:"):
        return Path(model)

    if not model.startswith("models:") and "@" not in model:
        raise checkpoint.CheckpointError(f"model={model}: no such folder, and no reference like models:/name@alias")
    return registry.lookup(model, uri=_uri(str(changes.get("tracking.uri", "")))).path()


def _uri(given: str | None) -> str:
    from pipelines.config import Config
    from pipelines.tracking.run import uri_of

    return uri_of(Config().replace({"tracking.uri": given or ""}))


def _keys() -> str:
    from pipelines import config as configs

    lines = []
    for key, value in configs.Config().flat().items():
        about = configs.keys()[key].description or ""
        lines += [f"{key}={'' if value is None else value}", textwrap.indent(textwrap.fill(about, 100), "    ")]
    return "\n".join(lines)


def _recipes(known: Mapping[str, Config]) -> str:
    from pipelines.config import Config

    plain, lines = Config().flat(), []
    for name, config in known.items():
        changed = [f"{k}={v}" for k, v in config.flat().items() if v != plain[k] and k != "recipe"]
        lines += [name, textwrap.indent(textwrap.fill(" ".join(changed), 100), "    ")]
    return "\n".join(lines)


def _short(value: object) -> str:
    try:
        return f"{float(str(value)):.4g}"
    except ValueError:
        return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())

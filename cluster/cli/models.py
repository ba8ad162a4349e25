"""The verbs `models list`, `models show`, `models register`, `models import`, `models promote`, `models compare`."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Sequence

from pipelines.text import columns, printable, show

_DIGITS = 12  # of a SHA-256 that are shown


def run_list(args: argparse.Namespace) -> None:
    """Every model and version, with two of its numbers."""
    from pipelines import registry

    rows = [["model", "version", "aliases", "recipe", "psnr.sigma25", "miou.sigma25"]]
    for record in registry.models(_uri(args.tracking_uri)):
        numbers = [_short(record.tags.get(name)) for name in ("psnr.sigma25", "miou.sigma25")]
        recipe = "imported" if "imported.form" in record.tags else record.tags.get("recipe", "")
        rows.append([record.name, str(record.version), " ".join(record.aliases), recipe, *numbers])
    show(columns(rows) if len(rows) > 1 else "no registered models")


def run_show(args: argparse.Namespace) -> None:
    """All that is recorded of a version."""
    from pipelines import registry

    record = registry.lookup(args.reference, uri=_uri(args.tracking_uri))
    facts = {"model": record.name, "version": record.version, "aliases": " ".join(record.aliases), "run": record.run_id}
    show(columns([[name, str(value)] for name, value in {**facts, **dict(sorted(record.tags.items()))}.items()]))


def run_register(args: argparse.Namespace) -> None:
    """Register the model of a finished run."""
    from pipelines import registry

    record = registry.register_run(args.folder, args.name, alias=args.alias, uri=args.tracking_uri, trust=args.trust)
    show(f"registered {record.name} version {record.version} {' '.join(record.aliases)}".rstrip())
    if not record.run_id:
        show("the store does not hold the run that trained it, so the version names none")


def run_import(args: argparse.Namespace) -> None:
    """Register weights that others publish."""
    from pipelines.import_weights import import_weights

    done = import_weights(
        args.file, args.name, alias=args.alias, source=args.source, licence=args.licence, uri=args.tracking_uri
    )
    record = done.record
    show(f"registered {record.name} version {record.version} {' '.join(record.aliases)}".rstrip())
    facts = {
        "form": done.form,
        "network": record.tags["backbone"],
        "weights": f"{record.tags['weights.fingerprint']}{f', {done.known}' if done.known else ''}",
        **{key: record.tags[f"imported.{key}"] for key in ("convention", "source", "licence")},
    }
    show(columns([[name, value] for name, value in facts.items()]))


def run_promote(args: argparse.Namespace) -> None:
    """Point an alias at a version."""
    from pipelines import registry

    record = registry.promote(args.reference, args.alias, if_better=args.if_better, uri=_uri(args.tracking_uri))
    show(f"{record.name}@{args.alias} is now version {record.version}")


def run_compare(args: argparse.Namespace) -> None:
    """What differs between two versions, side by side."""
    from pipelines import registry

    uri = _uri(args.tracking_uri)
    a, b = registry.lookup(args.a, uri=uri), registry.lookup(args.b, uri=uri)
    rows = [[f"{'':4}", a.label, b.label, "difference"]]
    alike = 0
    for row in registry.compare(a, b):
        if row["a"] == row["b"]:
            alike += 1
        elif isinstance(row["difference"], float):
            rows.append([str(row["what"]), _short(row["a"]), _short(row["b"]), f"{row['difference']:+.4g}"])
        else:
            rows.append([str(row["what"]), *(_digest(str(row["what"]), str(row[side])) for side in ("a", "b")), ""])
    if len(rows) > 1:
        show(_fitted(rows, shutil.get_terminal_size((120, 24)).columns))
    show(f"{alike} other tags are the same" if alike else "no tag is the same")


def _uri(given: str | None) -> str:
    from pipelines.config import Config
    from pipelines.tracking import uri_of

    return uri_of(Config().replace({"tracking.uri": given or ""}))


def _digest(what: str, value: str) -> str:
    """The first digits of a checksum; any other value as it is, "-" for none."""
    return value[:_DIGITS] if what.endswith("sha256") else value or "-"


def _fitted(rows: Sequence[Sequence[str]], width: int) -> str:
    """Four columns as text of this width at most: the two in the middle, the values, are wrapped where they must be."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(width - widths[0] - widths[3] - 3 * len("  "), 2 * 8)
    first, second = widths[1], widths[2]
    if first + second > room:  # the shorter one keeps its width, if it needs less than half
        first = min(first, max(room // 2, room - second))
        second = min(second, room - first)
    lines = []
    for what, a, b, difference in rows:
        cells = [[what], textwrap.wrap(a, first), textwrap.wrap(b, second), [difference]]
        height = max(map(len, cells))
        lines += [[cell[n] if n < len(cell) else "" for cell in cells] for n in range(height)]
    return columns(lines)


def _short(value: object) -> str:
    """A number with four digits; any other value as it is."""
    try:
        return f"{float(str(value)):.4g}"
    except ValueError:
        return "" if value is None else str(value)

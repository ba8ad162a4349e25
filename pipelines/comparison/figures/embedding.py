"""t-SNE of Phi's features of noisy, restored and clean crops, and how far each kind is from the clean one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from d2sm.features import Features, features, patches
from d2sm.matching import StatisticsMatching
from pipelines.comparison.figures import style
from pipelines.comparison.figures.scene import CLEAN, Scene, names, scenes
from pipelines.comparison.rows import Row, RunsError
from pipelines.config import Config
from pipelines.inference.pictures import spread
from pipelines.inference.samples import tensor

PERPLEXITY, SEED = 30.0, 0
_SAMPLES, _SCENES = 200, 40
_NUMBERS = 2**28  # features held at a time, over all kinds: 1 GiB; whole crops of 512 have half a million each


@dataclass(frozen=True)
class Embedding:
    """Samples of each kind (noisy, each row, clean), paired by their place.

    Attributes:
        points: (N, 2) by t-SNE of all kinds together.
        distance: mean distance to the clean counterpart, between features of length one, so 0 to 2; before t-SNE.
        divergence: KL of eq. (1) to the clean samples, per sample, all N in the queue.
        what: which samples of which features they are.
    """

    points: Mapping[str, NDArray[np.float32]]
    distance: Mapping[str, float]
    divergence: Mapping[str, float]
    what: str


def draw(rows: Sequence[Row], path: Path) -> tuple[list[Path], dict[str, float]]:
    """The picture as PNG and SVG, and its numbers by MLflow's names (distance.D2SM, kl.D2SM)."""
    found = embed(scenes(rows, count=_SCENES, segmented=False), chosen(rows))
    drawn = style.figure(9, 9.6)
    axes = drawn.subplots()
    _scatter(axes, found, names(rows))
    drawn.supxlabel(
        f"{len(found.points[CLEAN])} samples a kind: {found.what}.\nt-SNE with perplexity {_perplexity(found):g}, seed "
        f"{SEED}; lines join a sample to its clean one.\nDistance: mean, to the clean counterpart, of features of "
        "length one, before t-SNE. KL: eq. (1), per sample.",
        fontsize=style.SIZE - 2,
    )
    numbers = {"distance": found.distance, "kl": found.divergence}
    flat = {f"{what}.{_key(name)}": value for what, by_kind in numbers.items() for name, value in by_kind.items()}
    return style.save(drawn, path), flat


def chosen(rows: Sequence[Row]) -> Config:
    """Whose features and samples are taken: those of the first row with D2SM, else of the first row."""
    return next((row.config for row in rows if row.config.loss.weight), rows[0].config)


def embed(shown: Sequence[Scene], config: Config) -> Embedding:
    """Cut scenes into the samples that D2SM would compare, and lay them out.

    Args:
        shown: photographs no smaller than a crop.
        config: its loss section says which features, and whether a sample is a crop ("w/o internal") or a patch of one
            ("w/ internal"); crops have the size they had in training.

    Raises:
        RunsError: a photograph is smaller than a crop, or there are fewer than 4 samples.
    """
    phi = features(config.loss.features, weights=config.loss.features_weights)
    samples = _samples(shown, config, phi)
    count = len(samples[CLEAN])
    if count < 4:
        raise RunsError(f"t-SNE: {count} samples of data.crop_size={config.data.crop_size}; give more photographs")
    clean = samples[CLEAN]
    others = {name: rows for name, rows in samples.items() if name != CLEAN}
    return Embedding(
        points=_tsne(samples),
        distance={name: float((rows - clean).norm(dim=1).mean()) for name, rows in others.items()},
        divergence={name: _divergence(rows, clean) for name, rows in others.items()},
        what=_what(config),
    )


def _samples(shown: Sequence[Scene], config: Config, phi: Features) -> dict[str, Tensor]:
    """(N, D) rows of length one by kind."""
    loss, side = config.loss, config.data.crop_size
    window = loss.patch_size or side
    a_crop = (side // window) ** 2
    numbers = phi.channels * (window // phi.stride) ** 2 * len(shown[0].images)
    crops = max(1, min(_SAMPLES, _NUMBERS // numbers) // a_crop // len(shown))
    cells = loss.patch_size // phi.stride if loss.patch_size else None
    found: dict[str, list[Tensor]] = {name: [] for name in shown[0].images}
    for number, scene in enumerate(shown):
        corners = _corners(scene, side, crops, number)
        for name, image in scene.images.items():
            cut = torch.cat([tensor(image[top : top + side, left : left + side]) for top, left in corners])
            with torch.no_grad():
                found[name].append(normalize(patches(phi(cut), side=cells)))
    return {name: torch.cat(rows) for name, rows in found.items()}


def _corners(scene: Scene, side: int, count: int, shift: int) -> list[tuple[int, int]]:
    """Of crops side by side, `count` that are spread over the photograph; `shift` moves on to their neighbours."""
    height, width = scene.images[CLEAN].shape[:2]
    places = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    if not places:
        raise RunsError(
            f"t-SNE: {scene.name} has {height}x{width} pixels, less than a crop of data.crop_size={side}; "
            "evaluate on larger photographs"
        )
    return [places[(at + shift) % len(places)] for at in spread(len(places), count)]


def _tsne(samples: Mapping[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    from sklearn.manifold import TSNE  # takes a second to import

    rows = torch.cat(list(samples.values())).numpy()
    perplexity = _bounded(len(rows))
    laid = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=SEED).fit_transform(rows)
    return dict(zip(samples, np.split(laid, len(samples))))


def _bounded(count: int) -> float:
    """t-SNE wants several times as many points as neighbours."""
    return min(PERPLEXITY, (count - 1) / 3)


def _perplexity(found: Embedding) -> float:
    return round(_bounded(sum(len(points) for points in found.points.values())), 1)


def _divergence(restored: Tensor, clean: Tensor) -> float:
    return float(StatisticsMatching(len(clean))(restored=restored, clean=clean))


def _what(config: Config) -> str:
    loss, side = config.loss, config.data.crop_size
    sample = f"patches of {loss.patch_size} (w/ internal)" if loss.patch_size else "whole crops (w/o internal)"
    return f"{loss.features}, {sample}, crops of {side} pixels"


def _scatter(axes: Axes, found: Embedding, rows: Sequence[str]) -> None:
    looks = style.of_kinds(rows)
    clean = found.points[CLEAN]
    handles = []
    for name, points in found.points.items():
        look = looks[name]
        if name != CLEAN:
            ends = np.stack([points, clean], axis=1)
            axes.add_collection(LineCollection(list(ends), colors=look.colour, linewidths=0.5, alpha=0.25, zorder=1))
        hollow = {"facecolors": "none", "edgecolors": look.colour} if look.mark not in "x+" else {"c": look.colour}
        axes.scatter(points[:, 0], points[:, 1], s=34, marker=look.mark, linewidths=1.2, zorder=2, **hollow)  # type: ignore[arg-type]
        text = (
            f"{name}: distance {found.distance[name]:.3f}, KL {found.divergence[name]:.2e}" if name != CLEAN else name
        )
        handles.append(
            Line2D([], [], color=look.colour, marker=look.mark, markerfacecolor="none", linestyle="", label=text)
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=style.SIZE, markerscale=1.5)


def _key(name: str) -> str:
    """A row's name as a part of a metric's: MLflow takes no other characters."""
    return re.sub(r"[^\w\-. :/]", " ", name)

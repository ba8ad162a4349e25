"""The t-SNE figure: features of noisy, restored and clean crops in the plane, and their distances to the clean ones."""

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

from d2sm.features import Features, patches
from d2sm.matching import StatisticsMatching
from pipelines.comparison.figures import style
from pipelines.comparison.photographs import CLEAN, ComparedPhotograph, compared_photographs, shown_images
from pipelines.comparison.rows import Row, RunsError, short_names
from pipelines.config import Config
from pipelines.data import labels
from pipelines.data.splits import spread
from pipelines.inference.samples import tensor
from pipelines.networks.features import first_layer
from pipelines.runtime.progress import stage
from pipelines.tracking.segmenter import for_phi, segmenter_store

PERPLEXITY, SEED = 30.0, 0
_PHOTOGRAPHS, _SAMPLES = 40, 200
# Bounds the memory of all samples of all versions: 2**28 float32 are 1 GiB. A whole crop of 512 has half a million.
_MAX_FEATURES = 2**28


@dataclass(frozen=True)
class Embedding:
    """N samples of each version (noisy, each row, clean); the i-th of every version is the same place.

    Attributes:
        points: (N, 2), by t-SNE of all versions together.
        distance: mean Euclidean distance to the clean counterpart, of L2-normalised features, so 0 to 2; before t-SNE.
        divergence: KL of eq. (1) to the clean samples, per sample, with all N in the queue.
        perplexity: of the t-SNE.
        description: which features of which samples.
    """

    points: Mapping[str, NDArray[np.float32]]
    distance: Mapping[str, float]
    divergence: Mapping[str, float]
    perplexity: float
    description: str


def check(rows: Sequence[Row]) -> Features:
    """Make sure, before any photograph is restored, that the figure can be drawn; gives Phi for `draw`.

    Raises:
        RunsError: a photograph is smaller than a crop.
        ConfigError, DataError, OSError: Phi cannot be loaded; the photographs cannot be read.
    """
    config = with_features_of(rows)
    phi = phi_of(config)
    images = shown_images(rows, _PHOTOGRAPHS)
    for name, height, width in zip(*(images[key].to_pylist() for key in ("name", "height", "width")), strict=True):
        if min(height, width) < config.data.crop_size:
            raise _no_crop(name, height, width, config.data.crop_size)
    return phi


def draw(rows: Sequence[Row], path: Path, phi: Features, *, quiet: bool = False) -> tuple[list[Path], dict[str, float]]:
    """Draw it; gives the paths of PNG and SVG, and its numbers by MLflow's names (distance.D2SM, kl.D2SM).

    Args:
        phi: from `check`.
    """
    photographs = compared_photographs(rows, count=_PHOTOGRAPHS, segmented=False, quiet=quiet)
    stage("placing the features of Phi in the plane (t-SNE)")
    embedding = embed(photographs, with_features_of(rows), phi)
    drawn = style.figure(9, 9.6)
    _scatter(drawn.subplots(), embedding, short_names([row.config for row in rows]))
    lines = [
        f"{len(embedding.points[CLEAN])} samples of each version: {embedding.description}.",
        f"t-SNE: perplexity {embedding.perplexity:.3g}, seed {SEED}. Lines join samples to their clean counterparts.",
        "Distance: mean, between L2-normalised features and their clean counterparts, before t-SNE.",
        "KL: eq. (1), per sample.",
    ]
    style.caption(drawn, lines, size=style.SIZE - 2)
    numbers = {}
    for what, values in (("distance", embedding.distance), ("kl", embedding.divergence)):
        for name, value in values.items():
            allowed = re.sub(r"[^\w\-. :/]", " ", name)  # in the name of a metric of MLflow's
            numbers[f"{what}.{allowed}"] = value
    return style.save(drawn, path), numbers


def with_features_of(rows: Sequence[Row]) -> Config:
    """The configuration whose features and samples are shown: the first row's that uses D2SM, else the first row's."""
    return next((row.config for row in rows if "d2sm" in row.config.loss.terms), rows[0].config)


def phi_of(config: Config) -> Features:
    """The feature network of a configuration, at the first of its layers."""
    return first_layer(config.loss, for_phi(segmenter_store(config), labels.of(config).like))


def embed(photographs: Sequence[ComparedPhotograph], config: Config, phi: Features) -> Embedding:
    """Cut photographs into the samples that D2SM would compare, and place them in the plane.

    Args:
        photographs: no smaller than a crop.
        config: its loss section says whether a sample is a crop ("w/o internal") or a patch of one ("w/ internal");
            crops are as large as in training.
        phi: that gives the features, see `phi_of`.

    Raises:
        RunsError: a photograph is smaller than a crop, or there are fewer than 4 samples.
    """
    loss, side = config.loss, config.data.crop_size
    samples = _samples(photographs, config, phi)
    clean = samples[CLEAN]
    if len(clean) < 4:
        raise RunsError(f"t-SNE: {len(clean)} samples of data.crop_size={side}; evaluate on more photographs")
    others = {name: version for name, version in samples.items() if name != CLEAN}

    from sklearn.manifold import TSNE  # here, because it takes a second to import

    together = torch.cat(list(samples.values())).numpy()
    perplexity = min(PERPLEXITY, (len(together) - 1) / 3)  # t-SNE needs several times as many points as neighbours
    points = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=SEED).fit_transform(together)
    kind = f"patches of {loss.patch_size} pixels (w/ internal)" if loss.patch_size else "whole crops (w/o internal)"
    if loss.class_regions:
        kind = "whole crops (D2SM compared regions of classes)"
    return Embedding(
        points=dict(zip(samples, np.split(points, len(samples)), strict=True)),
        distance={name: float((version - clean).norm(dim=1).mean()) for name, version in others.items()},
        divergence={name: float(StatisticsMatching(len(clean))(version, clean)) for name, version in others.items()},
        perplexity=perplexity,
        description=f"{phi.name} of {kind}, crops of {side} pixels",
    )


def _samples(photographs: Sequence[ComparedPhotograph], config: Config, phi: Features) -> dict[str, Tensor]:
    """(N, D) L2-normalised features by version; the same places of all versions."""
    loss, side = config.loss, config.data.crop_size
    versions = photographs[0].images
    window = loss.patch_size or side
    per_crop = (side // window) ** 2  # samples
    numbers = phi.channels * (window // phi.stride) ** 2 * len(versions)
    crops = max(1, min(_SAMPLES, _MAX_FEATURES // numbers) // per_crop // len(photographs))
    cells = loss.patch_size // phi.stride if loss.patch_size else None
    found: dict[str, list[Tensor]] = {name: [] for name in versions}
    for number, photograph in enumerate(photographs):
        corners = _corners(photograph, side, crops, number)
        for name, image in photograph.images.items():
            cut = torch.cat([tensor(image[top : top + side, left : left + side]) for top, left in corners])
            with torch.no_grad():
                found[name].append(normalize(patches(phi(cut), side=cells)))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _corners(photograph: ComparedPhotograph, side: int, count: int, shift: int) -> list[tuple[int, int]]:
    """Of the crops that tile a photograph, `count` spread over it; `shift` moves on to their neighbours."""
    height, width = photograph.images[CLEAN].shape[:2]
    places = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    if not places:
        raise _no_crop(photograph.name, height, width, side)
    return [places[(at + shift) % len(places)] for at in spread(len(places), count)]


def _no_crop(name: str, height: int, width: int, side: int) -> RunsError:
    return RunsError(
        f"t-SNE: {name}: {width}x{height} pixels hold no crop of data.crop_size={side}; evaluate on larger photographs"
    )


def _scatter(axes: Axes, embedding: Embedding, rows: Sequence[str]) -> None:
    styles = style.of_versions(rows)
    clean = embedding.points[CLEAN]
    handles = []
    for name, points in embedding.points.items():
        look, text = styles[name], name
        if name != CLEAN:
            text = f"{name}: distance {embedding.distance[name]:.3f}, KL {embedding.divergence[name]:.2e}"
            ends = np.stack([points, clean], axis=1)
            axes.add_collection(LineCollection(list(ends), colors=look.colour, linewidths=0.5, alpha=0.25, zorder=1))
        hollow = {"facecolors": "none", "edgecolors": look.colour} if look.marker not in "x+" else {"c": look.colour}
        axes.scatter(points[:, 0], points[:, 1], s=34, marker=look.marker, linewidths=1.2, zorder=2, **hollow)  # type: ignore[arg-type]
        handles.append(
            Line2D([], [], color=look.colour, marker=look.marker, markerfacecolor="none", linestyle="", label=text)
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=style.SIZE, markerscale=1.5)

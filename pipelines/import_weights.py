"""Bring weights in that others publish: read a file, convert it, and register it as a model like any other."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from d2sm.models import Denoiser
from d2sm.noise import seed_of
from d2sm.weights import fingerprint
from pipelines import registry, secrets
from pipelines.config import Config
from pipelines.networks import published
from pipelines.networks.models import build
from pipelines.networks.published import PublishedError
from pipelines.registry import Record, RegistryError
from pipelines.runs import checkpoint
from pipelines.runtime import files
from pipelines.tracking import store

NO_LICENCE, NO_SOURCE = "no licence stated", "no source stated"
_COLOURS = {"red": (0.8, 0.2, 0.2), "green": (0.2, 0.7, 0.3), "blue": (0.2, 0.3, 0.8)}
_SIGMA = 25.0  # of the noise on them
_SHIFT = 0.1  # by which the mean of a plain colour may change; a swap of channels changes it by 0.4 or more


@dataclass(frozen=True)
class Imported:
    """What `import_weights` has registered.

    Attributes:
        record: the registered version.
        form: of the file, one of `published.FORMS`.
        known: which published weights they are, if their fingerprint is known; else "".
    """

    record: Record
    form: str
    known: str


def import_weights(
    file: str | Path, name: str, *, alias: str = "", source: str = "", licence: str = "", uri: str | None = None
) -> Imported:
    """Register a file of weights as a new version of a model.

    Args:
        file: in one of `published.FORMS`; nothing in it is executed.
        name: of the registered model; made if new.
        alias: moved to the new version, such as champion.
        source: where the file is from, for the record; "": recorded as not stated.
        licence: of the weights, likewise.
        uri: of the store; None or empty: MLFLOW_TRACKING_URI, else runs/mlflow.db.

    Raises:
        PublishedError: the file cannot be read, is of no known network, or its network changes plain colours.
        RegistryError, TrackingError: the name or the alias cannot be used, or the store.
    """
    registry.check_names(name, alias, asked_by="--as")
    for option, text in (("--source", source), ("--licence", licence)):
        if line := secrets.problem(text, asked_by=option):
            raise RegistryError(line)
    weights, form = published.read(file)
    model = published.identify(weights, file)
    network = build(model).eval()
    network.load_state_dict(weights)
    check_colours(network, file)
    about = {
        "form": form,
        "file": Path(file).name,
        "file_sha256": files.sha256(Path(file)),
        "source": source or NO_SOURCE,
        "licence": licence or NO_LICENCE,
        "convention": _convention(network),
    }
    config = Config().replace({f"model.{key}": value for key, value in model.model_dump().items()})
    uri = store.absolute(uri) if uri else store.uri_of(config)
    with tempfile.TemporaryDirectory(prefix="d2sm-") as scratch:
        folder = Path(scratch) / "bundle"
        checkpoint.write_bundle(folder, weights=weights, config=config, meta={"name": name, "imported": about})
        record = registry.register(folder, name=name, run_id=None, uri=uri, alias=alias)
    return Imported(record, form, published.KNOWN.get(fingerprint(weights), ""))


def check_colours(network: Denoiser, source: str | Path) -> None:
    """Make sure that a network keeps plain colours: swapped channels hardly show in PSNR, but here they do.

    Red and blue swapped in both the input and the output cannot be told from a network's results. Which form has them
    how is known, and `published.KNOWN` has the fingerprints of what was converted rightly.

    Args:
        source: the file of the weights, for the message.

    Raises:
        PublishedError: the mean of a noisy plain colour changes by more than `_SHIFT`.
    """
    for colour, rgb in _COLOURS.items():
        generator = torch.Generator().manual_seed(seed_of(colour))
        clean = torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 64, 64)
        noisy = clean + _SIGMA / 255 * torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            restored: Tensor = network(noisy, _SIGMA)
        mean = restored.mean((0, 2, 3))
        if not bool((mean - torch.tensor(rgb)).abs().max() <= _SHIFT):
            raise PublishedError(
                f"{source}: its network does not keep plain colours: {colour} {list(rgb)} becomes "
                f"{[round(value, 2) for value in mean.tolist()]}; its channels are in another order, or the file is of "
                "another network"
            )


def _convention(network: Denoiser) -> str:
    level = "blind" if network.blind else "noise level sigma on the scale 0..255"
    return f"RGB in [0, 1]; {level}; the output is the restored image, not clamped"

"""The networks of timm and torchvision as Phi: built by name, with weights that are on this machine. No downloads.

timm:resnet50.layer3              any network of timm, any of its submodules
timm:resnet50.a1_in1k.layer3      of which timm knows several weights: those with this tag
torchvision:resnet50.layer3       any network of torchvision
"""

from __future__ import annotations

import inspect
import re
import warnings
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2sm.feature_networks import Scale
from d2sm.feature_weights import lite0_file, match, read, torch_cache
from d2sm.truncation import Truncated, drop_unused

LIBRARIES = ("timm", "torchvision")
SIDE = 384  # of the image on the meta device that a network is run on; a multiple of every usual stride


def is_library(name: str) -> bool:
    """Whether a name of a network or layer begins with a library: "timm:..." or "torchvision:..."."""
    return name.partition(":")[0] in LIBRARIES and ":" in name


def split(name: str) -> tuple[str, str]:
    """ "timm:resnet50.a1_in1k.layer3" -> ("timm:resnet50.a1_in1k", "layer3").

    Raises:
        ValueError: the library has no such network.
    """
    library, _, rest = name.partition(":")
    network, _, layer = rest.partition(".")
    _check_name(library, network)
    tag, _, deeper = layer.partition(".")
    if library == "timm" and f"{network}.{tag}" in _timm().models.get_arch_pretrained_cfgs(network):
        return f"{library}:{network}.{tag}", deeper
    return f"{library}:{network}", layer


def build(network: str, sketch: Truncated, *, weights: str | Path | None = None) -> tuple[Truncated, Scale | None]:
    """A network up to its layers with its weights, and the normalisation that these expect; None: the network's own.

    Args:
        network: as `split` gives it.
        sketch: the same network up to its layers, on the meta device. Loses the parts that do not run.
        weights: a file; "random"; None: those on this machine, see `installed_weights`.

    Raises:
        ValueError: weights missing, unreadable or of another network. One line.
    """
    path = None
    if not (isinstance(weights, str) and weights == "random"):
        path = installed_weights(network) if weights is None else Path(weights)
    shapes = {key: value.shape for key, value in sketch.network.state_dict().items()}
    drop_unused(sketch, meta_image())
    whole, scale = _create(network, device="cpu")
    for child, module in sketch.network.named_children():
        if isinstance(module, nn.Identity):
            setattr(whole, child, nn.Identity())
    if path is not None:
        _load(network, whole, shapes, path)
    return Truncated(whole, sketch.layers), scale


def on_meta(network: str) -> nn.Module:
    """The whole network on the meta device, in eval mode."""
    return _create(network, device="meta")[0]


def meta_image(scale: int = 1) -> Tensor:
    """A square image on the meta device."""
    return torch.zeros(1, 3, scale * SIDE, scale * SIDE, device="meta")


def installed_weights(network: str) -> Path:
    """The file of a network's weights on this machine: in torch's cache, in Hugging Face's, or in a package.

    Raises:
        ValueError: there is none; with the command that brings it.
    """
    library, _, name = network.partition(":")
    places = _torchvision_files(name) if library == "torchvision" else _timm_files(name)
    for path in places:
        if path.is_file():
            return path
    if library == "torchvision":
        command = f"""python -c "import torchvision; torchvision.models.get_model('{name}', weights='DEFAULT')\""""
    else:
        command = f"""python -c "import timm; timm.create_model('{name}', pretrained=True)\""""
    at = f"at {places[0]}" if places else "known to the library"
    raise ValueError(
        f"features: no weights of {network} {at}; run {command}, give weights=FILE, or take "
        'features="efficientnet_lite0.blocks.4", whose weights are a Python package'
    )


def _check_name(library: str, name: str) -> None:
    if library == "timm":
        timm = _timm()
        known, exists = timm.list_models, timm.is_model(name)
    else:
        models = import_module("torchvision.models")
        known, exists = models.list_models, name in models.list_models()
    if not exists:
        close = get_close_matches(name, known(), n=1, cutoff=0.0)[0]
        raise ValueError(f"features: {library} has no network {name!r}; did you mean {library}:{close}?")


def _create(network: str, *, device: str) -> tuple[nn.Module, Scale | None]:
    """A network of random weights, always the same ones, and the normalisation of its images."""
    library, _, name = network.partition(":")
    create = _create_timm if library == "timm" else _create_torchvision
    # On a CPU a network draws its first weights; a run's own random numbers must not depend on that.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        try:
            try:
                with torch.device(device):
                    whole = create(name)
            except NotImplementedError:  # RegNet computes its widths by tensors: without values there are none
                whole = create(name).to(device)
        except Exception as error:  # of a library's many networks some need a package or an argument
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(f"features: {library} cannot build {name}: {reason}; take another network") from None
    if library == "timm":
        about = whole.pretrained_cfg
        mean, std = about.get("mean"), about.get("std")
    else:
        transforms = _torchvision_transforms(name)
        mean, std = getattr(transforms, "mean", None), getattr(transforms, "std", None)
    return whole.eval(), (tuple(mean), tuple(std)) if mean and std and len(mean) == 3 else None


def _create_timm(name: str) -> Any:
    return _timm().create_model(name, pretrained=False)


def _create_torchvision(name: str) -> Any:
    models = import_module("torchvision.models")
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    # A segmentation network would download the weights of its backbone unless told.
    absent = {key: None for key in ("weights", "weights_backbone") if key in parameters}
    network = models.get_model(name, **absent)
    if hasattr(network, "transform_input"):
        # Published weights of GoogLeNet and Inception expect images in [-1, 1]. torchvision states ImageNet's
        # normalisation for them, and where it loads them has the network itself turn that into theirs.
        network.transform_input = True
    return network


def _torchvision_transforms(name: str) -> Any:
    weights = _torchvision_weights(name)
    return weights.transforms() if weights is not None else None


def _torchvision_weights(name: str) -> Any:
    """The default weights' entry in torchvision's list; None where a network has none."""
    try:
        return import_module("torchvision.models").get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):
        return None


def _torchvision_files(name: str) -> list[Path]:
    weights = _torchvision_weights(name)
    return [] if weights is None else [torch_cache() / weights.url.rpartition("/")[2]]


def _timm_files(name: str) -> list[Path]:
    timm = _timm()
    about = timm.get_pretrained_cfg(name)
    files = []
    if about and about.url:
        files.append(torch_cache() / about.url.rpartition("/")[2])
    if about and about.hf_hub_id:
        hub = import_module("huggingface_hub")  # timm needs it too
        for file in filter(None, (about.hf_hub_filename, "model.safetensors", "pytorch_model.bin")):
            found = hub.try_to_load_from_cache(about.hf_hub_id, file)
            files += [Path(found)] if isinstance(found, str) else []
    if name.partition(".")[0] == "tf_efficientnet_lite0":
        files.insert(0, lite0_file())
    return files


def _load(network: str, kept: nn.Module, shapes: dict[str, torch.Size], path: Path) -> None:
    """Load what runs. Parts after the layers may be missing in the file or of other sizes, such as another head."""
    # Published files of DenseNet have "norm.1" where the network has "norm1"; both libraries rename these.
    state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): v for key, v in read(path).items()}
    if "_conv_stem.weight" in state:  # EfficientNet-Lite0's package, whose keys are others
        with torch.device("meta"):
            target = {key: torch.empty(shape) for key, shape in shapes.items()}
        state = match(state, target, path)
    own = kept.state_dict()
    children = {key.partition(".")[0] for key in own}
    remedy = f"give the weights of {network}"
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros((), dtype=torch.long, device="cpu"))
        found = f"{tuple(state[key].shape)}" if key in state else "nothing"
        if key not in state or state[key].shape != value.shape:
            raise ValueError(f"features: {path} has {found} for {key} {tuple(value.shape)}; {remedy}")
    for key in state:
        if key not in shapes and key.partition(".")[0] in children:
            raise ValueError(f"features: {path} has {key}, which {network} has not; {remedy}")
    for key, value in own.items():
        own[key] = state[key].to(value.dtype)
    kept.load_state_dict(own)  # with the versions of its modules, which MNASNet asks for


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError:
        raise ValueError("features: timm is not installed: pip install timm") from None

"""Exported programs of unknown origin: the same numbers as torch's own loader, and none of what that would run."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.networks import exported
from pipelines.networks.exported import ProgramError
from pipelines.networks.segmenters import SegmenterError, checked

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
Change = Callable[[dict[str, bytes]], None]


class Small(nn.Module):
    """What real segmenters have: buffers, an operation in place, sizes that depend on the input, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.drop, self.norm = nn.Conv2d(3, 19, 3, stride=2, padding=1), nn.Dropout(0.5), nn.BatchNorm2d(19)
        self.register_buffer("mean", torch.rand(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        maps = F.relu(self.norm(self.map(image - self.mean)), inplace=True)
        first, second = maps.split([9, 10], dim=1)
        best, _ = torch.cat([first, second * 2], 1).max(dim=1, keepdim=True)
        height, width = image.shape[2:]
        return F.interpolate(self.drop(maps - best), size=(height, width // 2 * 2), mode="bilinear")


def export(network: nn.Module, path: Path, sizes: object = torch.export.Dim.AUTO) -> None:
    """Save a network as MLflow does."""
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim.AUTO, 2: sizes, 3: sizes},) if sizes else None
    program = torch.export.export(network.eval(), (torch.rand(2, 3, 32, 48),), dynamic_shapes=shapes)
    torch.export.save(program, path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "small.pt2"
    export(Small(), path)
    return path


def changed(source: Path, target: Path, change: Change) -> Path:
    """A copy of an archive, after `change` was called with its records by name."""
    with zipfile.ZipFile(source) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"small/{name}", content)
    return target


def edited(edit: Callable[[Any], None], record: str = MODEL) -> Change:
    """A change of one JSON record."""

    def change(records: dict[str, bytes]) -> None:
        tree = json.loads(records[record])
        edit(tree)
        records[record] = json.dumps(tree).encode()

    return change


def test_it_gives_what_torch_gives(small: Path) -> None:
    ours, theirs = exported.load(small).eval().requires_grad_(False), torch.export.load(small).module()
    for shape in ((1, 3, 64, 96), (3, 3, 40, 56)):
        image = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)
    image.requires_grad_(True)
    ours(image).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_images_of_other_sizes_than_it_was_exported_for(tmp_path: Path) -> None:
    export(nn.Conv2d(3, 19, 3), tmp_path / "model.pt2", sizes=None)
    ours = exported.load(tmp_path / "model.pt2")
    assert ours(torch.rand(2, 3, 32, 48)).shape == (2, 19, 30, 46)
    for shape in ((2, 3, 32, 49), (1, 3, 32, 48), (3, 32, 48)):
        with pytest.raises(ProgramError, match=r"exported for images of \(2, 3, 32, 48\).*dynamic sizes"):
            ours(torch.rand(shape))


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def node(tree: Any, number: int = -1) -> Any:
    return tree["graph_module"]["graph"]["nodes"][number]


def specs(tree: Any) -> Any:
    return tree["graph_module"]["signature"]["input_specs"]


def call(target: str, *texts: str) -> Callable[[Any], None]:
    """Adds a call with arguments of text."""

    def edit(tree: Any) -> None:
        inputs = [{"name": "", "arg": {"as_string": text}, "kind": 1} for text in texts]
        added = {"target": target, "inputs": inputs, "outputs": [{"as_none": True}], "metadata": {}}
        tree["graph_module"]["graph"]["nodes"].insert(0, added)

    return edit


PACKET = "torch.ops.aten.movedim."


def step(target: str, out: str | None = None, **arguments: dict[str, Any]) -> dict[str, Any]:
    """A call with arguments by name, whose result, if it has one, is `out`."""
    inputs = [{"name": name, "arg": argument, "kind": 1} for name, argument in arguments.items()]
    outputs = [{"as_tensor": {"name": out}}] if out else [{"as_none": True}]
    return {"target": target, "inputs": inputs, "outputs": outputs, "metadata": {}}


def shell(path: Path) -> Change:
    """Calls that reach `subprocess.Popen` through the attributes of an operation's packet, and run a command."""

    def become(op: dict[str, Any]) -> dict[str, Any]:
        named = {"qualified_op_name": {"as_string": "aten::movedim"}, "op_name": {"as_string": "m"}}
        return step(f"{PACKET}__init__", **named, op=op, overload_names={"as_ints": []})

    def attribute(key: str, out: str) -> dict[str, Any]:
        return step(f"{PACKET}__getattr__", out, key={"as_string": key})

    def value(name: str) -> dict[str, Any]:
        return {"as_tensor": {"name": name}}

    def edit(tree: Any) -> None:
        place = object.__subclasses__().index(subprocess.Popen)
        listed = step(f"{PACKET}__call__")
        listed["outputs"] = [{"as_tensors": [{"name": f"k{number}"} for number in range(place + 1)]}]
        command = {"args": {"as_string": f"touch {path}"}, "shell": {"as_bool": True}}
        tree["graph_module"]["graph"]["nodes"][:0] = [
            become({"as_string": "x"}), attribute("__class__", "a"), become(value("a")), attribute("__base__", "b"),
            become(value("b")), attribute("__subclasses__", "c"), become(value("c")), listed,
            become(value(f"k{place}")), step(f"{PACKET}__call__", "z", **command),
        ]  # fmt: skip

    return edited(edit)


def plant(kind: str, path: Path) -> Change:
    """An attack on `torch.export.load`, which makes a file at `path`."""
    code = f"__import__('pathlib').Path({str(path)!r}).touch()"
    saved = io.BytesIO()
    torch.save({"": Planted(path)}, saved)

    def record(name: str, content: bytes) -> Change:
        return lambda records: records.update({name: content})

    def pickled(tree: Any) -> None:
        entry = next(iter(tree["config"].values()))
        entry |= {"use_pickle": True, "path_name": "weight_0"}

    def sizes(tree: Any) -> None:
        for value in tree["graph_module"]["graph"]["tensor_values"].values():
            value["sizes"] = [{"as_expr": {"expr_str": code, "hint": None}}]

    def named(tree: Any) -> None:
        node(tree)["name"] = f"x = {code} #"

    return {
        "pickled example": record("data/sample_inputs/model.pt", saved.getvalue()),
        "pickled weights of old archives": record("data/weights/model.pt", saved.getvalue()),
        "pickled weight": lambda records: (
            edited(pickled, WEIGHTS)(records),
            records.update({"data/weights/weight_0": saved.getvalue()}),
        )[-1],
        "pickled constant": record("data/constants/opaque_obj_0", pickle.dumps(Planted(path))),
        "compiled library": record("data/aotinductor/model/model.so", b"\x7fELF"),
        "size as Python": edited(sizes),
        "guard as Python": edited(lambda tree: tree.update(guards_code=[code])),
        "name as Python": edited(named),
        "any function of torch": edited(call("torch.os.system", f"touch {path}")),
        "any function of operator": edited(call("_operator.methodcaller", "touch")),
        "library": edited(call("torch.ops.load_library", str(path))),
        "file of ATen": edited(call("torch.ops.aten.from_file.default", str(path))),
        "file of TorchScript": edited(call("torch.ops.aten.save.default", str(path))),
        "registered extension": edited(call("#anything:touch")),
        "shell command by an operation's packet": shell(path),
    }[kind]


REFUSED = {
    "pickled weights of old archives": "record 'data/weights/model.pt' is not allowed",
    "pickled weight": "map.weight: pickled",
    "pickled constant": "record 'data/constants/opaque_obj_0' is not allowed",
    "compiled library": "record 'data/aotinductor/model/model.so' is not allowed",
    "size as Python": "input size .* needs a number, a symbol",
    "any function of torch": "operation 'torch.os.system' is not allowed",
    "any function of operator": "operation '_operator.methodcaller' is not allowed",
    "library": "operation 'torch.ops.load_library' is not allowed",
    "file of ATen": "operation 'torch.ops.aten.from_file.default' is not allowed",
    "file of TorchScript": "operation 'torch.ops.aten.save.default' is not allowed",
    "registered extension": "operation '#anything:touch' is not allowed",
    "shell command by an operation's packet": f"operation '{PACKET}__call__' is not allowed",
}
UNREAD = ("pickled example", "guard as Python", "name as Python")  # torch would run these; here nothing reads them


class Normalising(nn.Conv2d):
    """It normalises its images in place, and then alone."""

    def __init__(self) -> None:
        super().__init__(3, 19, 1)

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image.sub_(0.5).div_(0.25))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout(), "gives two results for one image, as in training mode.*eval"),
        (nn.BatchNorm2d(19), "changes with every image, as in training mode.*eval"),
        (None, "changes its images in place"),
    ],
)
def test_a_segmenter_that_was_exported_in_training_mode_or_changes_its_images_is_refused(
    layer: nn.Module | None, message: str, tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 19, 1), layer).train() if layer else Normalising()
    torch.export.save(torch.export.export(network, (torch.rand(1, 3, 64, 96),)), tmp_path / "model.pt2")
    with pytest.raises(SegmenterError, match=f"^segmenter='models:/mine/1'.*{message}") as caught:
        checked("models:/mine/1", exported.load(tmp_path / "model.pt2"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [*REFUSED, *UNREAD])
def test_nothing_of_the_file_runs(kind: str, small: Path, tmp_path: Path) -> None:
    path = changed(small, tmp_path / "planted.pt2", plant(kind, tmp_path / "ran"))
    if kind in REFUSED:
        with pytest.raises(ProgramError, match=f"^planted.pt2: {REFUSED[kind]}") as caught:
            exported.load(path)
        assert "\n" not in str(caught.value)
    else:
        image = torch.rand(1, 3, 16, 24)
        assert torch.equal(exported.load(path)(image), exported.load(small)(image))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    [
        "add.__init__", "add.__call__", "add.__getattr__", "add.__class__", "add._op", "add._overload_names",
        "add._qualified_op_name", "add.op", "add.overloads", "add.no_such", "add.Tensor_", "add.Tensor.__class__",
        "add.ſtr", "add.Tensor\n", "__class__.mro", "_dir.append", "name.join", "no_such.default", "add__.Tensor",
        "fill__.Scalar",
    ],
)  # fmt: skip
def test_only_overloads_of_listed_operations_are_called(target: str, small: Path, tmp_path: Path) -> None:
    path = changed(small, tmp_path / "planted.pt2", edited(call(f"torch.ops.aten.{target}")))
    with pytest.raises(ProgramError, match=r"^planted.pt2: operation 'torch\.ops\.aten\..*' is not allowed"):
        exported.load(path)


def test_every_overload_of_a_listed_operation_is_found() -> None:
    found = 0
    for name in exported._ATEN:
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet else []:
            if not overload.endswith("_"):  # mul.right_, which repeats a list
                assert exported._function(f"torch.ops.aten.{name}.{overload}") is getattr(packet, overload)
                found += 1
    assert found > len(exported._ATEN)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("torch.ops.aten.add.str", {"a": {"as_string": "x"}, "b": {"as_string": "y"}}, "gives a str"),
        ("torch.ops.aten.split.str", {"self": {"as_string": "x y"}}, "gives a str"),
        ("_operator.mod", {"a": {"as_string": "%09d"}, "b": {"as_int": 1}}, "a str in place of a number"),
        ("_operator.mul", {"a": {"as_ints": [1]}, "b": {"as_int": 9}}, "a list in place of a number"),
        ("_operator.mul", {"a": {"as_int": 2**40}, "b": {"as_int": 2**40}}, "a number that no size has"),
    ],
)
def test_values_are_tensors_and_numbers(
    target: str, arguments: dict[str, Any], message: str, small: Path, tmp_path: Path
) -> None:
    def edit(tree: Any) -> None:
        tree["graph_module"]["graph"]["nodes"].insert(0, step(target, "found", **arguments))

    program = exported.load(changed(small, tmp_path / "planted.pt2", edited(edit)))
    with pytest.raises(ProgramError, match=f"^its operation {target} fails: .*{message}"):
        program(torch.rand(1, 3, 16, 24))


@pytest.mark.parametrize("kind", ["pickled example", "pickled constant", "size as Python", "guard as Python"])
def test_the_attacks_are_real(kind: str, small: Path, tmp_path: Path) -> None:
    """torch's own loader does run some of what is planted; otherwise the test above would show nothing."""
    path = changed(small, tmp_path / "planted.pt2", plant(kind, tmp_path / "ran"))
    if kind == "pickled constant":
        constant = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        config = "data/constants/model_constants_config.json"
        edit = edited(lambda tree: tree["config"].update({"planted": constant}), config)
        path = changed(path, tmp_path / "listed.pt2", edit)
        if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
            pytest.skip("this version of torch reads no pickled constants")
    with suppress(Exception):  # it may fail afterwards
        torch.export.load(path).module()(torch.rand(1, 3, 16, 24))
    assert (tmp_path / "ran").exists()


DAMAGES: dict[str, tuple[Change, str]] = {
    "no program": (lambda records: records.pop(MODEL) and None, f"record '{MODEL}' is missing"),
    "no JSON": (lambda records: records.update({MODEL: b"{"}), "not written by torch.export.save"),
    "nested": (lambda records: records.update({MODEL: b"[" * 100_000}), "not written by torch.export.save"),
    "other version": (edited(lambda tree: tree["schema_version"].update(major=9)), "schema version 9: needs 8"),
    "two images": (
        edited(lambda tree: specs(tree).append(specs(tree)[-1])),
        "takes 2 images",
    ),
    "weight cut short": (lambda records: records.update({"data/weights/weight_0": b"0123"}), "larger than its record"),
    "weight of no bytes": (lambda records: records.update({"data/weights/weight_0": b""}), "larger than its record"),
    "negative stride": (
        edited(lambda tree: tree["config"]["map.weight"]["tensor_meta"].update(strides=[{"as_int": -1}] * 4), WEIGHTS),
        "negative size or stride",
    ),
    "path": (
        edited(lambda tree: tree["config"]["map.weight"].update(path_name="../../weight_0"), WEIGHTS),
        "map.weight: .*no tensor",
    ),
    "unknown tensor": (
        edited(lambda tree: specs(tree)[0]["parameter"].update(parameter_name="x")),
        "not written by torch.export.save: KeyError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_archive_is_one_line(kind: str, small: Path, tmp_path: Path) -> None:
    change, message = DAMAGES[kind]
    with pytest.raises(ProgramError, match=f"^damaged.pt2: .*{message}") as caught:
        exported.load(changed(small, tmp_path / "damaged.pt2", change))
    assert "\n" not in str(caught.value)


def test_records_that_share_their_bytes_are_refused(small: Path, tmp_path: Path) -> None:
    path = changed(small, tmp_path / "damaged.pt2", lambda records: None)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        for number in range(900, 950):
            again = copy.copy(largest)
            again.filename = again.orig_filename = f"small/data/weights/weight_{number}"
            archive.filelist.append(again)
        archive.comment = b"written anew"
    with pytest.raises(ProgramError, match="^damaged.pt2: lists more bytes than it has"):
        exported.load(path)


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ProgramError, match="^text.pt2: no archive"):
        exported.load(tmp_path / "text.pt2")
    with pytest.raises(ProgramError, match="^none.pt2: no archive"):
        exported.load(tmp_path / "none.pt2")


def test_a_call_that_fails_names_its_operation(small: Path, tmp_path: Path) -> None:
    def edit(tree: Any) -> None:
        nodes = tree["graph_module"]["graph"]["nodes"]
        next(one for one in nodes if "conv2d" in one["target"])["inputs"][3]["arg"] = {"as_ints": [0, 0]}

    program = exported.load(changed(small, tmp_path / "planted.pt2", edited(edit)))
    with pytest.raises(ProgramError, match=r"^its operation torch.ops.aten.conv2d.default fails: "):
        program(torch.rand(1, 3, 16, 24))

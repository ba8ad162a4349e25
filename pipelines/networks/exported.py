"""Exported programs (`torch.export.save`, "pt2") of unknown origin, run without executing anything that a file holds.

`torch.export.load` is not used. As of torch 2.15 it unpickles records, evaluates shape expressions and guards as
Python, generates Python from names in the file, takes any attribute of `torch` as an operation, and loads compiled
libraries; MLflow's check before it looks at the pickles alone. Here the file gives two things only: tensors as raw
bytes, and a list of calls in JSON. Each call names one of the operations below; anything else is refused by name. What
a call gives is a tensor, a number, or a list of these, so no other object is ever an argument. What remains is trust in
the arithmetic of torch itself.
"""

from __future__ import annotations

import json
import math
import operator
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

# The records of an archive. Those of `_UNREAD` are not looked at: example inputs, which are pickled, and versions.
_PROGRAM, _WEIGHTS, _CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_UNREAD = ("data/sample_inputs/model.pt", "archive_version", ".data/version", "version", ".data/serialization_id")
_READ = (_PROGRAM, _WEIGHTS, _CONSTANTS, "archive_format", "byteorder")
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,6}")
_LARGEST_JSON = 64 * 2**20  # bytes
# An operation and one of its overloads. The overload's name neither begins nor ends with an underscore.
_OPERATION = re.compile(r"torch\.ops\.aten\.([a-z_][a-z0-9_]*)\.([A-Za-z](?:[A-Za-z0-9_]*[A-Za-z0-9])?)")
_LARGEST_NUMBER = 2**63  # that a size is below; Python's own numbers have any length

# Operations of ATen, by name; an in-place form (`relu_`) goes with each. None reads or writes a file, takes a pointer,
# or leaves out its check of indices.
_LAYERS = """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d convolution linear matmul mm bmm addmm baddbmm einsum
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training layer_norm
    native_layer_norm group_norm native_group_norm instance_norm dropout feature_dropout alpha_dropout embedding
    scaled_dot_product_attention max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d
    adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d pixel_shuffle pixel_unshuffle
    channel_shuffle upsample_bilinear2d _upsample_bilinear2d_aa upsample_nearest1d upsample_nearest2d
    upsample_bicubic2d grid_sampler grid_sampler_2d im2col constant_pad_nd pad reflection_pad2d replication_pad2d
"""
_ACTIVATIONS = """
    relu relu6 leaky_relu prelu elu celu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid log_sigmoid tanh
    softplus softsign softmax _softmax log_softmax _log_softmax threshold
"""
_ARITHMETIC = """
    add sub rsub mul div floor_divide remainder neg abs sign exp exp2 expm1 log log2 log1p sqrt rsqrt square pow
    reciprocal sin cos tan atan atan2 erf clamp clamp_min clamp_max minimum maximum floor ceil round trunc lerp
    addcmul addcdiv where masked_fill eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and
    bitwise_or bitwise_not isnan isinf sum mean prod amax amin max min argmax argmin any all var std var_mean norm
    linalg_vector_norm cumsum topk sort
"""
_SHAPES = """
    view reshape _unsafe_view flatten unflatten permute transpose t squeeze unsqueeze expand expand_as repeat tile
    repeat_interleave cat concat stack hstack vstack split split_with_sizes chunk unbind slice select narrow index
    index_select gather flip roll rot90 movedim swapaxes diagonal tril triu contiguous clone to _to_copy type_as
    float detach alias lift_fresh lift_fresh_copy view_as copy copy_ fill fill_ zero zero_ arange linspace eye zeros
    ones full scalar_tensor zeros_like ones_like full_like new_zeros new_ones new_full meshgrid one_hot sym_size
    sym_numel
"""
_CHECKS = """
    _assert_scalar _assert_tensor_metadata _assert_async sym_constrain_range sym_constrain_range_for_size
"""
_ATEN = frozenset(" ".join([_LAYERS, _ACTIVATIONS, _ARITHMETIC, _SHAPES, _CHECKS]).split())
# Arithmetic of sizes. `pow` and shifts are left out: they make numbers of any length.
_SIZES: Mapping[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "eq", "ne", "lt", "le", "gt", "ge", "and_",
        "or_",
    )},
    **{f"math.{name}": getattr(math, name) for name in ("trunc", "floor", "ceil")},
    "torch.sym_int": int, "torch.sym_float": float, "torch.sym_max": max, "torch.sym_min": min,
    "torch.sym_not": operator.not_, "torch.sym_sqrt": math.sqrt,
}  # fmt: skip
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_SYMBOL = r"(?:Symbol\('(\w+)'(?:, \w+=True)*\)|([su]\d+))"
_SIZE = re.compile(rf"(?:Mul\(Integer\((\d{{1,9}})\), {_SYMBOL}\)|(\d{{1,9}})\*{_SYMBOL}|{_SYMBOL})")


class ProgramError(ValueError):
    """A file that is no exported program, or one that needs more than is allowed. One line."""


class _Dimension(NamedTuple):
    """A size of the input: `factor` times the number that `symbol` stands for, or `factor` itself if that is empty."""

    factor: int
    symbol: str
    least: int
    most: float


class _Call(NamedTuple):
    """One operation: what it is, its arguments as JSON has them, the names of its results, and what is unused after."""

    name: str
    function: Callable[..., Any]
    inputs: Sequence[Mapping[str, Any]]
    outputs: Sequence[str | None]
    listed: bool  # the result is one list, whose members have the names
    spent: tuple[str, ...]


class Program(nn.Module):
    """An exported network that maps one image tensor to one tensor. It has one mode; its tensors move with `to`."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        image: str,
        shape: Sequence[_Dimension],
        calls: Sequence[_Call],
        result: str,
    ) -> None:
        super().__init__()
        self._names = list(tensors)
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(f"tensor{number}", tensor)
        self._image, self._shape, self._calls, self._result = image, shape, calls, result

    def forward(self, image: Tensor) -> Tensor:
        """Run the calls in their order.

        Raises:
            ProgramError: it was exported for images of other sizes, or a call fails.
        """
        self._check_shape(image)
        values: dict[str, Any] = {name: getattr(self, f"tensor{number}") for number, name in enumerate(self._names)}
        values[self._image] = image
        for call in self._calls:
            try:
                arguments = [(one["name"], _value(one["arg"], values, image.device)) for one in call.inputs]
                if call.name in _SIZES:
                    found = call.function(*(_number(value) for _, value in arguments))
                else:
                    found = call.function(**dict(arguments))
                _check_kind(found)
                results = found if call.listed or len(call.outputs) > 1 else (found,)
                values.update((name, value) for name, value in zip(call.outputs, results, strict=False) if name)
            except (KeyError, TypeError, ValueError, RuntimeError, IndexError, ArithmeticError) as error:
                raise ProgramError(f"its operation {call.name} fails: {error}") from error
            for name in call.spent:
                values.pop(name, None)
        result: Tensor = values[self._result]
        return result

    def _check_shape(self, image: Tensor) -> None:
        known: dict[str, int] = {}
        fits = image.dim() == len(self._shape)
        for size, (factor, symbol, least, most) in zip(image.shape, self._shape, strict=False):
            if symbol:
                value, left = divmod(size, factor)
                fits = fits and not left and least <= value <= most and known.setdefault(symbol, value) == value
            else:
                fits = fits and size == factor
        if not fits:
            wanted = ", ".join(f"{f}*{s}" if s and f > 1 else s or str(f) for f, s, _, _ in self._shape)
            raise ProgramError(
                f"it was exported for images of ({wanted}), this is {tuple(image.shape)}; export it with dynamic sizes"
            )


def load(path: Path) -> Program:
    """Read an exported program.

    Raises:
        ProgramError: the file is none, holds a record or an operation that is not allowed, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _program(_Records(archive, path.stat().st_size))
    except ProgramError as error:
        raise ProgramError(f"{path.name}: {error}") from None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ProgramError(f"{path.name}: no archive of torch.export.save: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, RecursionError) as error:
        raise ProgramError(f"{path.name}: not written by torch.export.save: {type(error).__name__}: {error}") from None


class _Records:
    """The records of an archive by their names, without the folder that torch puts in front of all."""

    def __init__(self, archive: zipfile.ZipFile, length: int) -> None:
        self._archive = archive
        self._by_name: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            name = info.filename.partition("/")[2]
            if not (name in _READ or name in _UNREAD or _TENSOR.fullmatch(name)):
                raise ProgramError(
                    f"record {name or info.filename!r} is not allowed: an exported program is {_PROGRAM} and tensors "
                    "as raw bytes; export it again with torch.export.save"
                )
            if name in self._by_name or info.compress_type != zipfile.ZIP_STORED:
                raise ProgramError(f"record {name!r} is there twice or compressed; torch.export.save writes neither")
            self._by_name[name] = info
        if sum(info.file_size for info in self._by_name.values()) > length:
            raise ProgramError("lists more bytes than it has")
        if missing := [name for name in _READ if name not in self._by_name]:
            raise ProgramError(f"record {missing[0]!r} is missing; export it again with torch.export.save")
        for name, wanted in (("archive_format", b"pt2"), ("byteorder", b"little")):
            if self._by_name[name].file_size > 16 or self.read(name).strip() != wanted:
                raise ProgramError(f"record {name!r} is not {wanted.decode()!r}")

    def read(self, name: str) -> bytes:
        return self._archive.read(self._by_name[name])

    def json(self, name: str) -> Any:
        if self._by_name[name].file_size > _LARGEST_JSON:
            raise ProgramError(f"record {name!r} has more than {_LARGEST_JSON >> 20} MiB")
        return json.loads(self.read(name))

    def tensors(self, config: str) -> dict[str, Tensor]:
        """The tensors that a table names, whose bytes are records in the same folder."""
        folder = config.rpartition("/")[0]
        storages: dict[tuple[str, torch.dtype], Tensor] = {}
        found = {}
        for name, entry in self.json(config)["config"].items():
            record = f"{folder}/{entry['path_name']}"
            if entry["use_pickle"] or not _TENSOR.fullmatch(record):
                raise ProgramError(f"{name}: pickled, or no tensor ({record}); only tensors as raw bytes are allowed")
            meta = entry["tensor_meta"]
            dtype = _DTYPES[meta["dtype"]]
            if (record, dtype) not in storages:
                data = bytearray(self.read(record))
                storages[record, dtype] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            sizes, strides = ([int(one["as_int"]) for one in meta[key]] for key in ("sizes", "strides"))
            offset, storage = int(meta["storage_offset"]["as_int"]), storages[record, dtype]
            if min((*sizes, *strides, offset), default=0) < 0:
                raise ProgramError(f"{name}: a negative size or stride")
            if 0 in sizes:
                found[name] = torch.empty(sizes, dtype=dtype)
                continue
            last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
            if last >= len(storage):
                raise ProgramError(f"{name}: larger than its record {record}")
            found[name] = storage.as_strided(sizes, strides, offset)
        return found


def _program(records: _Records) -> Program:
    tree = records.json(_PROGRAM)
    if tree["schema_version"]["major"] != 8:
        raise ProgramError(
            f"schema version {tree['schema_version']['major']}: needs 8, as torch 2.11 and later write it"
        )
    stored = {**records.tensors(_WEIGHTS), **records.tensors(_CONSTANTS)}
    module = tree["graph_module"]
    graph, signature = module["graph"], module["signature"]
    tensors: dict[str, Tensor] = {}
    images = []
    for spec in signature["input_specs"]:
        ((kind, about),) = spec.items()
        if kind == "user_input":
            images.append(about["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            tensors[about["arg"]["name"]] = stored[about[f"{kind}_name"]]
        else:
            raise ProgramError(f"input {kind!r} is not allowed: tensors only")
    outputs = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in signature["output_specs"]]
    if len(images) != 1 or len(outputs) != 1:
        raise ProgramError(f"takes {len(images)} images and gives {len(outputs)} results: needs one of each")
    limits = tree["range_constraints"]
    shape = [_dimension(size, limits) for size in graph["tensor_values"][images[0]]["sizes"]]
    return Program(tensors, images[0], shape, _calls(graph["nodes"], keep={*tensors, *images, *outputs}), outputs[0])


def _dimension(size: Mapping[str, Any], limits: Mapping[str, Any]) -> _Dimension:
    if "as_int" in size:
        return _Dimension(int(size["as_int"]), "", 0, 0)
    text = str(size["as_expr"]["expr_str"])
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ProgramError(f"input size {text[:80]!r}: needs a number, a symbol, or a multiple of one")
    factor = next((int(one) for one in match.groups() if one and one.isdigit()), 1)
    symbol = next(one for one in match.groups() if one and not one.isdigit())
    limit = limits.get(symbol, {})
    least, most = limit.get("min_val") or 0, limit.get("max_val")
    # torch.export writes 2 for any size: it treats 0 and 1 apart while it traces, and takes them afterwards.
    return _Dimension(factor, symbol, int(least) if least > 2 else 0, math.inf if most is None else int(most))


def _calls(nodes: Sequence[Mapping[str, Any]], keep: set[str]) -> list[_Call]:
    """The calls, each with the names that no later call reads."""
    used: set[str] = set(keep)
    calls = []
    for node in reversed(nodes):
        read = _names([one["arg"] for one in node["inputs"]])
        outputs, listed = _outputs(node["outputs"])
        spent = {name for name in read | set(filter(None, outputs)) if name not in used}
        used |= read
        function = _function(node["target"])
        calls.append(_Call(node["target"], function, node["inputs"], outputs, listed, tuple(spent)))
    return calls[::-1]


def _function(target: str) -> Callable[..., Any]:
    """The operation of this name, if it is one that is allowed."""
    if target in _SIZES:
        return _SIZES[target]
    match = _OPERATION.fullmatch(target)
    if match and (match[1] in _ATEN or match[1].removesuffix("_") in _ATEN):
        packet = getattr(torch.ops.aten, match[1], None)
        # A packet has attributes that are no overloads, such as `__init__` and `_op`: they lead to any Python.
        if isinstance(packet, OpOverloadPacket) and match[2] in packet.overloads():
            overload = getattr(packet, match[2])
            if isinstance(overload, OpOverload):
                return overload
    raise ProgramError(f"operation {target[:80]!r} is not allowed; a network that needs it is given as module:callable")


def _number(value: Any) -> int | float:
    """An argument of the arithmetic of sizes, which would do other things with text or lists."""
    if not isinstance(value, int | float):
        raise TypeError(f"a {type(value).__name__} in place of a number")
    return value


def _check_kind(found: Any) -> None:
    """Make sure that the result of a call is a tensor, a number, None, or a list of these."""
    if isinstance(found, list | tuple):
        for one in found:
            _check_kind(one)
    elif not (found is None or isinstance(found, Tensor | int | float)):
        raise TypeError(f"it gives a {type(found).__name__}: needs tensors and numbers")
    elif isinstance(found, int) and abs(found) >= _LARGEST_NUMBER:
        raise ValueError("it gives a number that no size has")


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> tuple[list[str | None], bool]:
    """The names of a call's results (None for one that has none), and whether they are members of one list."""
    names: list[str | None] = []
    for output in outputs:
        ((kind, value),) = output.items()
        if kind == "as_tensors":
            return [one["name"] for one in value], True
        if kind == "as_tensor":
            names.append(value["name"])
        elif kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            names.append(value["as_name"])
        elif kind == "as_none":
            names.append(None)
        else:
            raise ProgramError(f"result {kind!r} is not allowed")
    return names, False


def _names(inputs: Any) -> set[str]:
    """The names of the values that arguments read."""
    if isinstance(inputs, list):
        return set().union(*map(_names, inputs)) if inputs else set()
    if not isinstance(inputs, dict):
        return set()
    found = set().union(*(_names(value) for value in inputs.values())) if inputs else set()
    for key in ("as_name", "name"):
        if isinstance(inputs.get(key), str):
            found.add(inputs[key])
    return found


def _value(argument: Mapping[str, Any], values: Mapping[str, Any], device: torch.device) -> Any:
    """An argument of a call. Tensors that a call makes are made on the device of the image."""
    ((kind, value),) = argument.items()
    if kind in ("as_tensor", "as_name"):
        return values[value["name"] if kind == "as_tensor" else value]
    if kind == "as_none":
        return None
    if kind in ("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"):
        return value
    if kind == "as_tensors":
        return [values[one["name"]] for one in value]
    if kind in ("as_optional_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return [_value(one, values, device) for one in value]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return _value(value, values, device)
    if kind == "as_scalar_type":
        return _DTYPES[value]
    if kind == "as_memory_format":
        return _FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return device
    raise ProgramError(f"argument {kind!r} is not allowed")

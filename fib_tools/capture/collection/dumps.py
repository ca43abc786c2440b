"""Calls of FlashInfer as it writes them down at log level 10: a folder each, with the arguments' tensors.

<YYYYMMDD_HHMMSS_mmm>_pid<P>_<Class.method>_call<NNNN>/
    metadata.jsonl        a line before the call and a line after it; the last one counts
    inputs.safetensors    `arg_1`, `arg_2__0` (a member of a tuple), `kwarg_name`
    outputs.safetensors   `result`, or `result_0`, `result_1`
    fib_state.json        of an engine with our hook: what the object held

The engine writes them, and who says that it did is not known: sizes are bounded, links are not followed, and a tensor
is what its file says it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fib_tools.capture.collection.signature import bind_arguments, parse_signature
from fib_tools.capture.dump_hook.stating import STATE_FILE
from fib_tools.errors import FormatError
from fib_tools.host.files import read_limited
from fib_tools.model.canonical import load_json

if TYPE_CHECKING:
    import torch

__all__ = [
    "Call",
    "OpaqueValue",
    "TensorFacts",
    "is_call_folder",
    "list_call_folders",
    "load_call",
    "read_integers",
    "read_rows",
]

_NAME = re.compile(
    r"(?P<time>[0-9]{8}_[0-9]{6}_[0-9]{3})_pid(?P<pid>[0-9]{1,10})_(?P<function>[\w.<>]{1,150})_call[0-9]+"
)
_DOTTED = re.compile(r"[\w.<>]{1,200}")
_METADATA_BYTES = 4 << 20
_INTEGER_BYTES = 256 << 20
"""Of one tensor that is kept: a page table of 64 million entries."""
_STATE_BYTES = 64 << 10
_MAX_RANK = 8
_MAX_LENGTH = 1 << 48
_ITEM_BYTES = {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFacts:
    """What a dump says about a tensor, and where its values are."""

    shape: tuple[int, ...]
    dtype: str
    """As the schema spells it: `bfloat16`."""
    folder: Path
    key: str
    is_output: bool = False
    scale: float | None = None
    """The root mean square of its values, where the dump has that in their place: see `dump_hook/light.py`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpaqueValue:
    """An argument that a dump only names the type of."""

    type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call that came to its end."""

    folder: Path
    module: str
    function: str
    """Such as `rmsnorm` or `BatchDecodeWithPagedKVCacheWrapper.run`."""
    process: int
    self_id: int | None
    """Identity of the object whose method it is."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Those that the caller gave, by name: TensorFacts, a tuple, a plain value, or OpaqueValue."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Those that it left out, as the function's signature in the dump sets them."""
    results: tuple[TensorFacts, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    """What its object held, where the engine ran with our hook: see `dump_hook/stating.py`."""

    @property
    def owner(self) -> tuple[int, str, int | None]:
        """The object whose method it is: addresses are of one process, and come again for another class."""
        return self.process, self.function.rpartition(".")[0], self.self_id


def list_call_folders(folder: Path) -> list[Path]:
    """List the folders of calls in the order of the calls; of one millisecond, in the order of their writing."""
    found = filter(is_call_folder, folder.iterdir())
    return sorted(found, key=lambda path: (path.name[:19], _written(path), path.name))


def is_call_folder(path: Path) -> bool:
    """Tell whether this is the folder of a call, and no link to one."""
    return _NAME.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()


def _written(folder: Path) -> int:
    try:
        return (folder / "metadata.jsonl").stat().st_mtime_ns
    except OSError:
        return 0


def load_call(folder: Path) -> Call | None:
    """Load a call; None while it has not come to its end.

    Raises:
        FormatError: the dump does not say what FlashInfer's dumps say.
    """
    if (folder / "metadata.jsonl").is_symlink():
        raise FormatError("its metadata are a link", where=folder.name)
    text = read_limited(folder / "metadata.jsonl", _METADATA_BYTES)
    if not text.endswith(b"\n"):  # the engine is just writing it
        return None
    lines = text.splitlines()
    document = load_json(lines[-1], where=f"{folder.name}/metadata.jsonl:{len(lines)}")
    if not isinstance(document, dict):
        raise FormatError("its metadata are no object", where=folder.name)
    if document.get("graph_capture"):
        raise FormatError("it was captured in a CUDA graph, whose replays are not read", where=folder.name)
    if document.get("execution_status") != "completed":
        return None
    try:
        return _read_call(folder, document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"its metadata are not FlashInfer's: {error!r}"[:200], where=folder.name) from error


def _read_call(folder: Path, document: Mapping[str, Any]) -> Call:
    scales = {key: float(scale) for key, scale in document.get("fib_scales", {}).items()}
    details = {
        str(key): _read_facts(folder, str(key), item, scales.get(key))
        for key, item in document["tensor_details"].items()
    }
    given: dict[str, Any] = {str(key): _read_value(item, details) for key, item in document["input_metadata"].items()}
    results = [key for key in details if key == "result" or key.startswith("result_")]
    given |= {key: facts for key, facts in details.items() if key not in results and "__" not in key}
    parameters = parse_signature(str(document["function_signature"]))
    positional = {int(key[4:]): value for key, value in given.items() if key.startswith("arg_")}
    keywords = {key[6:]: value for key, value in given.items() if key.startswith("kwarg_")}
    arguments = bind_arguments(parameters, positional, keywords)
    identity = document.get("self_id")
    module, function = str(document["module"]), str(document["function_name"])
    if not (_DOTTED.fullmatch(module) and _DOTTED.fullmatch(function)):
        raise ValueError(f"{module[:80]!r} and {function[:80]!r} name no function")
    return Call(
        folder=folder,
        module=module,
        function=function,
        process=int(document["process_id"]),
        self_id=None if identity is None else int(identity),
        arguments=arguments,
        defaults={item.name: item.default for item in parameters if item.has_default and item.name not in arguments},
        results=tuple(details[key] for key in sorted(results)),
        state=_read_state(folder),
    )


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE_FILE
    if path.is_symlink() or not path.is_file():
        return {}
    return dict(load_json(read_limited(path, _STATE_BYTES), where=f"{folder.name}/{STATE_FILE}"))


def _read_facts(folder: Path, key: str, item: Mapping[str, Any], scale: float | None) -> TensorFacts:
    shape = tuple(item["shape"])
    if len(shape) > _MAX_RANK or not all(type(length) is int and 0 <= length < _MAX_LENGTH for length in shape):
        raise ValueError(f"{key} has the shape {shape}")
    dtype = str(item["dtype"]).removeprefix("torch.")
    is_output = key.startswith("result")
    return TensorFacts(shape=shape, dtype=dtype, folder=folder, key=key, is_output=is_output, scale=scale)


def _read_value(item: Any, details: Mapping[str, TensorFacts]) -> Any:
    """Read an argument that is no plain tensor: a number, or what FlashInfer wraps into an object with its type."""
    if not isinstance(item, dict):
        return item if item is None or isinstance(item, (bool, int, float, str)) else OpaqueValue(type="list")
    if "tensor_key" in item:
        return details[item["tensor_key"]]
    kind = str(item.get("type"))
    if kind in {"tuple", "list"} and not item.get("truncated"):
        return tuple(_read_value(member, details) for member in item["items"])
    if kind == "torch.dtype":
        return str(item["value"]).removeprefix("torch.")
    if kind == "enum":
        return item["value"]
    return OpaqueValue(type=kind)


def read_integers(facts: TensorFacts) -> torch.Tensor:
    """Read a tensor of integers or booleans.

    Raises:
        FormatError: its values are not in the dump, or are not what the metadata say.
    """
    width = _ITEM_BYTES.get(facts.dtype)
    size = width or 0
    for length in facts.shape:
        size *= length
    if width is None or size > _INTEGER_BYTES:
        raise FormatError(f"{facts.key} is {facts.dtype} of {size} bytes: not kept", where=facts.folder.name)
    with _open(facts) as stored:
        values: torch.Tensor = stored.get_tensor(facts.key)
    if tuple(values.shape) != facts.shape or str(values.dtype) != f"torch.{facts.dtype}":
        raise FormatError(f"{facts.key} is not what its metadata say", where=facts.folder.name)
    return values


def read_rows(facts: TensorFacts, rows: Sequence[int]) -> torch.Tensor:
    """Read single rows of a tensor, in one piece; rows that it does not have are left out.

    Raises:
        FormatError: its values are not in the dump, or are not what the metadata say.
    """
    import torch

    with _open(facts) as stored:
        window = stored.get_slice(facts.key)
        if tuple(window.get_shape()) != facts.shape or not facts.shape:
            raise FormatError(f"{facts.key} is not what its metadata say", where=facts.folder.name)
        held = [row for row in rows if 0 <= row < facts.shape[0]]
        if held and held == list(range(held[0], held[-1] + 1)):
            return torch.as_tensor(window[held[0] : held[-1] + 1])
        return torch.cat([window[row : row + 1] for row in held]) if held else torch.empty(0)


def _open(facts: TensorFacts) -> Any:
    from safetensors import SafetensorError, safe_open

    path = facts.folder / ("outputs.safetensors" if facts.is_output else "inputs.safetensors")
    if path.is_symlink() or not path.is_file():
        raise FormatError(f"the values of {facts.key} are not in the dump", where=facts.folder.name)
    try:
        stored: Any = safe_open(path, framework="pt", device="cpu")
        if facts.key not in stored.keys():  # noqa: SIM118  # it is no mapping
            raise FormatError(f"the values of {facts.key} are not in the dump", where=facts.folder.name)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"its tensors cannot be read: {error}"[:200], where=facts.folder.name) from error
    return stored

"""Reads files of `torch.save` so that nothing in them can run code, crash the process or take more than its size.

Such a file is a zip archive: a pickle, and the bytes of each storage; before PyTorch 1.6 one followed the other. PyTorch's
`torch.load(weights_only=True)` compares no checksum and trusts what the pickle says of tensors. Here the archive's checksums
are compared, names in the pickle lead only to dense tensors and plain containers, and a tensor stays within its storage.
"""

import contextlib
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

from svdata2vec.runs.failures import first_line
from svdata2vec.shards.errors import UserError, require_memory
from svdata2vec.shards.readers.plain_pickle import Maker

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}
MAGIC = 0x1950A86A20F9469CFC6C  # first value of a file from before PyTorch 1.6


class StandIn:
    """Takes the place of an object that is not wanted: accepts any construction and any state, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


def read_torch_file(source: Path | BinaryIO, replaced: set[str] | None = None) -> Any:
    """The content of a file of `torch.save`, on the CPU.

    Args:
        source: the file; or an open one, which is read from its beginning.
        replaced: takes the names of classes that are no part of tensors, whose objects are replaced by a `StandIn`. None:
            such a file is refused.

    Raises:
        UserError: damaged, no such file format, or one that holds anything else. The message does not name the file.
        MachineError: memory is running out.
        OSError: the file cannot be read.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: BinaryIO = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            file.seek(0)
            if file.read(4) == b"PK\3\4":
                archive = _Archive(stack.enter_context(zipfile.ZipFile(file)))
                return _Unpickler(BytesIO(archive.read("data.pkl")), archive.storage, replaced).load()
            return _read_stream(file, replaced)
    except (UserError, OSError):
        raise
    except Exception as error:  # a damaged archive or pickle fails in many ways
        require_memory(error, source if isinstance(source, Path) else getattr(source, "name", "a checkpoint"))
        raise UserError(f"not a readable checkpoint ({first_line(error)})") from error


class _Archive:
    """The members of an archive, whose sizes and checksums are checked; none is compressed or read twice."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        members = archive.infolist()
        pickles = [member.filename for member in members if member.filename.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"not a checkpoint of torch.save: {len(pickles)} members are named data.pkl, expected one")
        self._folder = pickles[0].removesuffix("data.pkl")
        if any(member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size for member in members):
            raise UserError("not a checkpoint of torch.save: its members are compressed")
        assert archive.fp is not None
        size = archive.fp.seek(0, 2)
        if any(member.file_size > size for member in members):
            raise UserError("not a readable checkpoint (a member is larger than the file)")
        if self._folder + "byteorder" in archive.namelist() and self.read("byteorder") != sys.byteorder.encode():
            raise UserError(f"written on a machine of another byte order; expected {sys.byteorder}")
        self._storages: dict[str, Tensor] = {}

    def read(self, name: str) -> bytes:
        """A member's bytes, whose checksum fits."""
        return self._archive.read(self._folder + name)

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """The flat tensor of a storage; tensors that share it share its memory."""
        name = f"data/{key}"
        if name not in self._storages:
            content = bytearray(self.read(name))
            if len(content) != count * dtype.itemsize:
                raise UserError(f"not a readable checkpoint (storage {key} has {len(content)} bytes, not {count} {dtype})")
            self._storages[name] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        found = self._storages[name]
        if found.dtype != dtype or len(found) != count:
            raise UserError(f"not a readable checkpoint (storage {key} is {found.dtype} and {dtype})")
        return found


def _read_stream(file: BinaryIO, replaced: set[str] | None) -> Any:
    """The older format: five pickles (magic number, version, machine, content, keys), then each storage's length and bytes."""
    size = file.seek(0, 2)
    buffers: dict[str, tuple[bytearray, torch.dtype]] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in buffers and count * dtype.itemsize + sum(len(buffer) for buffer, _ in buffers.values()) > size:
            raise UserError("not a readable checkpoint (its storages are larger than the file)")
        buffer, stored = buffers.setdefault(key, (bytearray(count * dtype.itemsize), dtype))
        if stored != dtype or len(buffer) != count * dtype.itemsize:
            raise UserError(f"not a readable checkpoint (storage {key} has two types)")
        return torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)

    def value() -> Any:
        return _Unpickler(file, storage, replaced).load()

    file.seek(0)
    if file.read(1) != b"\x80" or file.seek(0) or (value(), value(), value()["little_endian"]) != (MAGIC, 1001, True):
        raise UserError("not a file of torch.save")
    content = value()
    for key in value():
        buffer, dtype = buffers[key]
        count = int.from_bytes(file.read(8), "little")
        if count * dtype.itemsize != len(buffer) or file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise UserError(f"not a readable checkpoint (storage {key} has another size, or is not there)")
    return content


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor within its storage; no element of the storage stands for two of the tensor."""
    plain = isinstance(storage, Tensor) and isinstance(size, tuple) and isinstance(stride, tuple)
    if not plain or not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise UserError("not a readable checkpoint (a tensor is not described by numbers)")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count and (last >= len(storage) or count > len(storage)):
        raise UserError(f"not a readable checkpoint (a tensor {size} reaches beyond its storage of {len(storage)})")
    return torch.as_strided(storage, size, stride, offset) if count else storage.new_empty(size)


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise UserError("not a readable checkpoint (a parameter is no tensor)")
    return data


_MAKERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Maker(lambda: OrderedDict()),
    ("torch._utils", "_rebuild_tensor_v2"): Maker(_tensor),
    ("torch._utils", "_rebuild_parameter"): Maker(_parameter),
    ("torch", "Size"): Maker(lambda size: tuple(size)),
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python, without operations that could take memory which is not there, or overflow the stack.

    The C one allocates tables of any size that a pickle names.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: operation for code, operation in pickle._Unpickler.dispatch.items()
        if code not in (pickle.BYTEARRAY8[0], pickle.FROZENSET[0], pickle.ADDITEMS[0])
    }

    def __init__(
        self, file: BinaryIO, storage: Callable[[str, torch.dtype, int], Tensor], replaced: set[str] | None
    ) -> None:
        super().__init__(file)
        self._storage, self._replaced = storage, replaced

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global name in the pickle."""
        if (module, name) in _MAKERS:
            return _MAKERS[module, name]
        if self._replaced is None:
            raise UserError(f"it holds {module}.{name}; expected tensors and plain values only")
        if (module, name) == ("argparse", "Namespace"):
            return SimpleNamespace
        self._replaced.add(f"{module}.{name}")
        return StandIn

    def persistent_load(self, identity: Any) -> Tensor:
        """A storage, as `torch.save` names it: ("storage", type, key, device, number of elements), once with None behind."""
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), _, int(count)) | (
                "storage", torch.dtype() as dtype, str(key), _, int(count), None
            ) if count >= 0:
                return self._storage(key, dtype, count)
        raise UserError("not a readable checkpoint (a storage is not as torch.save names it)")

    def _build(self) -> None:
        """BUILD: give an object its state. Those that stand in for others need none."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, OrderedDict | SimpleNamespace) and isinstance(state, dict):
            target.__dict__.update({str(name): value for name, value in state.items()})
        elif not isinstance(target, StandIn):
            raise UserError(f"not a readable checkpoint (a state for {type(target).__name__})")

    def _set_items(self) -> None:
        self._fill(self.pop_mark())  # type: ignore[attr-defined]

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _make_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})  # type: ignore[attr-defined]
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        """Add keys and values in turn to the last object. Keys are plain: the hash of deeply nested tuples ends a process."""
        target = self.stack[-1]
        if not isinstance(target, dict | StandIn) or any(isinstance(key, tuple) for key in items[::2]):
            raise UserError(f"not a readable checkpoint (entries for {type(target).__name__}, or keys that are tuples)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    dispatch.update({
        pickle.BUILD[0]: _build, pickle.SETITEM[0]: _set_item, pickle.SETITEMS[0]: _set_items, pickle.DICT[0]: _make_dict,
    })

"""Unpickles plain Python values and numeric NumPy arrays, and nothing else; memory is bounded by the size of the file.

A pickle is a program. Before it runs, `check_sizes` scans its operations and refuses those that plain data never needs, sizes
beyond the end of the file, and memo slots that would need tables of gigabytes. While it runs, global names only lead to the
functions below. Arrays are restored from NumPy's own state, whose type, shape and number of bytes are checked first; the pickle
itself cannot call `numpy.dtype` or `numpy.ndarray`, or set a state of them.
"""

import io
import math
import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from svdata2vec.shards.errors import UserError, require_machine

NUMBERS = "biuf"  # kinds of dtype: booleans, integers with and without sign, floating point
_CHUNK = 1 << 20
_LONGEST = 300  # more bytes than the longest operation that `_fixed` matches
# Operations that carry their size: code -> bytes of the number. FRAME counts bytes that are operations themselves.
_SIZED = {b"C": 1, b"B": 4, b"\x8e": 8, b"\x96": 8, b"\x8c": 1, b"X": 4, b"\x8d": 8, b"\x8a": 1, b"\x8b": 4, b"U": 1, b"T": 4}
_FRAME = b"\x95"
_CALLED = {
    ("numpy._core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "scalar"), ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "dtype"), ("_codecs", "encode"), ("builtins", "bytes"), ("builtins", "set"), ("builtins", "frozenset"),
    ("collections", "OrderedDict"), ("collections", "defaultdict"),
}
_PASSED_ON = {("numpy", "ndarray"), ("builtins", "list"), ("builtins", "dict"), ("builtins", "int"), ("builtins", "float")}


def load_plain(file: IO[bytes], where: str) -> Any:
    """The value of a pickle of protocol 2 or newer, called `where` in messages.

    Raises UserError if it is damaged or has more than plain data, MachineError if the machine fails.
    """
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        check_sizes(file, size)
        file.seek(0)
        return _PlainUnpickler(file, size).load()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # the operations of a damaged pickle may raise anything
        require_machine(error, where)
        raise UserError(f"{where}: not a readable pickle ({' '.join(str(error).split()) or type(error).__name__})") from error


def check_sizes(file: IO[bytes], size: int) -> None:
    """Scan the operations of a pickle of `size` bytes. UserError for one that plain data never needs, or beyond the file."""
    fixed, content, start, place = _fixed(size), b"", 0, 0  # `content` begins at byte `start` of the file
    while True:
        if len(content) - place < _LONGEST:
            start, content, place = start + place, content[place:] + file.read(_CHUNK), 0
        match = fixed.match(content, place)
        assert match is not None
        done, place = match.end() - place, match.end()
        if done and 0 < len(content) - place < _LONGEST:  # perhaps the start of another one
            continue
        code = content[place : place + 1]
        if code == b".":
            return
        if code == b"":
            if start + place >= size:
                raise UserError("not a readable pickle (it ends before its last operation)")
            continue
        position, digits = start + place, _SIZED.get(code, 8 if code == _FRAME else 0)
        if not digits:
            raise UserError(f"not a readable pickle (operation {code!r} at byte {position}; expected plain values and arrays, "
                            "protocol 2 or newer)")
        length = int.from_bytes(content[place + 1 : place + 1 + digits], "little")
        if position + 1 + digits + length > size:
            raise UserError(f"not a readable pickle (byte {position} asks for {length:,} bytes, the file has {size:,})")
        place += 1 + digits + (0 if code == _FRAME else length)
        if place > len(content):
            start, content, place = file.seek(start + place), b"", 0


def _fixed(size: int) -> re.Pattern[bytes]:
    """Matches any number of short operations. A memo index must be one that a file of `size` bytes can reach."""
    most = max(size // 4, 255)  # filling a place in the memo takes five bytes or more
    digits = min((most.bit_length() + 7) // 8, 4)
    top = min(most >> 8 * (digits - 1), 255)
    put = b"r" + b"." * (digits - 1) + b"[\\x00-\\x%02x]" % top + rb"\x00" * (4 - digits)
    return re.compile(
        rb"(?s:[(012NRabde}\]l)stu\x85-\x89\x8f\x90\x91\x93\x94]|[Khq\x80].|M..|[Jj].{4}|G.{8}|c[\w.]{1,99}\n[\w.]{1,99}\n|"
        + put + rb")*+")


class Maker:
    """A callable for a pickle. Unlike a function, the pickle cannot modify it."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: object) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: object) -> None:
        raise UserError("the pickle changes what it should only call")


class _Dtype:
    """A dtype as a pickle describes it; `checked` turns it into NumPy's."""

    def __init__(self, name: object, *_: object) -> None:
        self._name: object = name
        self._order: Any = "="

    def __setstate__(self, state: object) -> None:
        plain = isinstance(state, tuple) and len(state) == 8 and state[2:5] == (None,) * 3
        if not isinstance(state, tuple) or not plain or state[1] not in ("<", ">", "|", "="):
            raise UserError("the pickle holds an array of structures; expected plain numbers")
        self._order = state[1]

    @property
    def is_object(self) -> bool:
        """Whether it is NumPy's dtype `object`."""
        return self._name == "O8"

    def checked(self, kinds: str) -> np.dtype:
        """The NumPy dtype; UserError unless it is of these kinds."""
        if not isinstance(self._name, str) or not re.fullmatch(rf"[{kinds}]\d{{1,6}}", self._name):
            raise UserError(f"the pickle holds an array of dtype {self._name!r:.30}; expected numbers")
        dtype = np.dtype(self._name).newbyteorder(self._order)
        if not dtype.itemsize:
            raise UserError(f"the pickle holds an array of dtype {self._name!r}; expected numbers")
        return dtype


class _Array(np.ndarray):
    """An array whose state is checked before NumPy restores it. `use`: called with its number of bytes.

    Arrays of type object contain plain values: `np.save` makes a 0-d one of a dictionary, pandas one of names, and others have
    rows of unequal lengths.
    """

    use: Callable[[int], None]

    def __setstate__(self, state: Any) -> None:
        if self.shape != (0,) or not (isinstance(state, tuple) and len(state) == 5 and state[0] == 1):
            raise UserError("the pickle holds an array that is not as NumPy writes it")
        _, shape, dtype, fortran, content = state
        if isinstance(dtype, _Dtype) and dtype.is_object and isinstance(content, list) and _sides(shape):
            if math.prod(shape) != len(content):
                raise UserError(f"the pickle holds an array {shape!r:.60} of {len(content):,} values")
            found = np.dtype(object)
        else:
            found = _checked(content, dtype, shape)
        self.use(len(content))
        checked: Any = 1, shape, found, bool(fortran), content
        super().__setstate__(checked)


def _sides(shape: object) -> bool:
    """Whether it is the shape of an array with values, or of an empty one-dimensional array."""
    return shape == (0,) or (
        isinstance(shape, tuple) and len(shape) < 33 and all(type(side) is int and side > 0 for side in shape))


def _checked(content: object, dtype: object, shape: Any) -> np.dtype:
    """The dtype of an array of this content and shape; UserError if they do not agree."""
    if not isinstance(dtype, _Dtype):
        raise UserError("the pickle holds an array without a dtype")
    found = dtype.checked(NUMBERS + "U")
    plain = isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape)
    if not plain or not isinstance(content, bytes | bytearray) or math.prod(shape) * found.itemsize != len(content):
        asked = f"{math.prod(shape) * found.itemsize:,}" if plain else "an unreadable number of"
        there = f"{len(content):,}" if isinstance(content, bytes | bytearray) else "no"
        raise UserError(f"the pickle holds an array {shape!r:.60} of {found}: {asked} bytes, it has {there}")
    return found


class _PlainUnpickler(pickle.Unpickler):
    """`size`: bytes of the file. Text and arrays made from it may have twice as many."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file)
        self._left = 2 * size
        makers: dict[str, Callable[..., Any]] = {
            "_reconstruct": self._empty, "scalar": self._scalar, "_frombuffer": self._from_buffer, "dtype": _Dtype,
            "encode": self._encode, "OrderedDict": _empty_dictionary, "defaultdict": _empty_dictionary, "set": self._set,
            "frozenset": self._set, "bytes": lambda: b""}
        self._makers = {name: Maker(make) for name, make in makers.items()}

    def find_class(self, module: str, name: str) -> Any:
        """Substitute for a global name of the pickle: a function, or a word if the name is only passed on."""
        home = module.replace("numpy.core", "numpy._core").replace("__builtin__", "builtins")
        if (home, name) in _CALLED:
            return self._makers[name]
        if (home, name) in _PASSED_ON:
            return f"{home}.{name}"
        raise UserError(f"the pickle wants {module}.{name}; expected NumPy arrays and plain values only")

    def _use(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise UserError("the pickle holds more arrays than its file has bytes for")

    def _empty(self, kind: object, *_: object) -> np.ndarray:
        if kind != "numpy.ndarray":
            raise UserError(f"the pickle holds an array of kind {kind!r:.40}; expected numpy.ndarray")
        array = _Array((0,), np.int8)
        array.use = self._use
        return array

    def _scalar(self, dtype: object, content: object) -> Any:
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise UserError("the pickle holds a number that is not as NumPy writes it")
        return np.frombuffer(content, dtype.checked(NUMBERS + "U"), count=1)[0]

    def _from_buffer(self, content: Any, dtype: object, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
        found = _checked(content, dtype, shape)
        self._use(len(content))
        array = np.frombuffer(content, found).reshape(shape, order="F" if order == "F" else "C")
        return array if axes is None else array.transpose(axes)  # NumPy 2.3 and newer write arrays with swapped axes this way

    def _encode(self, text: Any, encoding: object) -> bytes:
        if encoding != "latin1" or not isinstance(text, str):
            raise UserError("the pickle holds bytes that are not as Python writes them")
        self._use(len(text))
        return text.encode("latin1")

    def _set(self, values: object) -> set[Any]:
        if not isinstance(values, list):
            raise UserError("the pickle holds a set that is not as Python writes it")
        self._use(len(values))
        return set(values)


def _empty_dictionary(*_: object) -> dict[Any, Any]:
    """Replaces `defaultdict(list)` and `OrderedDict()`; a pickle fills it afterwards."""
    return {}

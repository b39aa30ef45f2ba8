"""Reads what `torch.save` writes without running or building anything that the file names.

    archive or old layout -> opcodes of its pickle, one by one -> plain data, and tensors over the file's own bytes

No class, function or `__setstate__` is looked up, imported or called: a name becomes a token, and only the calls of
`_CALLS` mean something. What other libraries leave beside the tensors becomes `Inert`. All that is built is bounded by
the bytes of the file: no opcode makes more than it takes, tensors must fit into their storage, records must be stored
as they are (not compressed), and the finished value is not deeper or larger than a checkpoint ever is.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from barlowtwins.core.readers import UnsoundFile, sound

__all__ = ["ForeignClass", "Inert", "UnsoundFile", "read_torch_file"]

MOST_OPCODES = 1_000_000  # of one pickle; that of a ResNet-50's training checkpoint has 30,000
DEEPEST = 64  # containers in containers
MOST_DIMENSIONS = 8
MOST_VIEWS = 4  # times that the tensors together may show the bytes of their storages
LARGE = 256 << 20  # bytes from which a file is mapped: an optimizer state that nobody asks for is then never read
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of torch's old layout
PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


class ForeignClass(UnsoundFile):
    """The file needs a class or function that is not on the list; the text is its name."""


class Inert:
    """Stands in for an object of a known library that is neither a tensor nor plain data."""


def read_torch_file(file: IO[bytes]) -> Any:
    """What was saved: dict, list, tuple, set, str, bytes, int, float, bool, None, tensors on the CPU, and `Inert`.

    Args:
        file: open for reading; an ordinary file, since a large one is mapped.

    Raises:
        UnsoundFile: it is damaged, not such a file, or asks for more than its bytes hold.
        ForeignClass: it needs a class that is not on the list.
    """
    with sound():
        file.seek(0)
        if file.read(4) == b"PK\x03\x04":
            return _read_archive(file)
        file.seek(0)
        return _read_old_layout(file)


# Storages ----------------------------------------------------------------------------------------------------------

STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        ("Double", torch.float64),
        ("Float", torch.float32),
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Long", torch.int64),
        ("Int", torch.int32),
        ("Short", torch.int16),
        ("Char", torch.int8),
        ("Byte", torch.uint8),
        ("Bool", torch.bool),
        ("ComplexFloat", torch.complex64),
        ("ComplexDouble", torch.complex128),
    )
} | {"torch.storage.UntypedStorage": torch.uint8}
DTYPES = {f"torch.{name}": dtype for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)}


@dataclass(frozen=True)
class _Storage:
    """Numbers of one type in the file, as its pickle claims them."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.numel * self.dtype.itemsize

    @classmethod
    def parse(cls, claim: Any) -> _Storage:
        """The claim: ("storage", type, key, device, numel) and, in the old layout, a view that must be None."""
        if (
            type(claim) is not tuple
            or len(claim) not in (5, 6)
            or claim[0] != "storage"
            or claim[5:] not in ((), (None,))
        ):
            raise UnsoundFile("a storage is not understood")
        _, kind, key, _, numel = claim[:5]
        if not (isinstance(kind, _Name) and kind.name in STORAGES and type(key) is str and type(numel) is int):
            raise UnsoundFile("a storage is not understood")
        if not 0 <= numel < 2**48:
            raise UnsoundFile(f"a storage of {numel} numbers cannot be")
        return cls(key, STORAGES[kind.name], numel)


class _Bytes:
    """The bytes of the storages: where each lies in the file, and how much the tensors show of them together."""

    def __init__(self, file: IO[bytes], places: dict[str, tuple[int, int]]) -> None:
        self._file, self._places = file, places  # key -> (offset, bytes)
        self._read: dict[str, Tensor] = {}
        self._left = MOST_VIEWS * sum(size for _, size in places.values()) + (1 << 20)
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if file.seek(0, 2) > LARGE else None

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A view of a storage, after its claims were compared with what is there."""
        if not isinstance(storage, _Storage) or type(shape) is not tuple or type(stride) is not tuple:
            raise UnsoundFile("a tensor is not understood")
        numbers = (offset, *shape, *stride)
        if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise UnsoundFile("the shape of a tensor cannot be")
        if len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
            raise UnsoundFile(f"a tensor has {len(shape)} dimensions and {len(stride)} strides")
        whole = self._whole(storage)
        flat = whole.view(dtype) if dtype is not None else whole
        count = math.prod(shape)
        if count > flat.numel() or (
            count and offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) >= flat.numel()
        ):
            raise UnsoundFile(f"a tensor of shape {shape} does not fit into its storage of {flat.numel()} numbers")
        self._left -= count * flat.element_size()
        if self._left < 0:
            raise UnsoundFile("its tensors show the same bytes again and again")
        return flat.as_strided(shape, stride, offset) if count else torch.empty(shape, dtype=flat.dtype)

    def _whole(self, storage: _Storage) -> Tensor:
        if storage.key in self._read:
            return self._read[storage.key].view(storage.dtype)
        offset, size = self._places.get(storage.key, (0, -1))
        if size != storage.size:
            there = "is missing" if size < 0 else f"has {size:,} bytes"
            raise UnsoundFile(f"storage {storage.key[:20]!r} {there} instead of the {storage.size:,} that it claims")
        if not size:
            return torch.empty(0, dtype=storage.dtype)
        if self._map is not None and offset % storage.dtype.itemsize == 0:
            flat = torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=offset)
        else:
            self._file.seek(offset)
            buffer = bytearray(self._file.read(size))
            if len(buffer) != size:
                raise UnsoundFile("it became shorter while it was read")
            flat = torch.frombuffer(buffer, dtype=torch.uint8)
        self._read[storage.key] = flat
        return flat.view(storage.dtype)


# Containers --------------------------------------------------------------------------------------------------------


def _read_archive(file: IO[bytes]) -> Any:
    """A zip archive: name/data.pkl, name/data/KEY for each storage, name/byteorder."""
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise UnsoundFile("two of its records have one name")
        if packed := next((member for member in members if member.compress_type != zipfile.ZIP_STORED), None):
            raise UnsoundFile(f"its record {packed.filename[:60]!r} is compressed, which torch.save never does")
        if sum(member.file_size for member in members) > size:
            raise UnsoundFile("its records claim more bytes than the file has")
        pickles = [member.filename for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
        if len(pickles) != 1:
            raise UnsoundFile("it is a zip archive without data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        names = {member.filename for member in members}
        if f"{folder}constants.pkl" in names:
            raise UnsoundFile("it is a program (TorchScript), not weights")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise UnsoundFile("its numbers are big-endian")
        text = archive.read(pickles[0])
        beginning = f"{folder}data/"
        places = {
            member.filename.removeprefix(beginning): (_data_offset(file, member), member.file_size)
            for member in members
            if member.filename.startswith(beginning)
        }
    held = _Bytes(file, places)
    return _bounded(_Machine(held.tensor).run(io.BytesIO(text)))


def _data_offset(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored record begin: after its own header, which has fields of its own lengths."""
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise UnsoundFile(f"its record {member.filename[:60]!r} is not where its directory says")
    name, extra = struct.unpack_from("<HH", header, 26)
    return member.header_offset + 30 + name + extra


def _read_old_layout(file: IO[bytes]) -> Any:
    """Pickles one after the other (magic, protocol, machine, value, keys), then a count and the numbers of each key."""
    plain = _Machine(None)
    if plain.run(file) != MAGIC or plain.run(file) != PROTOCOL:
        raise UnsoundFile("it does not begin as torch.save writes")
    about = plain.run(file)
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise UnsoundFile("its numbers are not little-endian")
    start = file.tell()
    first = _Machine(lambda *_: None)  # only finds out where the value ends, and what type each storage has
    first.run(file)
    stop = file.tell()
    keys = plain.run(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise UnsoundFile("its list of storages is not understood")
    place, end = file.tell(), file.seek(0, 2)
    places = {}
    for key in keys:
        if key not in first.storages:
            raise UnsoundFile("it has a storage that nothing uses")
        file.seek(place)
        size = int.from_bytes(file.read(8), "little") * first.storages[key].dtype.itemsize
        if place + 8 + size > end:
            raise UnsoundFile("it is cut short, or claims more numbers than it has")
        places[key] = (place + 8, size)
        place += 8 + size
    file.seek(start)
    text = io.BytesIO(file.read(stop - start))  # reading storages moves the file's place
    return _bounded(_Machine(_Bytes(file, places).tensor).run(text))


def _bounded(value: Any) -> Any:
    """`value` if it can be walked: not in circles, not by shared parts that multiply, not too deep."""
    left, pending = MOST_OPCODES, [(value, 0)]
    while pending:
        item, depth = pending.pop()
        inner = (
            item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple, set, frozenset)) else ()
        )
        left -= 1 + len(inner)
        if left < 0 or depth > DEEPEST:
            raise UnsoundFile("its values are nested without end")
        pending += [(part, depth + 1) for part in inner if isinstance(part, (dict, list, tuple, set, frozenset))]
    return value


# Opcodes ------------------------------------------------------------------------------------------------------------


class _Name:
    """A class or function that the pickle names: a token, nothing is looked up."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _as_dict(args: tuple[Any, ...]) -> Any:
    if not args or not isinstance(args[0], (dict, list, tuple)):
        return {}
    pairs = args[0].items() if isinstance(args[0], dict) else args[0]
    made: dict[Any, Any] = {}
    for pair in pairs:
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], PLAIN_KEYS):
            made[pair[0]] = pair[1]
    return made


def _as_set(args: tuple[Any, ...]) -> Any:
    items = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    return {item for item in items if isinstance(item, PLAIN_KEYS)}


def _as_size(args: tuple[Any, ...]) -> Any:
    """A torch.Size is a tuple."""
    return args[0] if args and isinstance(args[0], (tuple, list)) else ()


def _as_bytes(args: tuple[Any, ...]) -> Any:
    """How protocol 2 spells bytes."""
    known = len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1")
    return args[0].encode("latin-1") if known else Inert()


def _inert(args: tuple[Any, ...]) -> Any:
    return Inert()


_CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    **dict.fromkeys(
        (
            *("collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"),
            "lightning.fabric.utilities.data.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "vissl.config.attr_dict.AttrDict",
            "vissl.utils.hydra_config.AttrDict",
        ),
        _as_dict,
    ),
    **dict.fromkeys(("builtins.set", "builtins.frozenset"), _as_set),
    "torch.Size": _as_size,
    "_codecs.encode": _as_bytes,
    **dict.fromkeys(
        (
            *("builtins.list", "builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.tuple"),
            *("builtins.bytes", "builtins.bytearray", "builtins.complex", "builtins.slice"),
            *("argparse.Namespace", "pathlib.PosixPath", "pathlib._local.PosixPath", "typing.Any"),
            *("datetime.timedelta", "torch.device", "torch.serialization._get_layout"),
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.nodes.AnyNode",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.dtype",
            "numpy.ndarray",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray._reconstruct",
        ),
        _inert,
    ),
}
"""Names that checkpoints of known makers carry along, and what a call of each gives."""

_TENSORS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._tensor._rebuild_from_type_v2",
}
_TYPES = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter"}  # never called


class _Machine:
    """Walks one pickle after the other."""

    def __init__(self, tensor: Callable[..., Any] | None) -> None:
        self._tensor = tensor
        self.storages: dict[str, _Storage] = {}

    def run(self, file: IO[bytes]) -> Any:
        """The value of the pickle at the file's place, after which the file stands at its end."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self._pop()
            if number >= MOST_OPCODES:
                raise UnsoundFile(f"its pickle has more than {MOST_OPCODES:,} opcodes")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise UnsoundFile(f"its pickle has the opcode {opcode.name}, which torch.save never writes")
            step(self, argument)
        raise UnsoundFile("its pickle has no end")

    # The stack ----------------------------------------------------------------------------------------------------

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise UnsoundFile("its pickle takes more than it has put down")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def push(self, value: Any) -> None:
        """Any constant; longer integers than 80 bits take time to print, and nothing needs them."""
        if type(value) is int and value.bit_length() > 80:
            raise UnsoundFile(f"it holds an integer of {value.bit_length()} bits")
        self._stack.append(value)

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def items(self) -> list[Any]:
        """Everything above the last mark."""
        if not self._marks:
            raise UnsoundFile("its pickle has no mark where one is needed")
        start = self._marks.pop()
        taken = self._stack[start:]
        del self._stack[start:]
        return taken

    def put(self, place: Any) -> None:
        self._memo[len(self._memo) if place is None else place] = self._top()

    def get(self, place: Any) -> None:
        if place not in self._memo:
            raise UnsoundFile("its pickle recalls what it has not noted")
        self._stack.append(self._memo[place])

    # Containers ---------------------------------------------------------------------------------------------------

    def extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(item for item in items if isinstance(item, PLAIN_KEYS))
        elif not isinstance(target, Inert):
            raise UnsoundFile("its pickle appends to what is not a list")

    def update(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, dict) and len(items) % 2 == 0:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, PLAIN_KEYS):  # hashing others can take for ever, and no layout has them
                    target[key] = value
        elif not isinstance(target, Inert):
            raise UnsoundFile("its pickle sets an item of what is not a dict")

    def tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._stack.append(tuple(reversed(items)))

    # Names and calls ----------------------------------------------------------------------------------------------

    def name(self, text: str) -> None:
        name = re.sub(r"^__builtin__\.", "builtins.", text)
        if name in DTYPES:
            self._stack.append(DTYPES[name])
        elif name in _CALLS or name in _TENSORS or name in _TYPES or name in STORAGES:
            self._stack.append(_Name(name))
        else:
            raise ForeignClass("".join(c if c.isprintable() else "?" for c in name.removeprefix("builtins."))[:200])

    def name_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise UnsoundFile("its pickle names a class by what is not text")
        self.name(f"{module}.{name}")

    def call(self, args: Any, function: Any) -> None:
        if not isinstance(function, _Name) or type(args) is not tuple:
            raise UnsoundFile("its pickle calls what is not a name")
        self._stack.append(self._called(function.name, args))

    def _called(self, name: str, args: tuple[Any, ...]) -> Any:
        if name in _CALLS:
            return _CALLS[name](args)
        if name not in _TENSORS or self._tensor is None:
            raise ForeignClass(name)
        if name.endswith("_rebuild_parameter") and args:
            return args[0]
        if name.endswith("_from_type_v2") and len(args) == 4 and isinstance(args[0], _Name) and type(args[2]) is tuple:
            if args[0].name.endswith("_from_type_v2"):
                raise UnsoundFile("a tensor is not understood")
            return self._called(args[0].name, args[2])
        typed = name.endswith("_v3")
        if len(args) < 4 or (typed and not (len(args) > 6 and isinstance(args[6], torch.dtype))):
            raise UnsoundFile("a tensor is not understood")
        storage, offset, shape, stride = args[:4]
        if typed:
            return self._tensor(storage, offset, shape, stride, args[6])
        return self._tensor(storage, offset, shape, stride)

    def build(self, state: Any) -> None:
        """Attributes of an object: of dicts, tensors and `Inert`, nothing needs them."""
        if not isinstance(self._top(), (dict, Tensor, Inert, type(None))):
            raise UnsoundFile("its pickle sets attributes of what has none")

    def persistent(self) -> None:
        storage = _Storage.parse(self._pop())
        if self.storages.setdefault(storage.key, storage) != storage:
            raise UnsoundFile(f"storage {storage.key[:20]!r} is claimed in two ways")
        self._stack.append(storage)


_Step = Callable[[_Machine, Any], None]
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
            *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "SHORT_BINSTRING", "BINSTRING"),
        ),
        lambda machine, value: machine.push(value),
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.items())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.push(machine.items()),
    "APPEND": lambda machine, _: machine.extend([machine._pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.items()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.items()),
    "SETITEM": lambda machine, _: machine.update([machine._pop(), machine._pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.update(machine.items()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, text: machine.name(text.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name_on_stack(),
    "REDUCE": lambda machine, _: machine.call(machine._pop(), machine._pop()),
    "NEWOBJ": lambda machine, _: machine.call(machine._pop(), machine._pop()),
    "BUILD": lambda machine, _: machine.build(machine._pop()),
    "BINPERSID": lambda machine, _: machine.persistent(),
}
"""What each opcode does; all others are refused."""

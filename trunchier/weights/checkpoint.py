"""Read .pth files by the restricted unpickler of `files`, the same on every torch.

torch.load is not used: its check for weights alone can be bypassed before torch 2.6 and turned off
by an environment variable, and it believes the sizes of storages that the pickle states.
"""

import collections
import datetime
import io
import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from ..files.pickles import Refused, StandIn, Unpickler, check_keys, checked_array, count_of, short

STORAGES = {
    'DoubleStorage':  torch.float64,   'FloatStorage':         torch.float32,
    'HalfStorage':    torch.float16,   'BFloat16Storage':      torch.bfloat16,
    'LongStorage':    torch.int64,     'IntStorage':           torch.int32,
    'ShortStorage':   torch.int16,     'CharStorage':          torch.int8,
    'ByteStorage':    torch.uint8,     'BoolStorage':          torch.bool,
    'ComplexFloatStorage': torch.complex64, 'ComplexDoubleStorage': torch.complex128,
}  # fmt: skip
# Classes that training scripts leave beside the weights. Each is read as an inert dict.
INERT_CLASSES = (
    ('argparse', 'Namespace'),                   # argparse.Namespace
    ('yacs', 'CfgNode'),                         # yacs.config.CfgNode
    ('mmcv', 'ConfigDict'),                      # mmcv.utils.config.ConfigDict
    ('pytorch_lightning', 'AttributeDict'),      # pytorch_lightning.utilities.parsing.AttributeDict
    ('lightning_fabric', 'AttributeDict'),       # lightning_fabric.utilities.data.AttributeDict
    *(('omegaconf', name) for name in (          # hydra's config, as in 4D-Humans
        'DictConfig', 'ListConfig', 'ContainerMetadata', 'Metadata', 'AnyNode', 'StringNode',
        'IntegerNode', 'FloatNode', 'BooleanNode', 'BytesNode', 'PathNode', 'EnumNode', 'UnionNode',
    )),
)  # fmt: skip
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files of torch 1.5 and older


def read_checkpoint(path: str | Path, shapes: bool = False) -> Any:
    """Content of a file that torch.save wrote: tensors on the CPU, and plain data beside them.

    Args:
        shapes: leave the numbers unread; tensors are on the meta device.

    Raises:
        Refused: other classes, or more content than its size allows. Others: a damaged file.
    """
    size = Path(path).stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive, size, shapes)
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _read_legacy(data, size, shapes)


def _read_zip(archive, size, shapes):
    files = {info.filename: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in files.values()):
        raise Refused('its members are compressed, which torch.save does not do')
    if sum(info.file_size for info in files.values()) > size:
        raise Refused('its members are larger than the file')
    pickled = next((name for name in files if name.endswith('/data.pkl')), None)
    if pickled is None:
        raise Refused('it has no data.pkl, which torch.save writes')
    root = pickled.removesuffix('data.pkl')
    if f'{root}constants.pkl' in files:
        raise Refused('it is a TorchScript program, not weights')
    if f'{root}byteorder' in files and archive.read(f'{root}byteorder') != b'little':
        raise Refused('it was written on a big-endian machine')
    storages = {}

    def storage(dtype, key, count):
        if key not in storages and shapes:
            storages[key] = torch.empty(count, dtype=dtype, device='meta')
        elif key not in storages:
            data = archive.read(f'{root}data/{key}')
            if len(data) != count * dtype.itemsize:
                raise Refused(f'storage {key} has {len(data)} bytes, not {count} of {dtype}')
            empty = torch.empty(0, dtype=dtype)
            storages[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else empty
        return storages[key]

    pickled = archive.read(f'{root}data.pkl')
    return CheckpointUnpickler(io.BytesIO(pickled), size, storage).load()


def _read_legacy(file, size, shapes):
    """Magic number, version, system, objects, keys of the storages; then their content."""
    storages = {}

    def storage(dtype, key, count):
        if key not in storages:
            if count * dtype.itemsize > size:
                raise Refused(f'storage {key} of {count} {dtype} is larger than the file')
            device = 'meta' if shapes else 'cpu'
            storages[key] = torch.zeros(count, dtype=dtype, device=device)
        return storages[key]

    def read():
        return CheckpointUnpickler(file, size, storage).load()

    if read() != LEGACY_MAGIC or read() != LEGACY_VERSION:
        raise Refused('it is not a file of torch.save')
    read()
    content = read()
    for key in () if shapes else read():
        (count,) = struct.unpack('<q', file.read(8))
        data = file.read(count * storages[key].element_size()) if count else b''
        if count != len(storages[key]) or len(data) != count * storages[key].element_size():
            raise Refused(f'storage {key} is cut off')
        if count:
            storages[key].copy_(torch.frombuffer(bytearray(data), dtype=storages[key].dtype))
    return content


class History(StandIn):
    """mmengine's HistoryBuffer."""

    __slots__ = ()

    def value(self, unpickler: Unpickler) -> HistoryBuffer:
        values, counts = (
            checked_array(self.state[key], 'biuf') for key in ('_log_history', '_count_history')
        )
        return HistoryBuffer(values, counts, int(self.state['max_length']))


class Inert:
    """Stand-in of a class of INERT_CLASSES: an empty dict, whatever the arguments."""

    def __new__(cls, *args, **kwargs):
        return collections.OrderedDict()


class Foreign(StandIn):
    """A class or function that is not read: an error wherever its value or a call is needed.

    A user's statistics (`HistoryBuffer.register_statistics`) are functions in the state of each
    buffer; they are not needed, since registering them is up to the program.
    """

    __slots__ = ()

    def __new__(cls, *args: Any) -> 'Foreign':
        if isinstance(cls, Foreign):  # the opcode NEWOBJ
            raise Refused(cls.state)
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise Refused(self.state)

    def value(self, unpickler: Unpickler) -> Any:
        raise Refused(self.state)


class CheckpointUnpickler(Unpickler):
    """Reads objects of torch and mmengine; `storage(dtype, key, count)` returns a 1-D tensor."""

    NAMES = {
        **Unpickler.NAMES,
        **{('torch', name): dtype for name, dtype in STORAGES.items()},
        **{('torch', str(dtype)[6:]): dtype for dtype in STORAGES.values()},
        **dict.fromkeys(INERT_CLASSES, Inert),
        ('torch', 'device'): torch.device,
        ('torch', 'Size'): 'new_size',
        ('torch', '_rebuild_tensor'): 'new_tensor',
        ('torch', '_rebuild_tensor_v2'): 'new_tensor',
        ('torch', '_rebuild_parameter'): 'new_parameter',
        ('collections', 'OrderedDict'): 'new_ordered_dict',
        ('collections', 'Counter'): 'new_counter',  # of MultiStepLR
        ('collections', 'deque'): 'new_deque',
        ('collections', 'defaultdict'): 'new_default_dict',
        ('mmengine', 'ConfigDict'): 'new_config',
        ('pathlib', 'PosixPath'): 'new_path',
        ('pathlib', 'PurePosixPath'): 'new_path',
        ('datetime', 'datetime'): 'new_datetime',
        ('mmengine', 'HistoryBuffer'): History,
        ('builtins', 'getattr'): 'statistic',
    }  # fmt: skip

    def __init__(self, file: BinaryIO, size: int, storage: Callable[..., Tensor]):
        super().__init__(file, size)
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Refused as error:
            foreign = Foreign()
            foreign.state = str(error)
            return foreign

    def persistent_load(self, pid: tuple) -> Tensor:
        kind, dtype, key, _, count, *view = pid
        known = kind == 'storage' and isinstance(dtype, torch.dtype) and isinstance(key, str)
        if not known or type(count) is not int or count < 0:
            raise Refused(f'forbidden persistent id {short(pid)}')
        storage = self.storage(dtype, key, count)
        if view and view[0] is not None:
            _, start, length = view[0]
            storage = storage[start : start + length]
        return storage

    def new_tensor(
        self, storage: Tensor, offset: int, size: tuple, stride: tuple, *other: Any
    ) -> Tensor:
        """Tensor within a storage; gradients and hooks are not kept."""
        count = count_of(tuple(size))
        self.spend(count * storage.element_size())
        reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
        if count_of((offset, *stride)) < 0 or offset + reach >= len(storage):
            raise Refused(f'a tensor {short(tuple(size))} outside of its storage of {len(storage)}')
        return storage.as_strided(size, stride, storage.storage_offset() + offset)

    def new_parameter(self, data: Tensor, *other: Any) -> Tensor:
        return data

    def new_size(self, size: tuple) -> torch.Size:
        count_of(tuple(size))
        return torch.Size(size)

    def new_ordered_dict(self, items: Any = ()) -> collections.OrderedDict:
        if not isinstance(items, list | tuple):
            raise Refused(f'a dict of a {type(items).__name__}')
        self.spend(64 * len(items))
        check_keys(key for key, _ in items)
        return collections.OrderedDict(items)

    def new_counter(self, counts: dict | None = None) -> collections.Counter:
        if type(counts) not in (dict, type(None)):
            raise Refused(f'a Counter of a {type(counts).__name__}')
        self.spend(64 * len(counts or ()))
        return collections.Counter(counts)

    def new_deque(self, items: tuple = (), length: int | None = None) -> collections.deque:
        if items != () or not isinstance(length, int | None):
            raise Refused('a deque that is not empty')
        return collections.deque((), length)

    def new_default_dict(self, factory: Foreign | None = None) -> dict:
        """A plain dict."""
        return {}

    def new_config(self, items: dict | None = None) -> dict:
        """A plain dict."""
        if type(items) not in (dict, type(None)):
            raise Refused(f'a ConfigDict of a {type(items).__name__}')
        return items or {}

    def new_path(self, *parts: str) -> str:
        if not all(isinstance(part, str) for part in parts):
            raise Refused('a path of other things than text')
        return str(PurePosixPath(*parts))

    def new_datetime(self, state: bytes | str) -> datetime.datetime:
        if not isinstance(state, bytes | str) or len(state) != 10:
            raise Refused(f'a datetime of {short(state)}')
        return datetime.datetime(state.encode('latin1') if isinstance(state, str) else state)

    def statistic(self, owner: type, name: str) -> None:
        """`getattr`, with which HistoryBuffer pickles its statistics; it registers them anew."""
        if owner is not History or name not in ('min', 'max', 'current', 'mean'):
            raise Refused(
                f'forbidden getattr of {short(name)}; only the statistics of HistoryBuffer are read'
            )

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, Foreign):
            target()
        elif type(target) is not collections.OrderedDict:
            super().build(target, state)
        elif type(state) is dict and type(state.get('_metadata')) is collections.OrderedDict:
            target._metadata = state['_metadata']

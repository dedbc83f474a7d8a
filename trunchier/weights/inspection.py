"""What a file of weights is: a checkpoint of any layout, or an exported model.

`inspect_file(path)` reads keys, shapes and plain data, not the numbers: it takes no time for a file
of gigabytes, and nothing in the file runs.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..zoo.releases import RELEASES
from .load import read_weights, unwrap, wrapper_of
from .recognize import PAPER, CheckpointError, Identity, Recognized, identify, recognize

EXTRA_FILE = 'trunchier.json'  # metadata in exported files of torch
SIZE_IN_NAME = r'(?<!\d)(256|384)x(192|288)(?!\d)'
CROP_SIZE = 256  # default of CropPerson
STATED = ('model', 'config', 'input_size', 'box_padding')  # what a file says about its making
PADDINGS = {  # option of the step that crops people, and what it is without one
    'GetBBoxCenterScale': ('padding', 1.25),
    'CropPerson': ('box_padding', 1.0),
}


class Inspected(NamedTuple):
    """A file of weights.

    Attributes:
        wrapper: key below which the weights lie, '' if there is none.
        recognized, identity: None of an exported file.
        stated: what the file says itself: `model`, `config`, `input_size` (width, height),
            `box_padding` (factor of people's boxes in prediction).
        exported: metadata of an exported file.
        smpl: whether the model was made for SMPL's body, whose buffers are in the file.
    """

    path: Path
    wrapper: str
    recognized: Recognized | None
    identity: Identity | None
    stated: dict[str, Any]
    exported: dict[str, Any] | None = None
    smpl: bool = False

    @property
    def name(self) -> str | None:
        """The paper's name: stated, in the file's name, or the only one that fits."""
        if self.exported or self.identity is None:
            return self.stated.get('model')
        names = self.identity.names
        hints = self.stated.get('model'), self.path.stem
        hinted = [name for name in names if any(hint and name in hint for hint in hints)]
        return next(iter([*hinted, *reversed(names)]), None)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(width, height) of the crops, pixels: stated, of the position embedding, or of the name.

        In file names, as those of mmpose, the height comes first.
        """
        if known := self.stated.get('input_size') or self.identity and self.identity.image_size:
            return tuple(known)
        named = self.identity and re.search(SIZE_IN_NAME, self.path.stem)
        return (int(named[2]), int(named[1])) if named else None

    def report(self) -> str:
        """Lines to print."""
        rows = [('file', f'{self.path} ({self.path.stat().st_size / 1e6:.1f} MB)')]
        if self.exported:
            rows += [('layout', f'exported by {self.exported.get("producer", "trunchier")}')]
            keys = 'model', 'task', 'weights', 'input_size'
            rows += [(key, self.exported[key]) for key in keys if key in self.exported]
            return _table(rows)
        found, known = self.recognized, self.identity
        wrapper = f', below {self.wrapper!r}' if self.wrapper else ''
        rows += [('layout', f'{found.layout.name}{wrapper}')]
        sizes = ' or '.join(known.backbones) or 'a size that no model here has'
        stages = f', {known.num_stages} stages' if known.num_stages else ''
        rows += [('backbone', f'{PAPER[found.layout.kind]}: {sizes}{stages}')]
        rows += [
            ('task', known.task or 'none: a backbone, to train from'),
            ('decoder', known.decoder),
        ]
        if size := self.input_size:
            rows += [('crops', f'{size[0]} x {size[1]} (width x height)')]
        rows += [('model', self.name or 'none of the zoo')]
        licenses = {row.filename: row.license for row in RELEASES.values()}
        rows += [('license', licenses.get(self.path.name) or 'not known from the file')]
        rows += [('config', self.stated['config'])] if 'config' in self.stated else []
        rows += [('left out', what) for what in found.left_out]
        rows += [('guess', what) for what in self.guesses]
        return _table(rows)

    @property
    def guesses(self) -> list[str]:
        """Sentences about what neither keys nor shapes decide."""
        known = self.identity
        guesses = list(self.recognized.guesses) if self.recognized else []
        if known and len(known.names) > 1:
            guesses.append(f'{" and ".join(known.names)} are equal; taken is {self.name}')
        if known and self.input_size and not (self.stated.get('input_size') or known.image_size):
            guesses.append('the size of the crops is that in the name of the file')
        return guesses


def _table(rows):
    return '\n'.join(f'{name + ":":10} {value}' for name, value in rows)


def inspect_file(
    path: str | Path,
    renames: Sequence[tuple[str, str]] = (),
    expert: str | int | None = None,
) -> Inspected:
    """Recognize a file of weights or an exported model.

    Args:
        renames, expert: see `recognize.recognize`.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a file of weights, or of an unknown layout: says what its keys look
            like.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weights {path} (from {Path.cwd()})')
    if exported := exported_metadata(path):
        return Inspected(path, '', None, None, stated_facts(path), exported)
    if path.suffix == '.onnx':
        raise CheckpointError(f'{path} was not written by trunchier: no task in its metadata')
    content = read_weights(path, shapes=True)
    state = unwrap(content, path)
    found = recognize(state, path, renames, expert)
    smpl = any('smpl.' in key for key in state)
    return Inspected(
        path, wrapper_of(content), found, identify(found), _stated(content), None, smpl
    )


def stated_facts(path: str | Path) -> dict[str, Any]:
    """What a file says about its making: of `STATED`, what is there; raises as `inspect_file`.

    Files of this package say it themselves; a checkpoint of mmengine carries the text of its
    config.
    """
    exported = exported_metadata(path)
    if exported is None and Path(path).suffix in ('.onnx', '.pt2'):
        return {}
    return _stated(dict(meta=exported) if exported else read_weights(path, shapes=True))


def _stated(content):
    meta = content.get('meta') if isinstance(content, dict) else None
    if not isinstance(meta, dict):
        return {}
    facts = meta if 'task' in meta else meta.get('trunchier')
    if isinstance(facts, str):
        try:
            facts = json.loads(facts)
        except (ValueError, RecursionError):
            facts = None
    if not isinstance(facts, dict):
        facts = _facts_of_config(meta.get('cfg'))
    return {key: facts[key] for key in STATED if _plausible(key, facts.get(key))}


def _plausible(key, value):
    if key == 'box_padding':
        return type(value) in (int, float) and 0.1 <= value <= 10
    if key != 'input_size':
        return isinstance(value, str) and value.isprintable() and len(value) < 200
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(side) is int and 0 < side < 10_000 for side in value)
    )


def _facts_of_config(text):
    """What the text of a config says about crops; it is parsed and not run."""
    try:
        tree = ast.parse(text) if isinstance(text, str) and len(text) < 1_000_000 else None
        values = {
            node.targets[0].id: _literal(node.value)
            for node in getattr(tree, 'body', ())
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        return dict(input_size=input_size(values), box_padding=box_padding(values))
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
        TypeError,
        AttributeError,
        KeyError,
    ):
        return {}


def _literal(node):
    """Value of a literal; `dict(a=1)` is one too; anything else is None."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'dict':
        return {each.arg: _literal(each.value) for each in node.keywords if each.arg}
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_literal, node.values), strict=False))
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(each) for each in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def input_size(cfg: Any) -> tuple[int, int] | None:
    """(width, height) of the crops that a config's model takes, pixels; None: it does not say."""
    model = cfg.get('model') or {}
    codec = (model.get('head') or {}).get('decoder')
    if isinstance(codec, dict) and codec.get('input_size'):
        width, height = codec['input_size']
        return int(width), int(height)
    for step in cfg['test_dataloader']['dataset']['pipeline']:
        if step['type'] == 'CropPerson':
            side = step.get('size', CROP_SIZE)
            return side - 2 * (side // 8), side  # see `geometry.seen_columns`
    return None


def box_padding(cfg: Any) -> float | None:
    """Factor of people's boxes when a config's model predicts; None: it crops none."""
    for step in cfg['test_dataloader']['dataset']['pipeline']:
        if step['type'] in PADDINGS:
            name, default = PADDINGS[step['type']]
            return step.get(name, default)
    return None


# --- exported files -------------------------------------------------------------------------------
def exported_metadata(path: str | Path) -> dict[str, Any] | None:
    """Metadata of a model that `deploy.export` wrote; None: another file. Nothing is run."""
    path = Path(path)
    if path.suffix in ('.pt', '.pt2') and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f'/extra/{EXTRA_FILE}')]
            if not names or archive.getinfo(names[0]).file_size > MAX_METADATA:
                return None
            return _plain(archive.read(names[0]))
    if path.suffix == '.onnx':
        texts = _onnx_metadata(path)
        return {key: _plain(text) for key, text in texts.items()} if 'task' in texts else None
    return None


MAX_METADATA = 2**20


def _plain(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _onnx_metadata(path):
    """`metadata_props`, field 14 of a ModelProto: entries of a key (1) and a value (2)."""
    texts = {}
    with open(path, 'rb') as file:
        size = path.stat().st_size
        for field, length in _fields(file, size):
            if field == 14 and length <= MAX_METADATA:
                end, entry = file.tell() + length, {}
                for part, count in _fields(file, end):
                    entry[part] = file.read(count)
                if {1, 2} <= entry.keys():
                    texts[entry[1].decode(errors='replace')] = entry[2]
            else:
                file.seek(length, 1)
    return texts


def _fields(file, end):
    """(number, length) of each field of a protobuf message with bytes; the reader moves past it."""
    while file.tell() < end:
        tag = _varint(file)
        if tag is None:
            return
        kind = tag & 7
        if kind == 0:
            _varint(file)
        elif kind in (1, 5):
            file.seek(8 if kind == 1 else 4, 1)
        elif kind == 2:
            length = _varint(file)
            if length is None or length > end - file.tell():
                return
            yield tag >> 3, length
        else:
            return


def _varint(file):
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    return None

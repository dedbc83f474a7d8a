"""Prediction by engines that map a class over batches of rows, such as Ray Data.

    rows = ray.data.from_items([dict(path=path) for path in paths])
    rows = rows.map_batches(Predict, fn_constructor_args=['VMPose-T-S2'], concurrency=8)

A row names an image, a member of a tar, or a part of a video; `pieces` makes them of inputs. Each
frame is a row of the result; `error` says what could not be read. `predict_on_ray` writes them as
Parquet or WebDataset and skips what is there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from ..files import need
from ..files.remote import files_in, is_remote, open_anywhere, read_range, remove, write_whole
from . import sources
from .inferencer import Inferencer
from .pipeline import FrameTask
from .results import to_record
from .run import Run
from .samples import InstancesOfFrame
from .sources import EVERY_FRAME, KINDS, Source

CHUNK, OVERLAP = 3000, 30  # frames
DTYPES = {'track_ids': np.int64, 'fingerprint': np.uint64}  # of fields of people; else float32
CAMERA = ('focal_length', 'principal_point')
OF_FRAME = ('path', 'member', 'key', 'rows', 'frame', 'lead', 'width', 'height', 'error')
FORMATS = ('parquet', 'webdataset')
ROWS = 'rows'  # folder of what is written
WRITTEN = re.compile(r'[0-9a-f]{16}\.(parquet|tar)')  # names of these files
SAMPLE = re.compile(r'([0-9a-f]{16})-\d+-(\d+)(-error)?\.json')  # key and number of rows, in a tar
JPEG_QUALITY = 95
FILE_INPUTS = 256  # inputs whose rows are written as one file: what a kill loses


# --- Inputs ---------------------------------------------------------------------------------------
def listed(inputs: Iterable[str]) -> Iterator[str]:
    """Paths and addresses of images, videos and tars; a folder that has tars stands for these."""
    for given in inputs:
        folder = not is_remote(given) and Path(given).expanduser()
        if folder and folder.is_dir() and (tars := sorted(folder.glob('*.tar'))):
            yield from map(str, tars)
        elif folder and not given.endswith('.tar'):
            for source in sources.find(given):
                if source.path is None or source.kind == 'camera':
                    raise ValueError(f'{given}: only files and addresses can be distributed')
                yield source.path
        else:
            yield given


def pieces(
    given: str,
    frames: range = EVERY_FRAME,
    chunk: int = CHUNK,
    overlap: int = OVERLAP,
    state: str = '',
) -> Iterator[dict[str, Any]]:
    """Rows for `Predict`: an image, each image and video of a tar, or chunks of a video.

    Args:
        given: path or address.
        frames: of videos.
        chunk: frames in a part of a video.
        overlap: frames before it that it shares with the part before, so that `join_tracks` can
            recognize its people.
        state: what else the results depend on.

    Yields:
        `path`; `member`, `offset`, `size` in a tar; `start`, `stop`, `lead` (frames before
        `start`), `step`; `key`, int64, a digest of all these and of `state`; `error`.
    """
    suffix = os.path.splitext(given)[1].lower()
    try:
        stamp = '' if is_remote(given) else f'{os.path.getsize(given)} {os.stat(given).st_mtime_ns}'
        if suffix == '.tar':
            found = [dict(member=name, offset=at, size=size) for name, at, size in members(given)]
        elif KINDS.get(suffix) == 'video':
            found = list(_chunks(given, frames, chunk, overlap))
        else:
            found = [{}]
        error = ''
    except (OSError, ValueError, tarfile.TarError, sources.Unreadable) as problem:
        found, stamp, error = [{}], '', str(problem)
    whole = dict(member='', offset=0, size=0, lead=0)
    whole |= dict(start=frames.start, stop=frames.stop, step=frames.step)
    for each in found:
        row = dict(path=given, **(whole | each))
        text = json.dumps([*row.values(), stamp, state])
        digest = hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
        yield dict(row, key=int.from_bytes(digest, 'big', signed=True), error=error)


def members(path: str) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the images and videos in a tar, by its headers alone.

    Raises:
        OSError, tarfile.TarError: it cannot be read, or is truncated.
    """
    with open_anywhere(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        with tarfile.open(fileobj=file, mode='r:') as tar:
            for member in tar:
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f'{path}: {member.name} is truncated at byte {end}')
                if member.isreg() and os.path.splitext(member.name)[1].lower() in KINDS:
                    yield member.name, member.offset_data, member.size


def _chunks(path, frames, chunk, overlap):
    _, count = sources.video_info(Source('', 'video', path))
    stop = frames.stop if count is None else min(frames.stop, max(count, frames.start + 1))
    starts = range(frames.start, stop, chunk * frames.step)
    for start in starts:
        # The number of frames is an estimate: the last part has whatever follows.
        end = frames.stop if start == starts[-1] else start + chunk * frames.step
        yield dict(start=start, stop=end, lead=min(overlap, chunk) if start > frames.start else 0)


# --- Predicting -----------------------------------------------------------------------------------
class Predict:
    """Predict people in batches of rows, for `ray.data.Dataset.map_batches`.

    Args:
        model, options: see `Inferencer`.
        images: add the column `jpg`, the frame as JPEG.

    Called with a dict of columns: `path`, and optionally those of `pieces`, or `bytes`, the content
    of an image, as `ray.data.read_binary_files(..., include_paths=True)` has them. Returns a dict
    of columns with an entry per frame: OF_FRAME and the fields of `inference.results.SAVED_FIELDS`,
    each an array (P, ...) per frame. `frame` is -1 in a row that stands for no frame; `lead` marks
    those that the part of the video before has, too; `rows` counts the rows of its piece.
    """

    measures: ClassVar[tuple[str, ...]] = ()  # further fields of people

    def __init__(self, model: Any = 'pose', images: bool = False, **options: Any):
        self.infer, self.images = Inferencer(model, **options), images
        self.predictor: Any = self.infer.predictor
        self.detector: Callable = self.infer.detector
        self.settings = self.infer.settings

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = list(batch)
        given = [dict(zip(names, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        rows: list[list[dict]] = [[] for _ in given]
        stills = []
        for number, piece in enumerate(given):
            try:
                if piece.get('error'):
                    raise OSError(piece['error'])
                source = _source(number, piece)
            except (OSError, ImportError) as error:
                rows[number] = [self._row(piece, None, [str(error)])]
                continue
            if source.moves:
                self._run([source], given, rows)
            else:
                stills.append(source)
        if stills:
            self._run(stills, given, rows)
        return _columns([dict(row, rows=len(each)) for each in rows for row in each])

    def _run(self, found, given, rows):
        """Add the rows of sources; videos come alone."""
        piece, frames = given[found[0].order], EVERY_FRAME
        if found[0].moves:
            step = int(piece.get('step', 1))
            begin = int(piece.get('start', 0)) - int(piece.get('lead', 0)) * step
            frames = range(begin, int(piece.get('stop', EVERY_FRAME.stop)), step)
        infer = self.infer
        run = Run(
            self.predictor, self.detector, infer.batch_size, infer.track, infer.smooth,
            keep_images=True, max_pixels=infer.max_pixels, frames=frames,
        )  # fmt: skip
        tasks = defaultdict(list)
        for task in run(found):
            order = task.frame.source.order
            tasks[order].append(self._row(given[order], task, []))
        errors = defaultdict(list)
        for where, why in run.report.skipped:
            errors[re.sub(r', frame \d+$', '', where)].append(why)
        for source in found:
            why = errors[source.name] + (errors[source.path] if source.path else [])
            rows[source.order] = tasks[source.order]
            if why and not source.moves and tasks[source.order]:
                tasks[source.order][0]['error'] = '; '.join(why)
            elif why or not tasks[source.order]:
                rows[source.order].append(self._row(given[source.order], None, why))

    def _row(self, piece, task: FrameTask | None, why: list[str]) -> dict[str, Any]:
        """The row of a frame; without `task`, of a piece in which there is none."""
        row: dict[str, Any] = dict(
            path=str(piece.get('path', '')),
            member=str(piece.get('member', '')),
            key=int(piece.get('key', 0)),
            frame=-1,
            lead=False,
            width=0,
            height=0,
            error='; '.join(why),
            time=np.nan,
        )
        if task is not None:
            (height, width), frame = task.shape, task.frame
            early = frame.source.moves and frame.index < int(piece.get('start', 0))
            row |= dict(frame=frame.index, lead=early, width=width, height=height)
            row['time'] = np.nan if frame.time is None else frame.time
            people, camera = task.result.pred_instances, task.result
        else:
            fields = self.predictor.fields.items()
            none = {name: np.empty((0, *shape), np.float32) for name, shape in fields}
            people = InstancesOfFrame(
                **none, bboxes=np.empty((0, 4), np.float32), bbox_scores=np.empty(0, np.float32)
            )
            camera = self.predictor.metainfo((1, 1))
        record = dict(track_ids=np.full(len(people), -1)) | to_record(people)
        record |= {name: people[name] for name in self.measures if name in people}
        for name, value in record.items():
            row[name] = np.asarray(value, DTYPES.get(name, np.float32))
        for name in CAMERA:
            if name in camera:
                row[name] = np.float32(camera.get(name))
        if self.images:
            row['jpg'] = b'' if task is None else _jpeg(task.frame.image)
        return row


def _source(number, piece):
    """What a row names; OSError if it cannot be read."""
    name, path, data = f'input {number}', str(piece['path']), piece.get('bytes')
    member = str(piece.get('member', ''))
    kind = KINDS.get(os.path.splitext(member or path)[1].lower(), 'image')
    if data is None and member:
        size = int(piece['size'])
        if size > sources.MAX_BYTES:
            raise OSError(f'{path}/{member}: {size} bytes, more than {sources.MAX_BYTES}')
        data = read_range(path, int(piece['offset']), size)
    elif data is None and is_remote(path) and not path.startswith(('http://', 'https://')):
        data = read_range(path, 0, sources.MAX_BYTES)
    if data is not None:
        return Source(name, kind, None, bytes(data), number)
    return Source(name, kind, path, None, number)


def _jpeg(image):
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


def _columns(rows):
    """Rows as columns; arrays of differing shapes as arrays of objects."""
    columns = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, np.ndarray | bytes):
            columns[name] = np.empty(len(rows), object)
            columns[name][:] = values
        else:
            columns[name] = np.array(values)
    return columns


def join_tracks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one video, of all its parts, with one row per frame and ids of the whole video.

    A track goes on where the same box, in a frame that both parts have, has the id of the part
    before. Others get new ids. Rows that stand for no frame are left out.
    """
    parts: dict[int, list[dict]] = defaultdict(list)
    for row in rows:
        if row['frame'] >= 0:
            parts[row['key']].append(row)
    joined: dict[int, dict] = {}
    highest = -1
    # By the first frame that is a part's own.
    order = sorted(
        parts.values(), key=lambda part: min([r['frame'] for r in part if not r['lead']] or [-1])
    )
    for part in order:
        votes: Counter = Counter()
        for row in part:
            before = joined.get(row['frame'])
            if row['lead'] and before is not None:
                for box, own in zip(row['bboxes'], row['track_ids'], strict=True):
                    same = np.abs(before['bboxes'] - box).max(1, initial=0) < 0.5
                    votes.update((int(own), int(i)) for i in before['track_ids'][same] if i >= 0)
        names: dict[int, int] = {}
        for (own, known), _ in votes.most_common():
            if own >= 0 and own not in names and known not in names.values():
                names[own] = known
        for row in sorted(part, key=lambda row: row['frame']):
            if row['lead']:
                continue
            for own in row['track_ids']:
                if own >= 0 and own not in names:
                    highest += 1
                    names[int(own)] = highest
            ids = [names.get(int(own), -1) for own in row['track_ids']]
            highest = max([highest, *ids])
            joined[row['frame']] = dict(row, track_ids=np.array(ids, np.int64))
    return [joined[index] for index in sorted(joined)]


# --- On Ray ---------------------------------------------------------------------------------------
def predict_on_ray(
    inputs: Iterable[str],
    out: str | Path,
    model: Any = 'pose',
    options: dict[str, Any] | None = None,
    worker: type[Predict] = Predict,
    address: str | None = None,
    concurrency: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch: int = 16,
    file_format: str = 'parquet',
    frames: range = EVERY_FRAME,
    chunk: int = CHUNK,
    overlap: int = OVERLAP,
    state: str = '',
) -> int:
    """Predict inputs on a Ray cluster; the rows of `Predict` are files in OUT/rows.

    Inputs whose rows are there are skipped: after an end of any kind, the same call goes on.
    Other files there are left alone.

    Args:
        inputs: see `listed`.
        out: folder or address that all nodes reach.
        model, options: of `worker`.
        address: of the cluster, as of ray.init; None: the cluster that runs here, or a new one.
        concurrency: actors, each with `num_cpus` and `num_gpus`, and `batch` inputs at a time.
        file_format: 'parquet'; or 'webdataset', with the images.
        frames, chunk, overlap, state: see `pieces`.

    Returns:
        Number of pieces that were done before.

    Raises:
        ImportError: Ray is not installed here, or trunchier not on the cluster.
        OSError: a file of rows cannot be read.
    """
    if file_format not in FORMATS:
        raise ValueError(f'format {file_format!r}; expected one of {", ".join(FORMATS)}')
    data = need('ray.data', 'prediction on many machines')
    ray = need('ray', 'prediction on many machines')
    if not ray.is_initialized():
        ray.init(address, include_dashboard=False)
    _check_workers(ray)
    folder = rows_folder(out)
    done = done_keys(folder)
    work = [dict(given=given if is_remote(given) else os.path.abspath(given))
            for given in listed(inputs)]  # fmt: skip
    cut = dict(frames=frames, chunk=chunk, overlap=overlap, state=state)
    blocks = -(-len(work) // FILE_INPUTS)
    rows = data.from_items(work, override_num_blocks=max(blocks, min(concurrency, len(work))))
    # Actors may hold all CPUs: what lists and writes, at little cost, must not wait for one.
    rows = rows.flat_map(_pieces_left, fn_kwargs=dict(done=done, cut=cut), num_cpus=0)
    rows = rows.map_batches(
        worker,
        fn_constructor_args=[model],
        fn_constructor_kwargs=(options or {}) | dict(images=file_format == 'webdataset'),
        batch_size=batch,
        compute=data.ActorPoolStrategy(size=concurrency),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    write = write_parquet if file_format == 'parquet' else write_tar
    options_of = dict(batch_size=None, batch_format='numpy', num_cpus=0)
    rows.map_batches(write, fn_kwargs=dict(folder=folder), **options_of).materialize()
    return len(done)


def rows_folder(out: str | Path) -> str:
    """Folder or address of the files of rows."""
    return f'{str(out).rstrip("/") if is_remote(out) else Path(out).absolute()}/{ROWS}'


def _check_workers(ray):
    def has_package():  # sent as it is, as a function of a module is not
        from importlib.util import find_spec

        return find_spec('trunchier') is not None

    if not ray.get(ray.remote(num_cpus=0)(has_package).remote()):
        raise ImportError(
            'the machines of the cluster lack trunchier: install it in their image, or bring it '
            'along by a runtime environment, see docs/ray.md'
        )


def _pieces_left(row, done, cut):
    """Those pieces of an input that are not among the sorted keys `done`."""
    found = list(pieces(row['given'], **cut))
    keys = np.array([piece['key'] for piece in found], np.int64)
    return [p for p, known in zip(found, np.isin(keys, done), strict=True) if not known]


def to_table(batch: dict[str, np.ndarray]) -> Any:
    """Columns of `Predict` as a pyarrow.Table of plain lists, for any reader of Parquet."""
    arrow = need('pyarrow', 'writing Parquet')
    columns = {}
    for name, column in batch.items():
        first = column[0]
        if isinstance(first, np.ndarray):  # the column is of objects, or of arrays of one shape
            kind = arrow.from_numpy_dtype(first.dtype)
            for _ in range(first.ndim):
                kind = arrow.list_(kind)
            columns[name] = arrow.array([array.tolist() for array in column], kind)
        else:
            columns[name] = arrow.array(column)
    return arrow.table(columns)


def write_parquet(batch: dict[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    """Write rows of `Predict` as a file of Parquet; returns how many they were."""
    content = io.BytesIO()
    need('pyarrow.parquet', 'writing Parquet').write_table(to_table(batch), content)
    return _write(batch, folder, 'parquet', content)


def write_tar(batch: dict[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    """Write rows of `Predict` as a tar of WebDataset; returns how many they were."""
    names = list(batch)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode='w') as tar:
        for row in rows:
            for name, data in to_sample(row).items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return _write(batch, folder, 'tar', content)


def _write(batch, folder, suffix, content):
    digest = hashlib.blake2b(batch['key'].tobytes() + batch['frame'].tobytes(), digest_size=8)
    write_whole(f'{folder}/{digest.hexdigest()}.{suffix}', content.getvalue())
    return dict(rows=np.array([len(batch['key'])]))


def to_sample(row: dict[str, Any]) -> dict[str, bytes]:
    """Files of a row of `Predict` in a WebDataset: json, and jpg if there is an image."""
    plain = {name: np.asarray(value).tolist() for name, value in row.items() if name != 'jpg'}
    if np.isnan(plain['time']):
        plain['time'] = None
    name = f'{int(row["key"]) % 2**64:016x}-{max(row["frame"], 0):07d}-{row["rows"]}'
    if row['frame'] < 0:
        name += '-error'
    sample = {f'{name}.json': json.dumps(plain).encode()}
    return sample | ({f'{name}.jpg': row['jpg']} if row.get('jpg') else {})


def done_keys(folder: str) -> np.ndarray:
    """Sorted keys (int64) of the pieces whose rows are all in the files of a folder.

    Truncated files are deleted, if their names are those of `predict_on_ray`.

    Raises:
        OSError: a file cannot be read; it may be whole.
    """
    counts: Counter = Counter()
    wanted: dict[int, int] = {}
    for name in files_in(folder):
        base = os.path.basename(name)
        if base.startswith('.') or not base.endswith(('.parquet', '.tar')):
            continue
        try:
            found = _keys_of_table(name) if base.endswith('.parquet') else _keys_of_tar(name)
        except OSError as error:
            raise OSError(
                f'{name} cannot be read: {error}; try again, or delete it: what it holds is then '
                'done again'
            ) from error
        except (ValueError, tarfile.TarError):
            if WRITTEN.fullmatch(base):
                remove(name)
            continue
        counts.update(key for key, _ in found)
        wanted.update(found)
    return np.sort(np.array([k for k, n in wanted.items() if counts[k] >= n], np.int64))


def _keys_of_table(name):
    """Key and number of rows, of each row; ValueError if the file is truncated."""
    table = need('pyarrow.parquet', 'reading Parquet')
    with open_anywhere(name) as file:
        columns = table.read_table(file, columns=['key', 'rows']).to_pydict()
    return list(zip(columns.get('key', ()), columns.get('rows', ()), strict=True))


def _keys_of_tar(name):
    found = []
    with open_anywhere(name) as file, tarfile.open(fileobj=file, mode='r:') as tar:
        for member in tar:
            if sample := SAMPLE.fullmatch(member.name):
                value = int(sample[1], 16)
                found.append((value - (value >> 63 << 64), int(sample[2])))
    return found


def read_rows(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Rows in the Parquet files of a folder, as `Predict` made them; each (key, frame) once."""
    table = need('pyarrow.parquet', 'reading Parquet')
    seen = set()
    for path in sorted(Path(folder).glob('[!.]*.parquet')):
        for batch in table.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                if (row['key'], row['frame']) in seen:
                    continue
                seen.add((row['key'], row['frame']))
                yield {
                    name: np.array(value, DTYPES.get(name, np.float32))
                    if isinstance(value, list)
                    else value
                    for name, value in row.items()
                }

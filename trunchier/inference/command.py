"""The command `predict`: poses or meshes of people in images and videos, from the shell.

`trunchier predict` and `tools/predict.py` both run `main`. Help and errors in the command line and
the names of files come before torch is imported.
"""

import argparse
import errno
import importlib
import inspect
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from .. import zoo
from ..files import check_writable, whole_file
from ..files.download import OFFLINE
from ..files.images import MAX_PIXELS
from ..files.processes import clean_end
from ..visualization.overlays import STYLES, contact_sheet
from . import detection, samples, sources  # noqa: F401  samples: before mmengine
from .exported import exported_models
from .runtimes import add_runtime, runtime_for
from .screen import check_display, printable
from .smoothing import METHODS
from .tracking import check_tracked
from .writers import DEFAULT_FORMATS, FORMATS, check_formats, write_image

if TYPE_CHECKING:
    from ..weights.find import Found
    from .exported import ExportedModel

HELP = """Predict poses or meshes of people in images and videos; draw and save them.

INPUT is an image, a video, a folder of them, a quoted glob, a URL (http, https, rtsp, rtmp...),
standard input (-), or a camera (camera, camera:1).
"""
EXAMPLES = """examples:
  trunchier predict photo.jpg                    with the weights that come with the package
  trunchier predict photo.jpg --model VMPose-T-S2 --weights pose.pth
  trunchier predict photos/ 'more/*.png' --model mesh --save json,npz,glb,images
  trunchier predict clip.mp4 --detector-every 5 --smooth   find people in every 5th frame
  trunchier predict clip.mp4 --frames 300:600:2  every other frame from 300 to 600
  trunchier predict clip.mp4 --out-dir out --resume        continue an interrupted run
  trunchier predict photos/ --model SwinPose-T-S3 VMPose-T-S3 --weights a.pth b.pth --sheet a.jpg
  trunchier predict https://example.com/photo.jpg --json - | jq .instances
  trunchier predict camera --model mesh --viewer look at the address that it prints

--detector auto: the best of {detectors} that is on this machine; if there is none,
the last is downloaded (3.7 MB), once. Offline, each image is taken for one person.

--boxes FILE: JSON of {{"photo.jpg": [[x1, y1, x2, y2]]}}, of COCO annotations or detections, or
written by --save json; or .npy (people, 4 or 5).

exit codes: 0 done; 1 error; 2 wrong command line; 3 done, but some input was skipped and is listed;
130 interrupted, 143 terminated, 129 hung up: continue with --resume
"""
NAMES_OF_MODELS = (
    "the paper's name (`trunchier models` lists them), an encoder (vm-t-s3, convnext_tiny-s3) or a "
    'config; pose: the model that comes with weights; mesh or lift: bodies from its keypoints; '
    'NAME+lift: from those of another pose model'
)
EXIT_ERROR, EXIT_SKIPPED = 1, 3
PAINTING = (
    'kpt_thr', 'skeleton_style', 'radius', 'thickness', 'draw_bbox', 'style', 'alpha', 'side',
    'black_background',
)  # fmt: skip
# Options that an exported model without torch does not take.
NEED_TORCH = (
    'task',
    'rename',
    'expert',
    'trust',
    'body_model',
    'focal',
    'fov',
    'draw_heatmap',
    'viewer',
    'pose',
    'causal',
)
OF_PREDICTORS = (
    'flip_test', 'focal', 'fov', 'body_model', 'draw_heatmap', 'pose', 'pose_weights', 'causal',
)  # fmt: skip
OF_WORLD = 'world', 'extrinsics'
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
SHEET_ROWS = 100
OUTPUTS = 'outputs'  # then outputs2, outputs3...
LISTED = 4  # files that are named one by one

log = logging.getLogger('trunchier')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    began = time.perf_counter()
    args = vars(_parser().parse_args(arguments))
    out_dir, made = args['out_dir'], False
    if args['offline']:
        os.environ[OFFLINE] = '1'

    def given(*names):
        return {name: args[name] for name in names if args[name] is not None}

    try:
        with messages(args['quiet'], args['verbose']), clean_end(), ExitStack() as stack:
            # Whatever can be checked is checked before a model is loaded.
            found = _once(sources.find(args['inputs']))
            named = _named(args['model'] or (), args['weights'] or ())
            _check_names(*named, args['task'])
            models: Sequence[Found | ExportedModel] | None = exported_models(
                *named,
                args['device'],
                low=args['precision'] != 'fp32',
                mmpose=args['skeleton_style'] != STYLES[0],
                runtime=args['runtime'] not in (None, 'onnxruntime'),
                **{name: args[name] for name in NEED_TORCH},
            )
            if models is None:
                # Imports torch. A config of the user's may name anything.
                package = importlib.import_module(__package__.partition('.')[0])
                package.register(training=any(name.endswith('.py') for name in named[0]))
                from ..ops import scan

                if len(found) == 1 and found[0].kind == 'image':
                    stack.enter_context(scan.begin_with_torch())
                models = list(
                    parse_models(*named, *(args[n] for n in ('task', 'rename', 'expert')))
                )
            from .inferencer import Inferencer

            options = _options(models, given(*OF_PREDICTORS))
            shown_elsewhere = any(args[name] for name in ('viewer', 'sheet', 'show', 'json'))
            if out_dir is None and not shown_elsewhere:
                out_dir = _numbered(OUTPUTS, args['resume'])
            made = out_dir is not None and not os.path.exists(out_dir)
            _check(args, found, models, out_dir)
            viewer = _viewer(args['host'], args['port'], found) if args['viewer'] else None
            args['runtime'] = args['runtime'] or runtime_for(found, args['frames'])
            common = given('device', 'batch_size', 'precision', 'runtime', 'track', 'smooth')
            common |= given('detector', 'detector_weights', 'score_thr', 'trust', 'max_pixels')
            inferencers = [
                Inferencer(model, **common, **accepted)
                for model, accepted in zip(models, options, strict=True)
            ]
            log.info('loaded in %.1f s', time.perf_counter() - began)
            return _predict(
                found,
                inferencers,
                out_dir,
                viewer,
                args['sheet'],
                args['json'],
                given(*PAINTING),
                args['quiet'],
                **given('bboxes', 'save', 'resume', 'show', 'frames', 'detector_every', *OF_WORLD),
            )
    except BrokenPipeError:  # as of `--json - | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except SystemExit as stop:  # by a signal
        where = f' --out-dir {printable(out_dir)}' if out_dir else ''
        print(f'interrupted; continue with the same command and --resume{where}', file=sys.stderr)
        return int(stop.code)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
        text = str(error) or type(error).__name__
        if getattr(error, 'errno', None) in DISK_FULL and error.filename is None:
            text += f', writing a temporary file below {tempfile.gettempdir()}'
        print(f'error: {printable(text)}', file=sys.stderr)
        return EXIT_ERROR
    finally:
        if made:
            with suppress(OSError):  # if it is empty, after an error
                Path(out_dir).rmdir()


# fmt: off
def _parser():
    parser = argparse.ArgumentParser(
        prog='trunchier predict', description=HELP,
        epilog=EXAMPLES.format(detectors=', '.join(detection.OFFICIAL)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT', help='image, video, folder, glob, URL, - or camera')
    add('--frames', type=parse_frames, metavar='A:B:N',
        help='of videos and cameras: every Nth frame from A on, before B (default: all)')

    add = parser.add_argument_group('model').add_argument
    add('--model', nargs='+', metavar='NAME',
        help=f'{NAMES_OF_MODELS}; several: one after the other '
             '(default: what --weights is recognized as, else pose)')
    add('--task', help='pose or mesh: task of a model named by its encoder')
    add('--weights', nargs='+', metavar='FILE',
        help='checkpoint or exported model (.onnx), one per model; `trunchier inspect FILE` '
             'tells what it is recognized as')
    add('--rename', nargs='+', default=[], metavar='OLD=NEW',
        help='change the beginning of keys of the weights before they are recognized; OLD=- '
             'leaves keys out')
    add('--expert', metavar='NAME',
        help='data set whose expert and head of a ViTPose++ are taken: coco, aic, mpii, ap10k, '
             'apt36k or wholebody (default: coco)')
    add('--trust', action='store_true',
        help='load a .pt or .pt2 file, which is a program: only from people whom you trust')
    add('--pose', metavar='NAME',
        help='2D model whose keypoints a lifter of windows takes (default: pose)')
    add('--pose-weights', metavar='FILE', help='its weights, if it has none of its own')
    add('--body-model', metavar='FILE', help='SMPL model written by trunchier convert-smpl')
    add('--device', default='auto', help='auto, cpu, cuda, cuda:1 (default: auto)')
    add('--batch-size', type=int, default=8, metavar='N', help='people per batch (default: 8)')
    add('--precision', choices=('fp32', 'int8', 'bf16', 'fp16', 'auto'),
        default='fp32', help='int8 and auto, the fastest here, are for CPU (default: fp32)')
    add_runtime(add)
    add('--flip-test', action=argparse.BooleanOptionalAction,
        help='average each pose with that of the mirrored image, for twice the time (default: no; '
             'testing does)')
    add('--offline', action='store_true', help='download nothing (as TRUNCHIER_OFFLINE=1)')

    add = parser.add_argument_group('people').add_argument
    add('--detector', default='auto', metavar='NAME',
        help='auto, see below; one of its names; whole_image: one person fills the image; a YOLOX '
             'or RTMDet .onnx file; an mmdet config or name (default: auto)')
    add('--detector-every', type=int, default=1, metavar='N',
        help='find people in every Nth frame of a video, interpolate between (default: 1)')
    add('--detector-weights', metavar='FILE', help='checkpoint of an mmdet config')
    add('--score-thr', type=float, default=0.3, metavar='X',
        help='minimum score of detections (default: 0.3)')
    add('--boxes', dest='bboxes', metavar='FILE',
        help='JSON or .npy file of boxes to use instead of a detector')
    add('--no-track', dest='track', action='store_const', const=False,
        help='do not track people in videos')
    add('--causal', action=argparse.BooleanOptionalAction,
        help='lift each frame of a video from the frames before it alone, without waiting '
             '(default: of cameras)')
    add('--smooth', nargs='?', const='one-euro', choices=METHODS, metavar='HOW',
        help='smooth videos over time: one-euro (default), without waiting for later frames; '
             'offline, without lag; guidance, also to bones of constant length')
    add('--max-pixels', type=int, default=MAX_PIXELS, metavar='N',
        help=f'skip images and videos of more pixels (default: {MAX_PIXELS})')
    add('--focal', type=_focal, nargs='+', metavar='F',
        help='focal length of the images, pixels: one number, fx fy, or 4D-Humans for its guess '
             "(default: the photo's EXIF data, else --fov)")
    add('--fov', type=float, metavar='DEG',
        help='field of view along the longer side, degrees (default: 60)')

    add = parser.add_argument_group('results').add_argument
    add('--out-dir', metavar='DIR',
        help='default: outputs, or if it exists outputs2, outputs3... (none with --viewer, '
             '--sheet, --show or --json)')
    add('--save', type=_formats, metavar='LIST', default=DEFAULT_FORMATS,
        help=f'formats among {",".join(FORMATS)} (default: json,images,video)')
    add('--world', action='store_true', default=None,
        help='also save joints in world coordinates (y up, ground at 0), found from the feet of '
             'people; animation and bvh in these alone; the camera must not move')
    add('--extrinsics', type=float, nargs=12, metavar='X',
        help='world to camera, y up, meters: the 3 rows of [R | t], instead of --world')
    add('--json', metavar='FILE',
        help='one JSON object per image or frame and line; - for standard output')
    add('--resume', action='store_true',
        help='continue an interrupted run (default: in the last outputs folder)')
    add('--sheet', metavar='FILE', help='one image with the drawings of all models side by side')
    add('--viewer', action='store_true', help='show the results on a local web page')
    add('--host', default='127.0.0.1', help='viewer host (default: 127.0.0.1, this machine only)')
    add('--port', type=int, default=8080, help='viewer port (default: 8080)')
    add('--show', action='store_true', help='show drawings in a window')
    add('--quiet', action='store_true', help='print errors only')
    add('--verbose', action='store_true', help='also print the time of each stage')

    add = parser.add_argument_group('drawing').add_argument
    add('--kpt-thr', type=float, default=0.3, metavar='X',
        help='keypoints with a lower score are drawn faintly (default: 0.3)')
    add('--skeleton-style', choices=STYLES, default='person',
        help='person: a color per person or track (default); mmpose, openpose: a color per limb, '
             'nothing below --kpt-thr')
    add('--radius', type=int, metavar='PX', help='of keypoints (default: by image and person)')
    add('--thickness', type=int, metavar='PX', help='of lines (default: by image and person)')
    add('--draw-heatmap', action='store_true', default=None,
        help='draw heatmaps of pose models')
    add('--draw-bbox', action='store_true', help='draw boxes, their scores and track ids')
    add('--style', choices=('solid', 'wireframe', 'both'), default='solid', help='mesh style')
    add('--alpha', type=float, default=0.9, help='opacity of meshes (default: 0.9)')
    add('--side', action='store_true', help='also draw meshes from the side')
    add('--black-background', action='store_true', help='draw on black instead of on the image')
    return parser
# fmt: on


def _formats(text):
    try:
        return check_formats(text, meshes=True)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_frames(text: str) -> range:
    """Frames of the option A:B:N."""
    parts = text.split(':')
    try:
        if len(parts) not in (2, 3):
            raise ValueError(f'{text!r}: expected start:stop or start:stop:step')
        return sources.frame_range(slice(*(int(part) if part else None for part in parts)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextmanager
def messages(quiet: bool, verbose: bool) -> Iterator[None]:
    """Messages of this package go to stderr meanwhile, of others those that matter."""
    logging.basicConfig(level=logging.ERROR if quiet else logging.WARNING, format='%(message)s')
    # mmengine and mmpose log each file that they load and where they search for it.
    logging.getLogger('mmengine').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', message='The metainfo config file')
    warnings.filterwarnings('ignore', module='PIL')  # of damaged EXIF data
    handler, before = logging.StreamHandler(sys.stderr), (log.level, log.propagate)
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


def _once(found):
    """Sources without those of a file that is given twice."""
    kept = {}
    for source in found:
        is_file = source.path is not None and not sources.is_url(source.path)
        key = os.path.realpath(source.path) if is_file else source.path or source.name
        if key in kept:
            log.warning('%s is given twice; it is predicted once', printable(source.path or key))
        kept.setdefault(key, source)
    return list(kept.values())


def _focal(text):
    try:
        return text if text.lower() == '4d-humans' else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number nor 4D-Humans') from None


def parse_models(
    names: Sequence[str],
    weights: Sequence[str],
    task: str | None,
    renames: Sequence[str],
    expert: str | None = None,
) -> Iterator['Found']:
    """Models of the options --model, --weights, --task, --rename and --expert."""
    from ..weights.find import find
    from ..weights.recognize import parse_renames

    names = names or ([''] * len(weights) if weights else [task or 'pose'])
    weights = weights or [''] * len(names)
    pairs = parse_renames(renames)
    for name, file in zip(names, weights, strict=True):
        found = find(name or None, file or None, task, pairs, expert)
        if not name:
            log.info('%s is %s', printable(found.weights), found.name)
        for note in found.notes:
            log.warning('note: %s', printable(note))
        yield found


def _named(names: Sequence[str], weights: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Models and weights; exported files may be given as either."""
    if names and not weights and all(name.endswith('.onnx') for name in names):
        return (), names
    return names, weights


def _check_names(names, weights, task):
    """Raise what `find` would say of a name, before torch is imported."""
    if names and weights and len(weights) != len(names):
        raise ValueError(f'{len(names)} models and {len(weights)} weights; give one file per model')
    for name in names:
        name, own = zoo.lifted_of(name, task) or (name, task)
        if name.endswith('.py') or name in zoo.TASKS or zoo.timm_name(name):
            continue
        zoo.known_name(name, own)
    for file in weights:
        if not sources.is_url(file) and not os.path.isfile(file):
            raise FileNotFoundError(f'no file of weights {file} (from {Path.cwd()})')


def _options(models, options):
    """Those of `options` that the predictor of each model takes; ValueError if none takes one."""
    taken = [_accepted(model.row.load('predictor'), options) for model in models]
    if unused := sorted(options.keys() - {name for each in taken for name in each}):
        no = {name: 'no-' if options[name] is False else '' for name in unused}
        names = ', '.join(f'--{no[name]}{name.replace("_", "-")}' for name in unused)
        raise ValueError(f'{names}: not of {" and ".join(model.name for model in models)}')
    return taken


def _accepted(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """Those of `options` that `function` takes: poses and meshes have different ones."""
    names = set(inspect.signature(function).parameters)
    names |= set(inspect.signature(getattr(function, 'load', function)).parameters)
    return {name: value for name, value in options.items() if name in names}


def _numbered(name, resume):
    """First of outputs, outputs2, outputs3... that does not exist; with `resume` the last one."""
    folders = [name]
    while os.path.exists(folders[-1]):
        folders.append(f'{name}{len(folders) + 1}')
    return folders[-2] if resume and len(folders) > 1 else folders[-1]


def _check(args, found, models, out_dir):
    """Raise what the run would raise later."""
    for model in models:
        model.required_weights()
        check_formats(args['save'], model.row.load('predictor').has_meshes)
    if args['bboxes']:
        detection.GivenBoxes.of(args['bboxes']).missing(found)
    if args['body_model'] and not os.path.isfile(args['body_model']):
        raise FileNotFoundError(f'no body model {args["body_model"]} (from {Path.cwd()})')
    if any(source.moves for source in found):
        check_tracked(args['track'], args['smooth'] is not None)
    if args['show']:
        check_display()
    if out_dir is not None:
        check_writable(out_dir)
    for file in (args['sheet'], args['json'] if args['json'] != '-' else None):
        if file:
            check_writable(Path(file).parent)
    if args['sheet'] and not cv2.haveImageWriter(args['sheet']):
        suffix = Path(args['sheet']).suffix
        raise ValueError(f'OpenCV writes no {suffix} images: {args["sheet"]}; use .jpg')


def _viewer(host, port, found):
    from ..visualization.viewer import Viewer

    viewer = Viewer(host, port, follow=any(source.kind == 'camera' for source in found))
    print(f'the viewer is at {viewer.address}; Ctrl-C ends it', file=sys.stderr)
    return viewer


def _predict(found, inferencers, out_dir, viewer, sheet, lines, painting, quiet, **call):
    """Run one inferencer after the other; returns the exit code."""
    from .results import frame_to_json

    rows = {}  # of the sheet: drawings by source and model; of a video, its first frame
    frames = skipped = 0
    names = unique_names([(inferencer.name, inferencer.weights) for inferencer in inferencers])
    with _lines(lines) as file:
        for name, inferencer in zip(names, inferencers, strict=True):
            painter = inferencer.painter(**_accepted(inferencer.predictor.painter_type, painting))
            folder = out_dir and Path(out_dir, *([name] if len(names) > 1 else []))
            results = inferencer(
                found,
                out_dir=folder,
                return_vis=bool(sheet),
                return_image=bool(sheet or viewer),
                show_progress=not quiet,
                painter=painter,
                **call,
            )
            with closing(results):
                for result in results:
                    if file is not None:
                        content = dict(model=name, **frame_to_json(result))
                        print(json.dumps(content), file=file, flush=True)
                    if sheet and (result.source in rows or len(rows) < SHEET_ROWS):
                        row = rows.setdefault(result.source, {'input': result.image})
                        row.setdefault(name, result.visualization)
                    if viewer is not None:
                        viewer.add(name, painter, result)
            report = inferencer.report
            frames += report.frames + report.done_before
            skipped += len(report.skipped)
            of_model = f'{printable(name)}: ' if len(names) > 1 else ''
            log.info('%s%s', of_model, report)
            log.debug('%s', report.stages())
            if report.files:
                log.info('written: %s', _listed(report.files))
    if sheet and frames:
        titles = ['input', *names]
        cells = [[row.get(title) for title in titles] for row in rows.values()]
        write_image(contact_sheet(cells, titles), sheet)
        log.info('written: %s', printable(sheet))
    if not frames:
        print(f'error: nothing could be predicted of {len(found)} inputs', file=sys.stderr)
        return EXIT_ERROR
    if viewer is not None:
        with suppress(SystemExit):  # Ctrl-C
            viewer.wait()
    return EXIT_SKIPPED if skipped else 0


def unique_names(models: Sequence[tuple[str, Path]]) -> list[str]:
    """Names of (name, weights) for folders, columns and groups.

    Models of one name also get the stem of their weights, and a number where that is the same.
    """
    names: list[str] = []
    counts = Counter(name for name, _ in models)
    for name, weights in models:
        wanted = f'{name}_{weights.stem}' if counts[name] > 1 else name
        taken = {'input', *names, *(counts if wanted != name else ())}
        numbered = (wanted if n == 1 else f'{wanted}_{n}' for n in count(1))
        names.append(next(each for each in numbered if each not in taken))
    return names


@contextmanager
def _lines(path):
    """File of --json, or None."""
    if path in (None, '-'):
        yield sys.stdout if path else None
        return
    with whole_file(path) as part, open(part, 'w', encoding='utf-8') as file:
        yield file
    log.info('written: %s', printable(path))


def _listed(files):
    """Their names, or of many their folders and numbers."""
    if len(files) <= LISTED:
        return printable(', '.join(map(str, files)))
    folders = Counter(file.parent for file in files)
    return printable(', '.join(f'{folder} ({number} files)' for folder, number in folders.items()))

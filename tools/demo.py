#!/usr/bin/env python
"""From nothing to poses and bodies in minutes, on any machine: what `make demo` runs.

Makes synthetic people, trains a truncated pose model on them with tools/train.py and tests it with
tools/test.py on people it has not seen; then a mesh model that starts from it. Prints their scores
beside those of untrained models and of always predicting the mean of the training people, and draws
demo/pose.png and demo/mesh.png. With --photos it ends by predicting on pictures of yours, with the
weights that come with the package.

    python tools/demo.py [--pose-only] [--photos DIR] [--out demo]
"""

import argparse
import json
import logging
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import cv2
import numpy as np

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs' / 'demo'
POSE = CONFIGS / 'td-hm_vm-t-s2_synthetic-128x96.py'
MESH = CONFIGS / 'hmr2_vm-t-s2_synthetic-128.py'
TRAIN_IMAGES, TEST_IMAGES = 6000, 300
EXIT_SKIPPED = 3  # of predict.py: done, but some pictures could not be read
SHOWN = 8
# name in the results -> column, unit
POSE_COLUMNS = {'coco/AP': 'AP', '@0.1/PCK': 'PCK@0.1', '@0.05/PCK': 'PCK@0.05'}
MESH_COLUMNS = {
    'synthetic/MPJPE': 'MPJPE mm',
    'synthetic/PA-MPJPE': 'PA-MPJPE mm',
    'synthetic/PCK@0.05': 'PCK@0.05 %',
    'synthetic/PCK@0.1': 'PCK@0.1 %',
}


def main():
    args = parse_args()
    begin = time.time()
    out = Path(args.out)
    make_people(out, not args.pose_only)

    pose = train(POSE, out / 'pose', out)
    results = {}
    results['pose'] = {
        'untrained': test(POSE, untrained(POSE, out), out / 'pose_untrained'),
        'mean pose': test_constant(POSE, mean_keypoints(out), out),
        'trained': test(POSE, pose, out / 'pose'),
    }
    print_table('Keypoints of people never seen', results['pose'], POSE_COLUMNS)
    draw(POSE, pose, out)

    if not args.pose_only:
        mesh = train(MESH, out / 'mesh', out)
        people = some_people(out)
        keypoints, joints = mean_joints(people)
        results['mesh'] = {
            'untrained': test(MESH, untrained(MESH, out), out / 'mesh_untrained'),
            'mean joints': test_constant(MESH, always(keypoints, joints), out),
            'mean body': test_constant(MESH, always(keypoints, mean_body(people)), out),
            'trained': test(MESH, mesh, out / 'mesh'),
        }
        print_table('Bodies of people never seen', results['mesh'], MESH_COLUMNS)
        draw(MESH, mesh, out)

    (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    print(f'\npictures in {out}/; {(time.time() - begin) / 60:.1f} minutes in all')
    if args.photos:
        for model in ('pose', 'mesh'):  # those that come with weights, of a longer training
            options = ['--model', model, '--out-dir', out / f'photos_{model}']
            tool('predict.py', args.photos, *options, done=(0, EXIT_SKIPPED))


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--pose-only', action='store_true', help='train no mesh model')
    parser.add_argument('--photos', help='folder of pictures to predict on at the end')
    parser.add_argument('--out', default='demo', help='folder for everything (default: demo)')
    return parser.parse_args()


# --- steps ---------------------------------------------------------------------------------------


def make_people(out, with_bodies):
    tool('make_synthetic.py', '--num', TRAIN_IMAGES, '--out', out / 'train', '--seed', 1, '--plain')
    tool('make_synthetic.py', '--num', TEST_IMAGES, '--out', out / 'test', '--seed', 2, '--plain')
    if with_bodies and not (out / 'shards').exists():
        tool('make_shards.py', out / 'train', '--out', out / 'shards')
    if with_bodies and not (out / 'test.npz').exists():
        tool('make_shards.py', out / 'test', '--to', 'npz', '--out', out / 'test.npz')


def train(config, work_dir, out):
    """Train by tools/train.py; returns the last checkpoint."""
    mixed = ['--amp'] if bfloat16_is_fast() else []
    options = ['--work-dir', work_dir, *mixed, *places(config, out)]
    tool('train.py', config, *options, log=work_dir / 'train.log')
    return Path((work_dir / 'last_checkpoint').read_text().strip())


def test(config, checkpoint, work_dir):
    """Test by tools/test.py; returns its metrics."""
    options = ['--work-dir', work_dir, *places(config, work_dir.parent)]
    tool('test.py', config, checkpoint, *options, log=work_dir / 'test.log')
    newest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text().splitlines()[-1])


def places(config, out):
    """--cfg-options for another folder than demo/."""
    if str(out) == 'demo':
        return []
    if config == POSE:
        options = [
            f'{name}_dataloader.dataset.data_root={out}/' for name in ('train', 'val', 'test')
        ]
        annotations = f'{out}/test/annotations.json'
        options += [f'{name}_evaluator.0.ann_file={annotations}' for name in ('val', 'test')]
    else:
        options = [
            f'model.init_cfg.checkpoint={out}/pose/epoch_2.pth',
            f'train_dataloader.dataset.datasets.0.urls={out}/shards',
        ]
        for name in ('val', 'test'):
            dataset = f'{name}_dataloader.dataset.datasets.0'
            options += [
                f'{dataset}.ann_file={out}/test.npz',
                f'{dataset}.img_dir={out}/test/images',
            ]
    return ['--cfg-options', *options]


def tool(name, *arguments, log=None, done=(0,)):
    """Run a tool of this folder as a user would; of a long log only the progress is shown.

    Args:
        name: file in tools/.
        arguments: of its command line.
        log: file that takes all that the tool says; None lets it speak.
        done: exit codes of a tool that did its work.

    Raises:
        SystemExit: the tool failed; its last lines are printed.
    """
    shown = ' '.join(str(a).removeprefix(f'{TOOLS.parent}/') for a in arguments)
    print(f'\n$ python tools/{name} {shown}', flush=True)
    command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    begin = time.time()
    if log is None:
        code = subprocess.run(command).returncode
    else:
        code = run_quietly(command, log)
    if code not in done:
        sys.exit(f'tools/{name} failed with exit code {code}; {log or "see above"}')
    print(f'({time.time() - begin:.0f} s)', flush=True)


def run_quietly(command, log):
    """Run a command into a log file; prints the lines that tell of progress."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'w') as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in process.stdout:
            file.write(line)
            step = re.search(r'(Epoch|Iter)\(train\).*?\[ *(\d+)/(\d+)\].*eta: (\S+)', line)
            loss = re.search(r' loss: (\S+)', line)
            if step and loss:
                epoch = re.search(r'train\) *(\[\d+\])', line)
                where = f'{epoch[1] if epoch else ""} {step[2]:>4}/{step[3]}'
                print(f'  {where}  loss {loss[1]}  time left {step[4]}', flush=True)
    code = process.wait()
    if code:
        print(log.read_text()[-3000:])
    return code


def bfloat16_is_fast():
    """Whether this machine multiplies bfloat16 natively: a GPU, a CPU with AVX512-BF16 or AMX."""
    import torch

    if torch.cuda.is_available():
        return True
    flags = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    return 'avx512_bf16' in flags or 'amx_bf16' in flags


def config_of(config, out):
    from mmengine.config import Config, DictAction

    cfg = Config.fromfile(config)
    options = places(config, out)[1:]
    pairs = (option.split('=', 1) for option in options)
    cfg.merge_from_dict({key: DictAction._parse_int_float_bool(value) for key, value in pairs})
    return cfg


# --- what to beat --------------------------------------------------------------------------------


def untrained(config, out):
    """A checkpoint of the config's model as it is before training."""
    import torch
    from mmengine.registry import MODELS, init_default_scope

    cfg = config_of(config, out)
    init_default_scope('mmpose')
    torch.manual_seed(0)
    cfg.model.init_cfg = None
    model = MODELS.build(cfg.model)
    model.init_weights()
    path = out / f'untrained_{cfg.model.type}.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def mean_keypoints(out):
    """Predictor of the training people's mean keypoints, as fractions of the box."""
    people = json.loads((out / 'train' / 'annotations.json').read_text())['annotations']
    points = np.array([p['keypoints'] for p in people], np.float64).reshape(len(people), -1, 3)
    boxes = np.array([p['bbox'] for p in people], np.float64)
    seen = points[..., 2] > 0
    inside = (points[..., :2] - boxes[:, None, :2]) / boxes[:, None, 2:]
    mean = (inside * seen[..., None]).sum(0) / seen.sum(0)[:, None]

    def predict(sample):
        box = sample.gt_instances.bboxes[0]
        return dict(keypoints=(box[:2] + mean * (box[2:] - box[:2]))[None])

    return predict


def always(keypoints, joints):
    """Predictor of the same keypoints (44, 2) in the crop and joints (44, 3) for everybody."""

    def predict(sample):
        place = keypoints * sample.input_scale + sample.input_center
        return dict(keypoints=place[None], joints=joints[None])

    return predict


def mean_joints(people):
    """Mean keypoints in the crop (44, 2) and mean joints (44, 3), centred on the pelvis."""
    from trunchier.conventions import PELVIS
    from trunchier.datasets import CropPerson

    crop = CropPerson(size=128, aspect=(192, 256))
    records = [crop(record) for record in people]
    points = np.stack([record['crop_keypoints_2d'] for record in records])
    seen = points[..., 2:] > 0
    keypoints = (points[..., :2] * seen).sum(0) / np.maximum(seen.sum(0), 1)
    joints = np.stack([record['keypoints_3d'][:, :3] for record in records])
    return keypoints, (joints - joints[:, PELVIS, None]).mean(0)


def mean_body(people):
    """Joints (44, 3) of one body, of the mean rotations and the mean betas."""
    import torch

    from trunchier.geometry import axis_angle_to_matrix
    from trunchier.models import BodyModel

    pose = torch.tensor(np.array([person['pose'] for person in people])).unflatten(1, (24, 3))
    # The rotation nearest to a sum of rotations is their mean (in the chordal distance).
    u, _, vh = torch.linalg.svd(axis_angle_to_matrix(pose).sum(0))
    u[:, :, 2] *= torch.det(u @ vh)[:, None]
    mean = (u @ vh)[None]
    betas = torch.tensor(np.mean([person['betas'] for person in people], axis=0))[None]
    return BodyModel()(mean[:, :1], mean[:, 1:], betas)['joints'][0].numpy()


def some_people(out):
    """Every fifth record of the training people."""
    from trunchier.datasets import ShardPeople

    dataset = ShardPeople(str(out / 'shards'))
    dataset.full_init()
    return [dataset.record(i) for i in range(0, len(dataset), 5)]


def test_constant(config, predict, out):
    """Metrics of a predictor that does not look at the picture, by the config's own evaluator."""
    from mmengine.evaluator import Evaluator
    from mmengine.registry import DATASETS, init_default_scope
    from mmengine.structures import InstanceData

    cfg = config_of(config, out)
    init_default_scope('mmpose')
    logging.disable(logging.INFO)
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    dataset.full_init()
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        fields = predict(sample)
        scores = np.ones(fields['keypoints'].shape[:2], np.float32)
        sample.pred_instances = InstanceData(keypoint_scores=scores, **fields)
        evaluator.process([sample])
    metrics = evaluator.evaluate(len(dataset))
    logging.disable(logging.NOTSET)
    return {key: float(value) for key, value in metrics.items()}


# --- what comes out ------------------------------------------------------------------------------


def print_table(title, results, columns):
    print(f'\n{title} ({TEST_IMAGES} synthetic pictures):\n')
    print(f'{"":12}' + ''.join(f'{name:>14}' for name in columns.values()))
    for name, metrics in results.items():
        print(f'{name:12}' + ''.join(f'{metrics[key]:14.3f}' for key in columns))


def draw(config, checkpoint, out):
    """A contact sheet: pictures, annotations, predictions."""
    from mmengine.structures import InstanceData
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    from mmpose.structures import PoseDataSample

    from trunchier.inference.mesh import MeshInferencer
    from trunchier.inference.pose import PoseInferencer
    from trunchier.visualization.overlays import KeypointPainter, contact_sheet

    content = json.loads((out / 'test' / 'annotations.json').read_text())
    images = {image['id']: image['file_name'] for image in content['images']}
    people = content['annotations'][:SHOWN]
    paths = [str(out / 'test' / 'images' / images[p['image_id']]) for p in people]
    boxes = np.array([p['bbox'] for p in people], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    is_pose = config == POSE
    predict = (PoseInferencer if is_pose else MeshInferencer)(str(config), str(checkpoint))
    drawn = predict(paths, bboxes=[box[None] for box in boxes], return_vis=True)
    coco = dict(from_file='configs/_base_/datasets/coco.py')  # of mmpose
    painter = KeypointPainter(parse_pose_metainfo(coco))
    rows = []
    for path, person, result in zip(paths, people, drawn, strict=True):
        picture = cv2.imread(path)
        points = np.array(person['keypoints'], np.float32).reshape(1, -1, 3)
        truth = PoseDataSample(
            pred_instances=InstanceData(
                keypoints=points[..., :2], keypoint_scores=np.float32(points[..., 2] > 0)
            )
        )
        rows.append([picture, painter(picture, truth), result.visualization])
    half = len(rows) // 2
    sheet = [left + right for left, right in zip(rows[:half], rows[half:], strict=True)]
    titles = ['picture', 'annotation', 'prediction'] * 2
    cv2.imwrite(str(out / ('pose.png' if is_pose else 'mesh.png')), contact_sheet(sheet, titles))


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    main()

#!/usr/bin/env python
"""Train, test and draw truncated models on synthetic people, in minutes: what `make demo` runs.

Trains a pose model on synthetic people with tools/train.py and tests it on others with
tools/test.py; then a mesh model that starts from it. Prints their scores beside those of untrained
models, of the mean of the training people, and of bodies that the lifter of the package makes of
keypoints, of that pose model and of the package's, and draws demo/pose.png, demo/mesh.png and
demo/lifted.png (with the package's). With --photos it then predicts on your images, with the
weights that ship with the package.

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
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import InstanceData

from trunchier.conventions import PELVIS
from trunchier.datasets import CropPerson, ShardPeople
from trunchier.geometry import axis_angle_to_matrix, mean_rotation
from trunchier.inference.mesh import MeshInferencer
from trunchier.inference.pose import PoseInferencer
from trunchier.models import BodyModel
from trunchier.zoo import TASKS

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs' / 'demo'
TRAIN_IMAGES, TEST_IMAGES = 6000, 300
EXIT_SKIPPED = 3  # of predict.py: done, but some images could not be read
NUM_DRAWN = 8
# A line of mmengine's log: epoch, iteration, number of them, time left, loss.
STEP = r'(?:Epoch|Iter)\(train\) *(\[\d+\])?.*?\[ *(\d+)/(\d+)\].*eta: (\S+).* loss: (\S+)'
# name in the results -> heading
POSE_COLUMNS = {'coco/AP': 'AP', '@0.1/PCK': 'PCK@0.1', '@0.05/PCK': 'PCK@0.05'}
MESH_COLUMNS = {
    'synthetic/MPJPE': 'MPJPE mm',
    'synthetic/PA-MPJPE': 'PA-MPJPE mm',
    'synthetic/PCK@0.05': 'PCK@0.05 %',
    'synthetic/PCK@0.1': 'PCK@0.1 %',
}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('--pose-only', action='store_true', help='train no mesh model')
    parser.add_argument('--photos', metavar='DIR', help='images to predict on at the end')
    parser.add_argument('--out', default='demo', help='folder of all outputs (default: demo)')
    args = parser.parse_args()
    begin = time.time()
    out = Path(args.out)
    make_people(out, not args.pose_only)

    pose_config = config = config_for('td-hm_vm-t-s2_synthetic-128x96.py', out)
    pose = trained = train(config, out / 'pose')
    results = {'pose': {
        'untrained': test(config, untrained(config, out), out / 'pose_untrained'),
        'mean pose': test_function(config, mean_keypoints(out)),
        'trained': test(config, trained, out / 'pose'),
    }}  # fmt: skip
    print_table('Keypoints', results['pose'], POSE_COLUMNS)
    draw(PoseInferencer(str(config), str(trained)), out, 'pose.png')

    if not args.pose_only:
        config = config_for('hmr2_vm-t-s2_synthetic-128.py', out)
        trained = train(config, out / 'mesh')
        people = some_people(out)
        keypoints, joints = mean_joints(people)
        results['mesh'] = {
            'untrained': test(config, untrained(config, out), out / 'mesh_untrained'),
            'mean joints': test_function(config, always(keypoints, joints)),
            'mean body': test_function(config, always(keypoints, mean_body(people))),
            'trained': test(config, trained, out / 'mesh'),
        }
        # The lifter of this package, behind the pose model that was trained above and its own.
        lifters = {
            'lifted': MeshInferencer(f'{pose_config}+lift', str(pose), detector='whole_image'),
            'package': MeshInferencer(detector='whole_image'),
        }
        for name, lifter in lifters.items():
            results['mesh'][name] = test_function(config, lifted(lifter))
        print_table('Bodies', results['mesh'], MESH_COLUMNS)
        draw(MeshInferencer(str(config), str(trained)), out, 'mesh.png')
        draw(lifters['package'], out, 'lifted.png')

    (out / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    print(f'\nimages in {out}/; {(time.time() - begin) / 60:.1f} minutes in total')
    if args.photos:
        for task in TASKS:  # with the shipped weights, which were trained longer
            options = ['--model', task, '--out-dir', out / f'photos_{task}']
            tool('predict.py', args.photos, *options, success=(0, EXIT_SKIPPED))


# --- steps ---------------------------------------------------------------------------------------
def make_people(out: Path, with_bodies: bool) -> None:
    for seed, (name, num) in enumerate((('train', TRAIN_IMAGES), ('test', TEST_IMAGES)), start=1):
        tool('make_synthetic.py', '--num', num, '--out', out / name, '--seed', seed, '--plain')
    if with_bodies and not (out / 'shards').exists():
        tool('make_shards.py', out / 'train', '--out', out / 'shards')
    if with_bodies and not (out / 'test.npz').exists():
        tool('make_shards.py', out / 'test', '--to', 'npz', '--out', out / 'test.npz')


def config_for(name: str, out: Path) -> Path:
    """Path of a config of configs/demo, or of a copy with another folder than `demo`."""
    if str(out) == 'demo':
        return CONFIGS / name
    text = Config.fromfile(CONFIGS / name).pretty_text.replace("'demo/", f"'{out}/")
    (out / name).write_text(text)
    return out / name


def train(config: Path, work_dir: Path) -> Path:
    """Train by tools/train.py; returns the last checkpoint."""
    amp = ['--amp'] if bfloat16_is_fast() else []
    tool('train.py', config, '--work-dir', work_dir, *amp, log=work_dir / 'train.log')
    return Path((work_dir / 'last_checkpoint').read_text().strip())


def test(config: Path, checkpoint: Path, work_dir: Path) -> dict[str, float]:
    """Test by tools/test.py; returns the metrics."""
    metrics = work_dir / 'metrics.json'
    options = ['--work-dir', work_dir, '--out', metrics]
    tool('test.py', config, checkpoint, *options, log=work_dir / 'test.log')
    return json.loads(metrics.read_text())


def tool(
    name: str, *arguments: object, log: Path | None = None, success: tuple[int, ...] = (0,)
) -> None:
    """Run a tool of this folder as a user does; exit if it fails, after the end of its log.

    Args:
        log: file for its output, of which only the progress is printed; None: print all.
        success: exit codes that are no failures.
    """
    shown = ' '.join(str(a).removeprefix(f'{TOOLS.parent}/') for a in arguments)
    print(f'\n$ python tools/{name} {shown}', flush=True)
    command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    begin = time.time()
    code = subprocess.run(command).returncode if log is None else run_logged(command, log)
    if code not in success:
        sys.exit(f'tools/{name} failed with exit code {code}; {log or "see above"}')
    print(f'({time.time() - begin:.0f} s)', flush=True)


def run_logged(command: list[str], log: Path) -> int:
    """Write the output of a command to `log` and print its progress; returns the exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with open(log, 'w') as file, process:
        for line in process.stdout:
            file.write(line)
            if step := re.search(STEP, line):
                epoch, done, total, left, loss = step.groups(default='')
                print(f'  {epoch} {done:>4}/{total}  loss {loss}  time left {left}', flush=True)
    if process.returncode:
        print(log.read_text()[-3000:])
    return process.returncode


def bfloat16_is_fast() -> bool:
    """Whether this machine has bfloat16 arithmetic: a GPU, or a CPU with AVX512-BF16 or AMX."""
    if torch.cuda.is_available():
        return True
    cpu = Path('/proc/cpuinfo')
    return cpu.exists() and re.search('avx512_bf16|amx_bf16', cpu.read_text()) is not None


# --- baselines -----------------------------------------------------------------------------------
def untrained(config: Path, out: Path) -> Path:
    """A checkpoint of the config's model with initial weights."""
    cfg = Config.fromfile(config)
    init_default_scope('mmpose')
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, init_cfg=None))
    model.init_weights()
    path = out / f'untrained_{cfg.model.type}.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def mean_keypoints(out: Path) -> Callable:
    """Predictor of the training people's mean keypoints, relative to the box."""
    people = json.loads((out / 'train' / 'annotations.json').read_text())['annotations']
    points = np.array([p['keypoints'] for p in people], np.float64).reshape(len(people), -1, 3)
    boxes = np.array([p['bbox'] for p in people], np.float64)[:, None]
    seen = points[..., 2:] > 0
    mean = ((points[..., :2] - boxes[..., :2]) / boxes[..., 2:] * seen).sum(0) / seen.sum(0)

    def predict(sample):
        box = sample.gt_instances.bboxes[0]
        return dict(keypoints=(box[:2] + mean * (box[2:] - box[:2]))[None])

    return predict


def always(keypoints: np.ndarray, joints: np.ndarray) -> Callable:
    """Predictor of constant keypoints (44, 2) in the crop and joints (44, 3)."""

    def predict(sample):
        points = keypoints * sample.input_scale + sample.input_center
        return dict(keypoints=points[None], joints=joints[None])

    return predict


def lifted(infer: Callable) -> Callable:
    """Predictor by an inferencer, of the annotated box."""

    from trunchier.synthetic.people import BOX_PADDING  # needs numba

    def predict(sample):
        half = np.array(sample.box_scale) * 100 / BOX_PADDING
        center = np.array(sample.input_center)
        box = np.concatenate((center - half, center + half))[None]
        people = next(infer(sample.img_path, bboxes=box)).pred_instances
        return dict(keypoints=people.keypoints, joints=people.joints)

    return predict


def mean_joints(people: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Mean keypoints in the crop (44, 2) and mean joints (44, 3) relative to the pelvis."""
    crop = CropPerson(size=128, aspect=(192, 256))
    records = [crop(record) for record in people]
    points = np.stack([record['crop_keypoints_2d'] for record in records])
    seen = points[..., 2:] > 0
    keypoints = (points[..., :2] * seen).sum(0) / np.maximum(seen.sum(0), 1)
    joints = np.stack([record['keypoints_3d'][:, :3] for record in records])
    return keypoints, (joints - joints[:, PELVIS, None]).mean(0)


def mean_body(people: list[dict]) -> np.ndarray:
    """Joints (44, 3) of the body with the mean rotations and the mean betas."""
    pose = torch.tensor(np.array([person['pose'] for person in people])).unflatten(1, (24, 3))
    mean = mean_rotation(axis_angle_to_matrix(pose))[None]
    betas = torch.tensor(np.mean([person['betas'] for person in people], axis=0))[None]
    return BodyModel()(mean[:, :1], mean[:, 1:], betas)['joints'][0].numpy()


def some_people(out: Path) -> list[dict]:
    """Every fifth record of the training people."""
    dataset = ShardPeople(str(out / 'shards'))
    dataset.full_init()
    return [dataset.record(i) for i in range(0, len(dataset), 5)]


def test_function(config: Path, predict: Callable) -> dict[str, float]:
    """Metrics of a function of samples, by the config's own evaluator."""
    cfg = Config.fromfile(config)
    init_default_scope('mmpose')
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
    return {key: float(value) for key, value in evaluator.evaluate(len(dataset)).items()}


# --- results -------------------------------------------------------------------------------------
def print_table(title: str, results: dict[str, dict[str, float]], columns: dict[str, str]) -> None:
    print(f'\n{title} of people not trained on ({TEST_IMAGES} synthetic images):\n')
    print(f'{"":12}' + ''.join(f'{name:>14}' for name in columns.values()))
    for name, metrics in results.items():
        print(f'{name:12}' + ''.join(f'{metrics[key]:14.3f}' for key in columns))


def draw(predict: Callable, out: Path, name: str) -> None:
    """Draw images, annotations and predictions of an inferencer."""
    from mmpose.datasets.datasets.utils import parse_pose_metainfo
    from mmpose.structures import PoseDataSample

    from trunchier.visualization.overlays import KeypointPainter, contact_sheet

    content = json.loads((out / 'test' / 'annotations.json').read_text())
    images = {image['id']: image['file_name'] for image in content['images']}
    people = content['annotations'][:NUM_DRAWN]
    paths = [str(out / 'test' / 'images' / images[p['image_id']]) for p in people]
    boxes = np.array([p['bbox'] for p in people], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    drawn = predict(paths, bboxes=[box[None] for box in boxes], return_vis=True)
    coco = dict(from_file='configs/_base_/datasets/coco.py')  # of mmpose
    painter = KeypointPainter(parse_pose_metainfo(coco))
    rows = []
    for path, person, box, result in zip(paths, people, boxes, drawn, strict=True):
        image = cv2.imread(path)
        points = np.array(person['keypoints'], np.float32).reshape(1, -1, 3)
        scores = np.float32(points[..., 2] > 0)
        truth = InstanceData(keypoints=points[..., :2], keypoint_scores=scores, bboxes=box[None])
        annotated = painter(image, PoseDataSample(pred_instances=truth))
        rows.append([image, annotated, result.visualization])
    sheet = [left + right for left, right in zip(rows[::2], rows[1::2], strict=True)]
    cv2.imwrite(str(out / name), contact_sheet(sheet, ['image', 'annotation', 'prediction'] * 2))


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    logging.disable(logging.INFO)
    main()

"""What distillation gains: students of VM-T-S4 on synthetic people, and the body of a teacher.

    python examples/distillation.py --out runs/distillation           # both tables, hours on a core
    python examples/distillation.py --out runs/small --width 0.25 --steps 120 --seeds 0 1

Trains a teacher on labelled people, a knowledge token of it, and then two students in five ways for
each seed: labels only, and the teacher's heatmaps, with equal steps, batches and learning rates;
tests on people that nobody was trained on. Writes a line of OUT/results.csv when a run ends; a run
that has its line is not repeated.
"""

import argparse
import csv
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, init_default_scope

import trunchier
from trunchier import zoo
from trunchier.conventions import COCO_17_FLIP
from trunchier.synthetic.people import SyntheticPeople

SIZE = (96, 128)  # of the crops, width and height
CODEC = dict(type='UDPHeatmap', input_size=SIZE, heatmap_size=(24, 32), sigma=1.5)
STUDENTS = ('vm-t-s2', 'swin-t-s2')
VARIANTS = ('labels', 'heatmap', 'token', 'both', 'teacher')
COLUMNS = ('student', 'variant', 'seed', 'steps', 'width', 'pck@0.1', 'error', 'seconds')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder of results')
    add('--width', type=float, default=1.0, help='factor of all channels (default: 1)')
    add('--steps', type=int, default=2000, help='of each student (default: 2000)')
    add('--teacher-steps', type=int, default=6000, help='default: 6000')
    add('--token-steps', type=int, default=500, help='default: 500')
    add('--batch', type=int, default=16, help='default: 16')
    add('--people', type=int, default=4000, help='to train on (default: 4000)')
    add('--tested', type=int, default=300, help='people to test on (default: 300)')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    args = parser.parse_args()
    init_default_scope('mmpose')
    import mmpose.datasets.transforms
    import mmpose.models  # noqa: F401  registers what the configs name

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key not in ('out', 'seeds')}
    check_settings(args.out / 'settings.json', settings)
    train, test = crops(args.people, 1, args.out), crops(args.tested, 2, args.out)
    run(args, train, test)
    summarize(args.out / 'results.csv')


def run(args: argparse.Namespace, train: list, test: list) -> None:
    """Teacher, token, and every student that has no line yet."""
    teacher_cfg = model_cfg('vm-t-s4', args.width)
    teacher, token = args.out / 'teacher.pth', args.out / 'token.pth'
    taught = dict(teacher=teacher_cfg, teacher_weights=str(teacher))

    def trained(name, variant, seed, cfg, steps, lr, save=None):
        if done(args.out / 'results.csv', name, variant, seed) and (save is None or save.exists()):
            return
        begin = time.time()
        torch.manual_seed(seed)
        model = MODELS.build(cfg)
        model.init_weights()
        fit(model, train, steps, args.batch, lr, seed)
        if save:
            torch.save(dict(state_dict=model.state_dict()), save)
        row = (name, variant, seed, steps, args.width, *score(model, test))
        append(args.out / 'results.csv', (*row, round(time.time() - begin)))

    trained('vm-t-s4', 'labels', 0, teacher_cfg, args.teacher_steps, 1e-3, teacher)
    first = dict(type='TeacherToken', stage=1, **taught)
    trained('vm-t-s4', 'token alone', 0, first, args.token_steps, 1e-2, token)
    for seed in args.seeds:
        for student in STUDENTS:
            cfg = model_cfg(student, args.width)
            heatmaps = dict(type='HeatmapDistiller', student=cfg, **taught)
            tokens = dict(type='TokenDistiller', student=cfg, token=str(token))
            variants = dict(
                labels=cfg,
                heatmap=heatmaps,
                token=tokens,
                both=dict(tokens, **taught),
                teacher=dict(heatmaps, label_weight=0),
            )
            for variant in VARIANTS:
                trained(student, variant, seed, variants[variant], args.steps, 1e-3)


def model_cfg(name: str, width: float) -> dict:
    """The recipe's model of an encoder, its channels times `width`, for crops of SIZE."""
    cfg = trunchier.weights.find.find_config(name, 'pose').cfg.model
    row = dict(zoo.ARCHS[cfg.backbone.type][cfg.backbone.arch])
    row['channels'] = tuple(int(c * width) for c in row['channels'])
    if 'num_heads' in row and width < 1:
        row['num_heads'] = tuple(max(1, int(heads * width)) for heads in row['num_heads'])
    cfg.backbone.update(arch=row, init_cfg=None, drop_path_rate=0.0)
    kept, decoder = row['channels'][cfg.neck.num_stages - 1], row['channels'][2]
    cfg.neck.update(in_channels=kept, out_channels=decoder)
    cfg.head.update(in_channels=decoder, decoder=CODEC)
    cfg.head.deconv_out_channels = (int(256 * width),) * 2
    return cfg.to_dict()


def crops(num: int, seed: int, folder: Path) -> list:
    """Packed samples of `num` synthetic people; the images are kept in `folder`."""
    path = folder / f'people-{seed}-{num}.npz'
    if not path.exists():
        people = SyntheticPeople(seed=seed, plain=True, size=160)
        images, keypoints, boxes = [], [], []
        for i in range(num):
            sample = people[i]
            person = sample['people'][0]
            images.append(sample['image'][..., ::-1])
            keypoints.append(person['keypoints'])
            boxes.append(person['bbox'])
        np.savez(path, images=np.stack(images), keypoints=keypoints, boxes=boxes)
    pipeline = Compose([
        dict(type='GetBBoxCenterScale'),
        dict(type='TopdownAffine', input_size=SIZE, use_udp=True),
        dict(type='GenerateTarget', encoder=CODEC),
        dict(type='PackPoseInputs', pack_transformed=True),
    ])  # fmt: skip
    with np.load(path) as arrays:
        rows = zip(arrays['images'], arrays['keypoints'], arrays['boxes'], strict=True)
        return [pipeline(_record(i, *row)) for i, row in enumerate(rows)]


def _record(index, image, keypoints, box):
    x, y, w, h = box
    return dict(
        id=index,
        img_id=index,
        img=image,
        img_path='',
        img_shape=image.shape[:2],
        bbox=np.float32([[x, y, x + w, y + h]]),
        bbox_score=np.ones(1, np.float32),
        keypoints=np.float32(keypoints[None, :, :2]),
        keypoints_visible=np.float32(keypoints[None, :, 2] > 0),
        flip_indices=list(COCO_17_FLIP),
    )


def fit(model, samples: list, steps: int, batch: int, lr: float, seed: int) -> None:
    """Train by AdamW with one cycle of the learning rate; the order is that of the seed."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    model.train()
    for _ in range(steps):
        chosen = [samples[i] for i in rng.choice(len(samples), batch, replace=False)]
        data = model.data_preprocessor(pseudo_collate(chosen), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()


def score(model, samples: list) -> tuple[float, float]:
    """Share of visible keypoints within 0.1 of the longer side of the box; mean error of it."""
    model.eval()
    errors = []
    for start in range(0, len(samples), 50):
        data = model.data_preprocessor(pseudo_collate(samples[start : start + 50]), False)
        with torch.no_grad():
            results = model(**data, mode='predict')
        for result in results:
            truth, found = result.gt_instances, result.pred_instances
            side = (truth.bboxes[0, 2:] - truth.bboxes[0, :2]).max()
            seen = truth.keypoints_visible[0] > 0
            distance = np.linalg.norm(found.keypoints[0] - truth.keypoints[0], axis=-1)
            errors.extend(distance[seen] / side)
    return round(float(np.mean(np.less(errors, 0.1))), 4), round(float(np.mean(errors)), 4)


# --- results --------------------------------------------------------------------------------------
def check_settings(path: Path, settings: dict) -> None:
    """Note the settings of a folder; exit if it was begun with others."""
    if path.exists() and (before := json.loads(path.read_text())) != settings:
        raise SystemExit(f'{path.parent} was begun with {before}; choose another --out')
    path.write_text(json.dumps(settings))


def rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def done(path: Path, name: str, variant: str, seed: int) -> bool:
    key = (name, variant, str(seed))
    return any((row['student'], row['variant'], row['seed']) == key for row in rows(path))


def append(path: Path, row: tuple, columns: tuple = COLUMNS) -> None:
    new = not path.exists()
    with open(path, 'a', newline='') as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(columns)
        writer.writerow(row)
    print(*row, flush=True)


def summarize(path: Path) -> None:
    """Print mean and spread of every student and variant, as a table for the docs."""
    groups: dict = {}
    for row in rows(path):
        groups.setdefault((row['student'], row['variant']), []).append(row)
    print('| model | variant | seeds | PCK@0.1 | mean error |\n|---|---|---|---|---|')
    for (student, variant), group in groups.items():
        cells = []
        for column in ('pck@0.1', 'error'):
            values = [float(row[column]) for row in group]
            spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.3f}{spread}')
        print(f'| {student} | {variant} | {len(group)} | {cells[0]} | {cells[1]} |')


if __name__ == '__main__':
    main()

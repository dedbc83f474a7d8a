"""Bodies without labels: a student that learns from the teacher alone, beside its teacher.

    python examples/distillation_mesh.py --out runs/bodies            # hours on a core
    python examples/distillation_mesh.py --out runs/small-bodies --steps 150 --people 600

The teacher is the mesh model that ships with the package, the student one of the same encoder whose
backbone comes from the shipped pose model and is frozen, and whose head learns from the teacher's
bodies on synthetic people without labels. Tests both, and the untrained student, on people that
nobody was trained on: a line each in OUT/results.csv. A line that is there is not repeated.
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from distillation import check_settings, fit
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS, init_default_scope

import trunchier
from trunchier.files import shipped
from trunchier.weights.find import find

TEACHER, POSE = 'VMHMR2.0-T-S2', 'VMPose-T-S2.safetensors'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder of results')
    add('--steps', type=int, default=3000, help='default: 3000')
    add('--batch', type=int, default=16, help='default: 16')
    add('--people', type=int, default=4000, help='to train on (default: 4000)')
    add('--tested', type=int, default=300, help='people to test on (default: 300)')
    add('--agreement', type=float, help='meters, see BodyDistiller (default: weigh all alike)')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    args = parser.parse_args()
    init_default_scope('mmpose')
    import mmpose.models  # noqa: F401  registers the preprocessor

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key not in ('out', 'seeds')}
    check_settings(args.out / 'settings.json', settings)
    results = args.out / 'results.csv'
    known = dict(line[:2] for line in read(results))
    test = people(args.tested, 2)
    if 'teacher' not in known:
        teacher = trunchier.create_model(TEACHER, weights='shipped')
        write(results, 'teacher', 0, *score(teacher, test), 0)
    for seed in args.seeds:
        if f'student, seed {seed}' in known:
            continue
        begin = time.time()
        torch.manual_seed(seed)
        model = MODELS.build(student_cfg(args.agreement))
        model.init_weights()
        if f'untrained, seed {seed}' not in known:
            write(results, f'untrained, seed {seed}', 0, *score(model, test), 0)
        fit(model, people(args.people, 1), args.steps, args.batch, 1e-3, seed)
        seconds = round(time.time() - begin)
        write(results, f'student, seed {seed}', args.steps, *score(model, test), seconds)


def student_cfg(agreement: float | None) -> dict:
    """A BodyDistiller of the shipped mesh model, for a student with its head yet to learn."""
    student = find(TEACHER).cfg.model
    student.backbone.update(frozen_stages=2, drop_path_rate=0.0)
    student.init_cfg.update(checkpoint=str(shipped.asset(POSE)), parts=['backbone', 'neck'])
    student.discriminator = None
    return dict(
        type='BodyDistiller',
        student=student,
        teacher=TEACHER,
        label_weight=0,
        agreement=agreement,
    )


def people(num: int, seed: int) -> list:
    """Packed samples of synthetic people for the shipped model's crops."""
    pipeline = [dict(type='CropPerson', aspect=(192, 256)), dict(type='PackPerson')]
    options = dict(seed=seed, length=num, plain=True, pipeline=pipeline)
    dataset = DATASETS.build(dict(type='SyntheticBodies', **options))
    return [dataset[i] for i in range(num)]


def score(model, samples: list) -> tuple[float, float]:
    """MPJPE and PA-MPJPE, millimeters."""
    model.eval()
    evaluator = Evaluator(dict(type='MeshJointError'))
    for start in range(0, len(samples), 50):
        data = model.data_preprocessor(pseudo_collate(samples[start : start + 50]), False)
        evaluator.process(model(**data, mode='predict'))
    found = evaluator.evaluate(len(samples))
    return tuple(round(found[f'synthetic/{name}'], 1) for name in ('MPJPE', 'PA-MPJPE'))


def read(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with open(path, newline='') as file:
        return list(csv.reader(file))[1:]


def write(path: Path, *line) -> None:
    new = not path.exists()
    with open(path, 'a', newline='') as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(('model', 'steps', 'MPJPE mm', 'PA-MPJPE mm', 'seconds'))
        writer.writerow(line)
    print(*line, flush=True)


if __name__ == '__main__':
    main()

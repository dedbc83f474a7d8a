"""A progressive loop: annotate photos, keep the certain ones, train on them, repeat.

    python examples/progressive.py --out runs/progressive             # hours on a core
    python examples/progressive.py --out runs/small --width 0.25 --steps 100 --people 600

Few synthetic people have labels, many have none. Round 0 trains on the labels. Each later round
lets the model of the round before annotate everyone else, keeps those on whom it agrees with itself
on the mirrored image, and trains a new model on both. Each round's score on people that nobody was
trained on is a line of OUT/results.csv. Equal options give equal results on one machine; a round
that has its line is not repeated.
"""

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from distillation import COLUMNS, append, check_settings, crops, done, fit, model_cfg, rows, score
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from trunchier.conventions import COCO_17_FLIP


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--out', type=Path, required=True, help='folder of models and results')
    add('--model', default='vm-t-s2', help='encoder (default: vm-t-s2)')
    add('--rounds', type=int, default=3, help='the first one included (default: 3)')
    add('--width', type=float, default=1.0, help='factor of all channels (default: 1)')
    add('--steps', type=int, default=2000, help='of each round (default: 2000)')
    add('--batch', type=int, default=16, help='default: 16')
    add('--people', type=int, default=4000, help='default: 4000')
    add('--labels', type=int, default=200, help='people with labels (default: 200)')
    add('--tested', type=int, default=300, help='people to test on (default: 300)')
    add('--keep', type=float, default=0.5, help='share of the annotations kept (default: 0.5)')
    add('--seed', type=int, default=0, help='default: 0')
    args = parser.parse_args()
    init_default_scope('mmpose')
    import mmpose.datasets.transforms
    import mmpose.models  # noqa: F401  registers what the config names

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(args).items() if key not in ('out', 'rounds')}
    check_settings(args.out / 'settings.json', settings)
    people, test = crops(args.people, 1, args.out), crops(args.tested, 2, args.out)
    labelled, others = people[: args.labels], people[args.labels :]
    cfg, results = model_cfg(args.model, args.width), args.out / 'results.csv'
    for number in range(args.rounds):
        path = args.out / f'round-{number}.pth'
        if done(results, args.model, f'round {number}', args.seed) and path.exists():
            continue
        torch.manual_seed(args.seed)
        model = MODELS.build(cfg)
        model.init_weights()
        train = labelled
        if number:
            before = MODELS.build(cfg)
            before.load_state_dict(torch.load(args.out / f'round-{number - 1}.pth'))
            train = labelled + annotate(before.eval(), others, args.keep)
        fit(model, train, args.steps, args.batch, 1e-3, args.seed)
        torch.save(model.state_dict(), path)
        row = (args.model, f'round {number}', args.seed, args.steps, args.width)
        append(results, (*row, *score(model, test), len(train)), (*COLUMNS[:-1], 'people'))
    for row in rows(results):
        print(row['variant'], row['pck@0.1'], row['error'])


@torch.no_grad()
def annotate(model: nn.Module, samples: list, keep: float) -> list:
    """Samples with the model's heatmaps as targets: the share `keep` that it is most certain of."""
    annotated, certainty = [], []
    for start in range(0, len(samples), 50):
        part = samples[start : start + 50]
        images = model.data_preprocessor(pseudo_collate(part), False)['inputs']
        heatmaps, mirrored = model._forward(images), model._forward(images.flip(-1))
        mirrored = mirrored.flip(-1)[:, list(COCO_17_FLIP)]
        certainty.extend(agreement(heatmaps, mirrored).tolist())
        for sample, target in zip(part, (heatmaps + mirrored) / 2, strict=True):
            sample = copy.deepcopy(sample)
            sample['data_samples'].gt_fields.heatmaps = target
            sample['data_samples'].gt_instance_labels.keypoint_weights.fill_(1)
            annotated.append(sample)
    order = np.argsort(certainty, kind='stable')[::-1][: int(keep * len(samples))]
    return [annotated[i] for i in sorted(order)]


def agreement(heatmaps: Tensor, others: Tensor) -> Tensor:
    """Mean correlation of two sets of heatmaps (B, K, H, W), weighted by their maxima: (B,)."""
    a, b = heatmaps.flatten(2), others.flatten(2)
    correlation = nn.functional.cosine_similarity(a, b, dim=2)
    return (correlation * (a.amax(2) + b.amax(2)).clamp(min=0)).mean(1)


if __name__ == '__main__':
    main()

#!/usr/bin/env python
"""Train the head of a mesh model on the frozen encoder of each of several trained pose models.

    python tools/train_heads.py work_dirs/figure4/runs/* --out work_dirs/figure5 \\
        --train data/train.npz --test data/test.npz

OUT gets for each model a folder with its config and checkpoint, as training leaves them, and
table.md. The FILEs are those of `trunchier make-shards DIR --to npz`, whose images lie in DIR. An
interrupted command goes on when it is given again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import launch  # noqa: F401  idle threads, before torch
from join_head import join
from mmengine.config import Config
from report import work_dirs

from trunchier import zoo
from trunchier.files import whole_file
from trunchier.files.processes import clean_end

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs'
DEMO = CONFIGS / 'demo' / 'hmr2_vm-t-s2_synthetic-128.py'
HEAD = CONFIGS / 'embedded' / 'hmr2_vm-t-s2_features-256.py'
SCORES = ('synthetic/MPJPE', 'synthetic/PA-MPJPE', 'synthetic/PCK@0.1', 'synthetic/spread')


@clean_end()
def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add('runs', nargs='+', metavar='RUN', type=Path, help='work_dirs of pose models')
    add('--train', required=True, metavar='FILE', type=Path, help='people to train on')
    add('--test', required=True, metavar='FILE', type=Path, help='other people')
    add('--out', required=True, metavar='DIR', type=Path)
    add('--num', type=int, default=6000, metavar='N', help='crops to store (default: 6000)')
    add('--steps', type=int, default=2000, metavar='N', help='of training (default: 2000)')
    args = parser.parse_args(arguments)
    try:
        rows = [train(run, args) for run in args.runs]
        with whole_file(args.out / 'table.md') as part:
            part.write_text(table(rows))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f'error: {error}')
    print((args.out / 'table.md').read_text())


def train(run: Path, args: argparse.Namespace) -> dict:
    """Train what is missing; the model's name and scores."""
    name, _ = zoo.models()[work_dirs.model_of(run)]
    out = args.out / name
    config, features, head = out / f'hmr2_{name}_frozen.py', out / 'features', out / 'head'
    cfg = whole_cfg(name, work_dirs.checkpoint_of(run)[1].absolute(), args)
    out.mkdir(parents=True, exist_ok=True)
    cfg.dump(config)
    head.mkdir(exist_ok=True)
    head_cfg(cfg, features, args.steps).dump(head / f'hmr2_{name}_head.py')
    checkpoint = head / f'iter_{args.steps}.pth'
    if not checkpoint.exists():
        stored = 'store_features.py', config, '--amp', '--workers', 0, '--out'
        call(out, *stored, features / 'train', '--num', args.num)
        call(out, *stored, features / 'test', '--test')
        resume = ['--resume'] if (head / 'last_checkpoint').exists() else []
        call(out, 'train.py', head / f'hmr2_{name}_head.py', '--work-dir', head, *resume)
    join(cfg, checkpoint, out / checkpoint.name)
    (out / 'last_checkpoint').write_text(str(out / checkpoint.name))
    scores = [
        json.loads(line)
        for path in sorted(head.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
        if SCORES[0] in line
    ]
    print(f'{name}: {out}', flush=True)
    return dict(scores[-1], name=name)


def call(out: Path, tool: str, *arguments: object) -> None:
    """Run one of the tools; CalledProcessError if it fails, its output is in train.log."""
    with open(out / 'train.log', 'a', encoding='utf-8') as log:
        command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)


def whole_cfg(name: str, checkpoint: Path, args: argparse.Namespace) -> Config:
    """The mesh model with the encoder of a pose model, and its people."""
    cfg = Config.fromfile(DEMO)
    del cfg.model.backbone, cfg.model.neck
    cfg.model.update(zoo.model_cfg(name, 'mesh'))
    cfg.model.backbone.drop_path_rate = 0.0
    cfg.model.init_cfg.checkpoint = str(checkpoint)
    cfg.model.discriminator = None
    for loader, file in ((cfg.train_dataloader, args.train), (cfg.val_dataloader, args.test)):
        people = dict(type='NpzPeople', name='synthetic', ann_file=str(file.absolute()))
        people['img_dir'] = str(file.absolute().with_suffix('') / 'images')
        loader.dataset.datasets = [people]
    cfg.test_dataloader = cfg.val_dataloader
    return cfg


def head_cfg(cfg: Config, features: Path, steps: int) -> Config:
    """The same head on stored features."""
    found = Config.fromfile(HEAD)
    found.model.head, found.model.loss = cfg.model.head, cfg.model.loss
    found.train_cfg.update(max_iters=steps, val_interval=steps)
    warm, cosine = found.param_scheduler
    warm.end = max(1, min(warm.end, steps // 10))
    cosine.update(begin=warm.end, end=steps, T_max=steps - warm.end)
    found.default_hooks.checkpoint.interval = steps
    for loader, part in ((found.train_dataloader, 'train'), (found.val_dataloader, 'test')):
        loader.dataset.folder = str((features / part).absolute())
    found.test_dataloader = found.val_dataloader
    return found


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ['| model | MPJPE mm | PA-MPJPE mm | PCK@0.1 % | spread of angles, degrees |']
    lines.append('|---|---|---|---|---|')
    for row in rows:
        lines.append(f'| {row["name"]} | ' + ' | '.join(f'{row[key]:.1f}' for key in SCORES) + ' |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()

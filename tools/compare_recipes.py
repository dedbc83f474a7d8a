"""What is trained in a comparison: the config of a model and its changes, people, schedule."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from trunchier import zoo
from trunchier.synthetic.regime import INGREDIENTS, leave_out
from trunchier.weights.find import find_config

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
BASE = CONFIGS / '_base_' / 'pose2d.py'
STREAM = CONFIGS / 'embedded' / 'td-hm_vm-t-s2_stream-256x192.py'
STREAM_TESTED = 600  # people
AUGMENTATION = ('RandomFlip', 'RandomHalfBody', 'RandomBBoxTransform', 'GenerateTarget')


def config(variant: str, args: argparse.Namespace) -> Config:
    """The recipe of the study with the model of a variant; ValueError for an unknown one."""
    name, *changes = variant.split('+')
    kinds = {change.partition('-')[0]: change.split('-')[1:] for change in changes}
    known = {'simple', 'parts', 'hard', 'ema', 'revisit'}
    if unknown := [each for each in kinds if each not in known or each != 'hard' and kinds[each]]:
        raise ValueError(
            f'{variant}: no change {"+".join(unknown)!r}; choose +simple, +parts, +hard, '
            '+ema or +revisit'
        )
    if 'revisit' in kinds and 'hard' not in kinds:
        raise ValueError(f'{variant}: only +hard has images to show again')
    model = find_config(name, None if name.endswith('.py') else 'pose').cfg.model
    if 'simple' in kinds:
        model = zoo.simple_decoder(model)
    width, height = args.size
    codec = dict(
        type='UDPHeatmap', input_size=args.size, heatmap_size=(width // 4, height // 4), sigma=1.5
    )
    model['head']['decoder'] = codec
    backbone = model['backbone']
    if 'img_size' in backbone:
        backbone['img_size'] = (height, width)
    if 'Timm' not in backbone['type']:
        backbone['drop_path_rate'] = 0.0  # timm's default; the budget is too small for it
    if not args.pretrained or args.weights:
        backbone['init_cfg'] = None
    if args.no_flip:
        model['test_cfg'] = dict(model.get('test_cfg', {}), flip_test=False)
    if args.weights:
        model['init_cfg'] = dict(type='OfficialPretrained', checkpoint=args.weights)
    cfg = Config.fromfile(BASE)
    cfg = Config(dict(cfg.to_dict(), model=model, codec=codec, **schedule(args)))
    train = [
        dict(type='LoadImage'),
        dict(type='GetBBoxCenterScale'),
        dict(type='RandomFlip', direction='horizontal'),
        dict(type='RandomBBoxTransform', rotate_factor=20.0, scale_factor=(0.75, 1.25)),
        dict(type='TopdownAffine', input_size=args.size, use_udp=True),
        dict(type='GenerateTarget', encoder=codec),
        dict(type='PackPoseInputs'),
    ]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=1, batch_size=args.batch_size)
    if 'hard' in kinds:
        cfg.train_dataloader.sampler = dict(type='MixSampler', seed=0)
        cfg.train_dataloader.dataset = stream_of_people(args, codec, kinds['hard'])
        cfg.train_cfg = dict(type='StreamTrainLoop', max_iters=args.steps, val_interval=args.steps)
    else:
        cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=True)
        cfg.train_dataloader.dataset.update(**folder_of_people(args.train), pipeline=train)
    if 'parts' in kinds:
        cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='CropBodyPart', chance=0.5))
    if 'ema' in kinds:
        cfg.custom_hooks += [
            each for each in Config.fromfile(STREAM).custom_hooks if each.type == 'EMAHook'
        ]
    if 'revisit' in kinds:
        cfg.train_dataloader.sampler.update(type='RevisitSampler', block=16 * args.batch_size)
        cfg.custom_hooks.append(dict(type='RevisitHook'))
    cfg.val_dataloader.dataset = people_of_test(args.test, args)
    cfg.test_dataloader, cfg.test_cfg = cfg.val_dataloader, dict()
    return cfg


def folder_of_people(root: str | None) -> dict:
    """Of the config of a data set, what names a folder; FileNotFoundError: no annotations."""
    if not root or not Path(root, 'annotations.json').is_file():
        raise FileNotFoundError(f'no {root}/annotations.json; see trunchier make-synthetic')
    return dict(data_root=f'{root}/', ann_file='annotations.json', data_prefix=dict(img='images/'))


def stream_of_people(
    args: argparse.Namespace, codec: dict, without: Sequence[str] = ()
) -> ConfigDict:
    """The data set of harder people in crops of the study, without some ingredients or `all`."""
    dataset = Config.fromfile(STREAM).train_dataloader.dataset
    for name in INGREDIENTS if without == ['all'] else without:
        leave_out(dataset, name)
    step_of(dataset, 'TopdownAffine').input_size = args.size
    step_of(dataset, 'GenerateTarget').encoder = codec
    return dataset


def people_of_test(test: str, args: argparse.Namespace) -> dict:
    """The data set of a test: a folder, or other images of the stream with every ingredient."""
    if test == 'stream':
        dataset = stream_of_people(args, {})
        dataset.update(seed=12, length=STREAM_TESTED)
        dataset.pipeline = [step for step in dataset.pipeline if step.type not in AUGMENTATION]
        return dataset
    dataset = Config.fromfile(BASE).val_dataloader.dataset
    dataset.update(**folder_of_people(test), bbox_file=None)
    step_of(dataset, 'TopdownAffine').input_size = args.size
    if args.test_parts:
        parts = ('whole', 'upper', 'lower', 'limb')
        dataset.pipeline.insert(1, dict(type='CropBodyPart', parts=parts, by_id=True))
    return dataset


def step_of(dataset: ConfigDict, name: str) -> ConfigDict:
    """The transform of a type in the pipeline of a data set."""
    return next(step for step in dataset.pipeline if step.type == name)


def schedule(args: argparse.Namespace) -> dict:
    """What a config says of the budget."""
    warm = max(1, min(100, args.steps // 10))
    step = dict(by_epoch=False, interval=max(1, args.steps // 4), max_keep_ckpts=1)
    base = Config.fromfile(BASE)
    hooks = dict(base.default_hooks.to_dict(), checkpoint=dict(type='SafeCheckpointHook', **step))
    return dict(
        train_cfg=dict(by_epoch=False, max_iters=args.steps, val_interval=args.steps),
        optim_wrapper=dict(
            base.optim_wrapper.to_dict(),
            optimizer=dict(type='AdamW', lr=args.lr, weight_decay=0.05),
            paramwise_cfg=dict(layer_decay_rate=1.0),
        ),
        param_scheduler=[
            dict(type='LinearLR', begin=0, end=warm, start_factor=0.01, by_epoch=False),
            dict(
                type='CosineAnnealingLR', begin=warm, end=args.steps, by_epoch=False,
                T_max=args.steps - warm, eta_min=args.lr / 35,
            ),
        ],
        default_hooks=dict(hooks, logger=dict(type='LoggerHook', interval=10)),
        log_processor=dict(type='LogProcessor', window_size=10, by_epoch=False),
    )  # fmt: skip

#!/usr/bin/env python
"""Join a frozen encoder and the head that was trained on its stored features.

    python tools/join_head.py CONFIG HEAD.pth OUT.pth

CONFIG is that of the whole mesh model, whose encoder starts from its `init_cfg`: the one that
tools/store_features.py took. Another encoder than that of the features is refused.
"""

import argparse
import sys
from pathlib import Path

import launch  # idle threads, before torch
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from store_features import encoder_of

import trunchier  # noqa: F401  registers what configs name
from trunchier.files import whole_file
from trunchier.weights.load import CheckpointError, read_weights, unwrap


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('config')
    parser.add_argument('head', help='checkpoint of tools/train.py on features')
    parser.add_argument('out', help='checkpoint of the whole model')
    help = 'as of train.py'
    parser.add_argument('--cfg-options', nargs='+', action=launch.Settings, default={}, help=help)
    args = parser.parse_args(arguments)
    try:
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        join(cfg, args.head, args.out)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


def join(cfg: Config, head: str | Path, out: str | Path) -> None:
    """Write the checkpoint of the model of `cfg` with another head.

    Raises:
        CheckpointError: a file that is none.
        ValueError: other parts than a head, another head, or one of another encoder's features.
    """
    init_default_scope(cfg.get('default_scope', 'mmpose'))
    model = MODELS.build(cfg.model)
    model.init_weights()
    content = read_weights(head)
    trained = unwrap(content)
    parts = {name.partition('.')[0] for name in trained} - {'discriminator'}
    if parts != {'head'}:
        raise ValueError(
            f'{head} has {sorted(parts)}, expected a head alone: see store_features.py'
        )
    origin, wanted = encoder_of(model), features_of(content)
    if wanted not in (None, origin):
        raise ValueError(
            f'{head} was trained on features of {wanted}, the config has {origin}: give its '
            'model.init_cfg.checkpoint the weights that tools/store_features.py had'
        )
    own = {name: value for name, value in trained.items() if name.startswith('head.')}
    try:
        model.head.load_state_dict({name.removeprefix('head.'): own[name] for name in own})
    except RuntimeError as error:
        raise ValueError(f'{head} does not fit the config: {error}') from error
    with whole_file(out) as part:
        meta = dict(cfg=cfg.pretty_text)  # states the size of the crops
        torch.save(dict(state_dict=model.state_dict(), meta=meta), part)


def features_of(content: dict) -> str | None:
    """The encoder whose features a checkpoint was trained on; None: it does not say."""
    return content.get('meta', {}).get('dataset_meta', {}).get('encoder')


if __name__ == '__main__':
    main()

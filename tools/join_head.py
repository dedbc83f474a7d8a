#!/usr/bin/env python
"""Join a frozen encoder and the head that was trained on its stored features.

    python tools/join_head.py CONFIG HEAD.pth OUT.pth

CONFIG is that of the whole mesh model, whose encoder starts from its `init_cfg`: the one that
tools/store_features.py took.
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import trunchier  # noqa: F401
from trunchier.files import whole_file
from trunchier.weights.load import CheckpointError, read_weights, unwrap


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument('config')
    parser.add_argument('head', help='checkpoint of tools/train.py on features')
    parser.add_argument('out', help='checkpoint of the whole model')
    args = parser.parse_args(arguments)
    try:
        join(Config.fromfile(args.config), args.head, args.out)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


def join(cfg: Config, head: str | Path, out: str | Path) -> None:
    """Write the checkpoint of the model of `cfg` with another head.

    Raises:
        CheckpointError: a file that is none. ValueError: other parts than a head, or another head.
    """
    init_default_scope(cfg.get('default_scope', 'mmpose'))
    model = MODELS.build(cfg.model)
    model.init_weights()
    trained = unwrap(read_weights(head))
    parts = {name.partition('.')[0] for name in trained} - {'discriminator'}
    if parts != {'head'}:
        raise ValueError(
            f'{head} has {sorted(parts)}, expected a head alone: see store_features.py'
        )
    own = {name: value for name, value in trained.items() if name.startswith('head.')}
    try:
        model.head.load_state_dict({name.removeprefix('head.'): own[name] for name in own})
    except RuntimeError as error:
        raise ValueError(f'{head} does not fit the config: {error}') from error
    with whole_file(out) as part:
        torch.save(dict(state_dict=model.state_dict(), meta={}), part)


if __name__ == '__main__':
    main()

"""Train on a Ray cluster: tools/train.py in each worker of Ray Train.

python tools/ray_train.py CONFIG --workers 8 [--address HOST:PORT] [arguments of tools/train.py]

When a worker dies, all begin again from the last checkpoint, with as many as there are now. With
--total-batch the samples and the steps are then those of one process.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from trunchier.files import need


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('config', help='as of tools/train.py')
    add('--work-dir', required=True, help='folder for checkpoints, which all nodes reach')
    add('--workers', type=int, required=True, metavar='N', help='processes')
    add('--min-workers', type=int, metavar='N', help='that it also goes on with (default: all)')
    add('--gpus', type=int, default=0, help='of each worker (default: 0)')
    add('--address', metavar='HOST:PORT', help='of the cluster (default: one of this machine)')
    add('--failures', type=int, default=3, help='deaths to survive (default: 3)')
    return parser.parse_known_args()


def work(job: dict[str, Any]) -> None:
    """A worker: Ray has set RANK and WORLD_SIZE and joined the processes."""
    os.chdir(job['folder'])
    sys.path.insert(0, job['tools'])
    sys.argv = ['train.py', *job['arguments']]
    import train

    train.main()


def main() -> None:
    args, others = parse_args()
    train = need('ray.train', 'training on many machines')
    torch_of_ray = need('ray.train.torch', 'training on many machines')
    ray = need('ray', 'training on many machines')
    ray.init(args.address, include_dashboard=False)
    arguments = [args.config, '--work-dir', args.work_dir, '--launcher', 'pytorch']
    job = dict(
        arguments=[*arguments, '--resume', 'auto', *others],
        folder=os.getcwd(),
        tools=str(Path(__file__).resolve().parent),
    )
    fewest = args.min_workers or args.workers
    trainer = torch_of_ray.TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=torch_of_ray.TorchConfig(backend='nccl' if args.gpus else 'gloo'),
        scaling_config=train.ScalingConfig(
            num_workers=args.workers if fewest == args.workers else (fewest, args.workers),
            use_gpu=bool(args.gpus),
            resources_per_worker=dict(GPU=args.gpus) if args.gpus else dict(CPU=1),
        ),
        run_config=train.RunConfig(
            name='trunchier',
            storage_path=os.path.abspath(args.work_dir),
            failure_config=train.FailureConfig(max_failures=args.failures),
        ),
    )
    trainer.fit()


if __name__ == '__main__':
    main()

"""Annotations, images and shards for tests of the data sets."""

import pickle

import cv2
import numpy as np


def ramp(height=96, width=128):
    """BGR image whose channels are linear in x and y: bilinear values are exact."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)


def annotation(seed=0, **changes):
    """A person as in a `.data.pyd`; all keypoints are visible."""
    rng = np.random.default_rng(seed)
    data = dict(
        keypoints_2d=np.hstack([rng.uniform(10, 80, (44, 2)), np.ones((44, 1))]).astype(np.float32),
        keypoints_3d=np.hstack([rng.normal(0, 0.4, (44, 3)), np.ones((44, 1))]).astype(np.float32),
        center=np.array([50.5, 40.25]),
        scale=np.array([0.3, 0.4]),
        body_pose=rng.normal(0, 0.3, 72).astype(np.float32),
        betas=rng.uniform(-2, 2, 10).astype(np.float32),
        has_body_pose=np.array(1.0),
        has_betas=np.array(1.0),
        extra_info={'fitting_loss': np.array({'reprojection_loss': 100.0}, dtype=object)},
    )
    data.update(changes)
    return data


def jpeg(shade=128, height=96, width=128):
    """Bytes of a gray JPEG."""
    return cv2.imencode('.jpg', np.full((height, width, 3), shade, np.uint8))[1].tobytes()


def sample(key, people, image=None, **fields):
    """A webdataset sample; people: list of annotations, or the bytes of a pickle."""
    data = people if isinstance(people, bytes) else pickle.dumps(people)
    return {'__key__': key, 'jpg': jpeg() if image is None else image, 'data.pyd': data, **fields}


def write_shard(path, samples):
    """Write a shard with webdataset."""
    from webdataset import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as writer:
        for each in samples:
            writer.write({name: value for name, value in each.items() if value is not None})
    return path


def write_shards(folder, shards=3, members=5):
    """A folder of shards whose people are numbered by betas[0]: 0, 1/1000, 2/1000 ..."""
    number = 0
    for shard in range(shards):
        samples = []
        for _ in range(members):
            betas = np.full(10, number / 1000, np.float32)
            samples.append(sample(f'set/{number:05}', [annotation(number, betas=betas)]))
            number += 1
        write_shard(folder / f'{shard:06}.tar', samples)
    return folder


def number_of(packed):
    """Index of the person of `write_shards` in a packed sample."""
    return round(float(packed['data_samples'].gt_instances.betas[0, 0]) * 1000)

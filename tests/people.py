"""Small people for tests of the data sets: a picture that can be computed by hand, and shards."""

import pickle

import cv2
import numpy as np


def ramp(height=96, width=128):
    """BGR picture whose channels are linear in x and y, so that bilinear values are exact."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, x + y], axis=-1).astype(np.uint8)


def annotation(seed=0, **changes):
    """One person's dict as in a `.data.pyd`; everything is visible."""
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
    """Bytes of a grey JPEG."""
    return cv2.imencode('.jpg', np.full((height, width, 3), shade, np.uint8))[1].tobytes()


def sample(key, people, image=None, **fields):
    """A webdataset sample; `people` is a list of annotations, or the bytes of a pickle."""
    data = people if isinstance(people, bytes) else pickle.dumps(people)
    return {'__key__': key, 'jpg': jpeg() if image is None else image, 'data.pyd': data, **fields}


def write_shard(path, samples):
    """A shard as webdataset writes it."""
    from webdataset import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path)) as writer:
        for each in samples:
            writer.write({name: value for name, value in each.items() if value is not None})
    return path


def write_shards(folder, shards=3, members=5):
    """A folder of shards whose people are told apart by betas[0]: 0, 1/1000, 2/1000 ..."""
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
    """Which person of `write_shards` a packed sample shows."""
    return round(float(packed['data_samples'].gt_instances.betas[0, 0]) * 1000)

"""Synthetic people with exact annotations, under a permissive license.

    people.SyntheticPeople    images and annotations, from a seed
    coco.write_coco           data set on disk for stock CocoDataset and CocoMetric
    dataset.SyntheticBodies   data set for mesh training, rendered on the fly
    dataset.SyntheticKeypoints  the same for pose training with mmpose's pipelines

Rendering requires numba.
"""

from .dataset import SyntheticBodies, SyntheticKeypoints

__all__ = ['SyntheticBodies', 'SyntheticKeypoints']

"""The embedded default: a permissively licensed body in SMPL layout, poses, and a renderer.

    people.SyntheticPeople    pictures with exact annotations, from a seed
    coco.write_coco           a data set on disk that stock CocoDataset and CocoMetric read
    dataset.SyntheticBodies   a data set for mesh training, drawn on the fly

Everything but the last needs numba when it is imported.
"""

from .dataset import SyntheticBodies

__all__ = ['SyntheticBodies']

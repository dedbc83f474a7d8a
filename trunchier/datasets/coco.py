"""mmpose's CocoDataset that gets over bad records in training and names them in testing."""

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from mmengine.registry import DATASETS

from .annotations import BadCount, BadRecord, describe, judge, log_warning


@DATASETS.register_module(name='CheckedCocoDataset')
def checked_coco_dataset(**kwargs):
    """mmpose's CocoDataset with the same arguments, and `max_bad_share` (0.01).

    Persons with keypoints that are not finite or a box without area are left out, counted and
    named when the file is read. In training a picture that cannot be read is counted and another
    person takes its place; in testing it is an error that names the file.

    Raises:
        FileNotFoundError: no annotation file.
        ValueError: no usable person in it.
        RuntimeError: a larger share than `max_bad_share` of the records is bad.
        OSError: testing, a picture cannot be read.
    """
    return __getattr__('CheckedCocoDataset')(**kwargs)


def __getattr__(name):
    """The class is made when it is first asked for: importing must not need mmpose."""
    if name != 'CheckedCocoDataset':
        raise AttributeError(f'module {__name__} has no attribute {name}')
    from mmpose.datasets import CocoDataset

    class CheckedCocoDataset(CocoDataset):
        __doc__ = checked_coco_dataset.__doc__

        def __init__(self, *args, max_bad_share=0.01, **kwargs):
            self.bad_count = BadCount(Path(kwargs.get('ann_file', 'COCO')).name, max_bad_share)
            super().__init__(*args, **kwargs)

        def load_data_list(self):
            if not Path(self.ann_file).is_file():
                raise FileNotFoundError(
                    f'no annotations {self.ann_file}; "Data" in README.md says what goes where'
                )
            people, bad = usable_people(super().load_data_list(), self.ann_file)
            judge(self.ann_file, len(people), bad, self.bad_count.max_share)
            return people

        def prepare_data(self, idx):
            try:
                sample = super().prepare_data(idx)
            except Exception as error:
                path = self.get_data_info(idx)['img_path']
                if cv2.imread(path) is not None:
                    raise
                if self.test_mode:
                    raise OSError(f'{path} is absent, or no picture that OpenCV reads') from error
                self.bad_count.add_bad('undecodable image', path, 'absent, or OpenCV fails')
                return None  # mmengine takes another person
            self.bad_count.add_good()
            return sample

    CheckedCocoDataset.__qualname__ = name
    globals()[name] = CheckedCocoDataset
    return CheckedCocoDataset


def usable_people(data_list, ann_file):
    """Those of mmpose's data list that can be used, and a Counter of the others by kind.

    Raises:
        ValueError: there is none.
    """
    people, bad = [], Counter()
    for person in data_list:
        try:
            check_person(person)
        except BadRecord as error:
            bad[error.kind] += 1
            if bad.total() <= 5:
                log_warning(f'{ann_file}: person {person.get("id")} is left out: {error}')
        else:
            people.append(person)
    if not people:
        raise ValueError(
            f'{ann_file} holds no usable person ({describe(bad) if bad else "none is annotated"}); '
            'a person wants a bbox, keypoints and num_keypoints above 0'
        )
    return people, bad


def check_person(person):
    """Check an entry of mmpose's data list.

    Raises:
        BadRecord: keypoints that are not finite, or a box without area.
    """
    if not np.isfinite(np.asarray(person['keypoints'], np.float64)).all():
        raise BadRecord('malformed annotation', 'keypoints hold NaN or infinity')
    boxes = np.asarray(person['bbox'], np.float64)  # xyxy
    if not (boxes[:, 2:] > boxes[:, :2]).all():
        raise BadRecord('zero-size box', f'the box is {boxes.tolist()} (xyxy)')

"""CocoDataset of mmpose that skips bad records in training and reports them in testing.

Importing this module requires mmpose: see `checked_coco_dataset` in the package.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mmpose.datasets import AP10KDataset, CocoDataset

from ..files import images
from .annotations import BadCount, BadRecord, describe


class CheckedCocoDataset(CocoDataset):
    """mmpose's CocoDataset with the same arguments, and `max_bad_share` (0.01).

    People with keypoints that are not finite or a box without area are skipped, counted and logged
    when the file is read. In training, an unreadable image is counted and replaced by another
    person; in testing, it is an error (OSError).

    Raises:
        FileNotFoundError, ValueError: no annotation file, or no usable person in it.
        RuntimeError: the share of bad records is above `max_bad_share`.
    """

    def __init__(self, *args: Any, max_bad_share: float = 0.01, **kwargs: Any):
        self.bad_count = BadCount(Path(kwargs.get('ann_file', 'COCO')).name, max_bad_share)
        super().__init__(*args, **kwargs)

    def load_data_list(self) -> list[dict]:
        if not Path(self.ann_file).is_file():
            raise FileNotFoundError(f'no annotations {self.ann_file}; see "Data" in docs/data.md')
        self._read = BadCount(self.ann_file, self.bad_count.max_share, patience=np.inf)
        entries = super().load_data_list()  # parses people one by one
        if self.bbox_file:
            entries = [entry for entry in entries if self._is_sound(entry)]
        if not any('keypoints' in entry for entry in entries):  # bottom-up: some have no people
            raise ValueError(
                f'{self.ann_file} has no usable person (bad: {describe(self._read.bad)}); a person '
                'requires a bbox, keypoints and num_keypoints above 0'
            )
        self._read.check()
        return entries

    def parse_data_info(self, raw_data_info: dict) -> dict | None:
        """One person; None if it is malformed."""
        person = super().parse_data_info(raw_data_info)
        checked = person and self._is_valid_instance(person)
        return person if not checked or self._is_sound(person) else None

    def _is_sound(self, person):
        try:
            check_person(person)
        except BadRecord as error:
            self._read.add_bad(error.kind, f'person {person.get("id")}', error)
            return False
        self._read.add_good()
        return True

    def prepare_data(self, idx: int) -> dict | None:
        """Apply the pipeline; None if the image of a training sample cannot be read."""
        path = self.get_data_info(idx)['img_path']
        try:
            images.check_image(np.fromfile(path, np.uint8, 65536))
            sample = super().prepare_data(idx)
        except Exception as error:
            reason = fault(path)
            if reason is None:
                raise
            if self.test_mode:
                raise OSError(f'cannot read {path}: {reason}') from error
            self.bad_count.add_bad('undecodable image', path, reason)
            return None  # mmengine draws another index
        self.bad_count.add_good()
        return sample


class APT36KDataset(AP10KDataset):
    """APT-36K, videos of 30 animals (Yang et al., 2022), which mmpose has no class for.

    Its keypoints are those of AP-10K, its annotations COCO's. Backslashes in names of images become
    slashes. Arguments: see mmpose's AP10KDataset.
    """

    @classmethod
    def _load_metainfo(cls, metainfo: dict | None = None) -> dict:
        return dict(super()._load_metainfo(metainfo), dataset_name='apt36k')

    def parse_data_info(self, raw_data_info: dict) -> dict | None:
        """One animal."""
        data = super().parse_data_info(raw_data_info)
        return data and dict(data, img_path=data['img_path'].replace('\\', '/'))


def fault(path: str) -> Exception | None:
    """Why an image file cannot be read; None if it can."""
    try:
        images.decode_image(Path(path).read_bytes())
    except (OSError, images.ImageError) as error:
        return error
    return None


def check_person(person: dict) -> None:
    """Check an entry of mmpose's data list.

    Raises:
        BadRecord: keypoints that are not finite, or a box without area.
    """
    if not np.isfinite(np.asarray(person['keypoints'], np.float64)).all():
        raise BadRecord('malformed annotation', 'keypoints hold NaN or infinity')
    boxes = np.asarray(person['bbox'], np.float64)  # xyxy
    if not (boxes[:, 2:] > boxes[:, :2]).all():
        raise BadRecord('zero-size box', f'the box is {boxes.tolist()} (xyxy)')

"""Keypoint evaluation with xtcocotools' arguments and results, by pycocotools' arithmetic.

xtcocotools (https://github.com/jin-s13/xtcocoapi) adds the joints of one part of the body, a score
per part, any number of joints with their sigmas, and areas estimated from boxes. Matching and
averaging are pycocotools' own and equal to xtcocotools' to the last digit.
"""

import contextlib
import io
from collections import defaultdict

import numpy as np
from pycocotools import cocoeval

PARTS = {
    '':          ('keypoints',),
    'body':      ('keypoints',),
    'crowd':     ('keypoints',),
    'foot':      ('foot_kpts',),
    'face':      ('face_kpts',),
    'lefthand':  ('lefthand_kpts',),
    'righthand': ('righthand_kpts',),
    'wholebody': ('keypoints', 'foot_kpts', 'face_kpts', 'lefthand_kpts', 'righthand_kpts'),
}  # fmt: skip
SCORED_AS_A_WHOLE = ('', 'body', 'crowd')  # the others have a score of their own
AREA_OF_BOX = 0.53  # of a person's box, the share that is person; xtcocotools' constant
CROWD_EASY, CROWD_HARD = 0.2, 0.8  # CrowdPose's bounds on an image's crowdIndex


class COCOeval(cocoeval.COCOeval):
    """Average precision and recall by object keypoint similarity.

    Args:
        cocoGt: COCO of annotations.
        cocoDt: COCO of results, from `cocoGt.loadRes`.
        iouType: 'keypoints', or 'keypoints_' and one of `PARTS`.
        sigmas: (K,), of the joints compared; default COCO's 17.
        use_area: False if annotations have no area: it is estimated from the box.

    `stats`, after `summarize()`: AP, AP.5, AP.75, AP(medium), AP(large), then the same of AR; for
    'keypoints_crowd' AP, AP.5, AP.75, AR, AR.5, AR.75, AP(easy), AP(medium), AP(hard).
    """

    def __init__(self, cocoGt=None, cocoDt=None, iouType='keypoints', sigmas=None, use_area=True):
        kind, _, part = iouType.partition('_')
        if kind != 'keypoints' or part not in PARTS:
            raise ValueError(
                f"iouType {iouType!r} is not supported; expected 'keypoints' or 'keypoints_' and "
                f'one of {", ".join(filter(None, PARTS))}. For boxes and masks use pycocotools'
            )
        super().__init__(cocoGt, cocoDt, 'keypoints')
        if sigmas is not None:
            self.params.kpt_oks_sigmas = sigmas
        self.part = part
        self.use_area = use_area

    def _prepare(self):
        which = dict(imgIds=self.params.imgIds)
        if self.params.useCats:
            which['catIds'] = self.params.catIds
        self._gts = self._by_image_and_category(self.cocoGt, which, self._annotation)
        self._dts = self._by_image_and_category(self.cocoDt, which, self._result)
        self.evalImgs = defaultdict(list)
        self.eval = {}

    def _by_image_and_category(self, coco, which, convert):
        grouped = defaultdict(list)
        # Numbered from 1, since pycocotools takes id 0 for "not matched".
        for number, entry in enumerate(coco.loadAnns(coco.getAnnIds(**which)), 1):
            keypoints = [value for key in PARTS[self.part] for value in entry[key]]
            visible = sum(value > 0 for value in keypoints[2::3])
            converted = convert(entry, visible)
            if converted is not None:
                converted.update(id=number, keypoints=keypoints)
                grouped[entry['image_id'], entry['category_id']].append(converted)
        return grouped

    def _annotation(self, entry, visible):
        if self.part == 'crowd':
            visible = entry['num_keypoints']
        width, height = entry['bbox'][2:]
        area = entry['area'] if self.use_area else width * height * AREA_OF_BOX
        return dict(entry, area=area, ignore=bool(entry['iscrowd'] or visible == 0))

    def _result(self, entry, visible):
        if visible == 0:
            return None
        own = 'score' if self.part in SCORED_AS_A_WHOLE else f'{self.part}_score'
        return dict(entry, score=entry.get(own, entry['score']))

    def summarize(self):
        super().summarize()
        if self.part == 'crowd':
            average = self.stats[[0, 1, 2, 5, 6, 7]]
            self.stats = np.array([*average, *self._by_crowding()])

    def _by_crowding(self):
        """AP of the images with little, some and much crowding; evaluates each anew."""
        crowding = {i['id']: i['crowdIndex'] for i in self.cocoGt.dataset['images']}
        for low, high in ((-np.inf, CROWD_EASY), (CROWD_EASY, CROWD_HARD), (CROWD_HARD, np.inf)):
            self.params.imgIds = [i for i, index in crowding.items() if low <= index < high]
            with contextlib.redirect_stdout(io.StringIO()):
                self.evaluate()
                self.accumulate()
            yield round(np.mean(self.eval['precision'][:, :, :, 0, :]), 4)

"""pycocotools' COCO with what mmpose needs of xtcocotools'."""

import json
import os

from pycocotools import coco


class COCO(coco.COCO):
    """An annotation file and its index.

    Differs from pycocotools' in two points, as xtcocotools' does: an annotation that does not say
    `iscrowd` is no crowd, and results may be none at all.
    """

    def createIndex(self):
        for annotation in self.dataset.get('annotations', ()):
            annotation.setdefault('iscrowd', False)
        super().createIndex()

    def loadRes(self, resFile):
        """A COCO of results, a JSON file or a list of dicts, over the images of this one."""
        results = resFile
        if isinstance(resFile, (str, os.PathLike)):
            with open(resFile) as file:
                results = json.load(file)
        if len(results) > 0:
            return super().loadRes(results)
        empty = COCO()
        empty.dataset = dict(self.dataset, annotations=[])
        empty.createIndex()
        return empty

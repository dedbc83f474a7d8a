"""What mmpose uses of xtcocotools, over pycocotools: `coco`, `cocoeval` and `mask`."""

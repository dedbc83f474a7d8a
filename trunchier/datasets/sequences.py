"""Windows of MPI-INF-3DHP's videos, for lifters.

Importing this module requires mmpose: see `mpi_inf_3dhp_sequences` in the package.
"""

import re
from pathlib import Path

from mmpose.datasets import Human36mDataset

from ..files import read_npz

# Of the test videos TS1 to TS6; the training videos are square.
SQUARE, WIDE = dict(w=2048, h=2048), dict(w=1920, h=1080)


class MPIInf3dhpSequences(Human36mDataset):
    """mmpose's Human36mDataset for the .npz files that mmpose's converter writes of MPI-INF-3DHP
    (`tools/dataset_converters/preprocess_mpi_inf_3dhp.py`): the same arguments, windows and fields.

    Needs no file of cameras: lifters are told the size of the image, which the name of a frame
    says. Files with pickled objects are refused.

    Raises:
        ValueError: a damaged file, one of other arrays, or other names of frames than
            S1_Seq2_Cam3_000004.jpg and TS1_000004.jpg.
    """

    METAINFO = dict(from_file='configs/_base_/datasets/mpi_inf_3dhp.py')

    def _load_ann_file(self, ann_file):
        self.ann_data = read_npz(ann_file)
        if missing := {'imgname', 'S', 'part'} - set(self.ann_data):
            raise ValueError(
                f'{ann_file} has no {", ".join(sorted(missing))} but {sorted(self.ann_data)}; '
                "write it with mmpose's preprocess_mpi_inf_3dhp.py"
            )

    @staticmethod
    def _parse_h36m_imgname(imgname: str) -> tuple[str, str, str]:
        """Subject, sequence and camera of the name of a frame."""
        found = re.fullmatch(r'(S\d+)_(Seq\d+)_(Cam\d+)_\d+|(TS\d+)_\d+', Path(imgname).stem)
        if found is None:
            raise ValueError(
                f'{imgname} is no frame of MPI-INF-3DHP; names are S1_Seq2_Cam3_000004.jpg or '
                'TS1_000004.jpg'
            )
        return (found[4], '', '') if found[4] else (found[1], found[2], found[3])

    def _load_annotations(self):
        self.camera_param_file = True  # the base class then asks for cameras
        return super()._load_annotations()

    def get_camera_param(self, imgname: str) -> dict:
        """Width and height in pixels of the frame's video."""
        return dict(WIDE if self._parse_h36m_imgname(imgname)[0] in ('TS5', 'TS6') else SQUARE)

"""Joint orders, flip permutations, index maps, and the fields of a person with shape and unit.

Sources: shubham-goel/4D-Humans (smpl_wrapper.py, datasets/utils.py, datasets_eval.yaml), smplx
(joint_names.py), nkolot/SPIN (constants.py), COCO.

Units of the whole project: meters in 3D, pixels in 2D (x before y), radians for axis-angle.
Cameras look along +z with x to the right and y down; SMPL-layout bodies stand along +y and face
+z, so a predicted `global_orient` contains the half turn between the two.
"""

from typing import NamedTuple

# The 44 joints of HMR2.0: OpenPose BODY_25, then the 19 of the extra regressor (SMPL_to_J19).
# Comments give the index of the first joint of each row.
OPENPOSE_25 = (
    'nose', 'neck', 'right_shoulder', 'right_elbow', 'right_wrist',                   #  0
    'left_shoulder', 'left_elbow', 'left_wrist', 'mid_hip', 'right_hip',              #  5
    'right_knee', 'right_ankle', 'left_hip', 'left_knee', 'left_ankle',               # 10
    'right_eye', 'left_eye', 'right_ear', 'left_ear', 'left_big_toe',                 # 15
    'left_small_toe', 'left_heel', 'right_big_toe', 'right_small_toe', 'right_heel',  # 20
)  # fmt: skip

EXTRA_19 = (
    'extra_right_ankle', 'extra_right_knee', 'extra_right_hip', 'extra_left_hip',           # 25
    'extra_left_knee', 'extra_left_ankle', 'extra_right_wrist', 'extra_right_elbow',        # 29
    'extra_right_shoulder', 'extra_left_shoulder', 'extra_left_elbow', 'extra_left_wrist',  # 33
    'extra_neck_lsp', 'extra_head_top_lsp', 'extra_pelvis_mpii', 'extra_thorax_mpii',       # 37
    'extra_spine_h36m', 'extra_jaw_h36m', 'extra_head_h36m',                                # 41
)  # fmt: skip

JOINTS_44 = OPENPOSE_25 + EXTRA_19
PELVIS = 39

# SMPL's skeleton, and the 45 joints of `smplx.SMPL`: the skeleton, then 21 picked vertices.
SMPL_24 = (
    'pelvis', 'left_hip', 'right_hip', 'spine1', 'left_knee', 'right_knee',               #  0
    'spine2', 'left_ankle', 'right_ankle', 'spine3', 'left_foot', 'right_foot',           #  6
    'neck', 'left_collar', 'right_collar', 'head', 'left_shoulder', 'right_shoulder',     # 12
    'left_elbow', 'right_elbow', 'left_wrist', 'right_wrist', 'left_hand', 'right_hand',  # 18
)  # fmt: skip

SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

SMPLX_45 = SMPL_24 + (
    'nose', 'right_eye', 'left_eye', 'right_ear',                                # 24
    'left_ear', 'left_big_toe', 'left_small_toe', 'left_heel',                   # 28
    'right_big_toe', 'right_small_toe', 'right_heel', 'left_thumb_tip',          # 32
    'left_index_tip', 'left_middle_tip', 'left_ring_tip', 'left_pinky_tip',      # 36
    'right_thumb_tip', 'right_index_tip', 'right_middle_tip', 'right_ring_tip',  # 40
    'right_pinky_tip',                                                           # 44
)  # fmt: skip


class Body(NamedTuple):
    """Layout of a body model."""

    joints: tuple[str, ...]  # of the skeleton
    parents: tuple[int, ...]  # joint indices; -1 for the root
    num_vertices: int
    num_faces: int
    num_betas: int


BODIES = {
    'smpl': Body(SMPL_24, SMPL_PARENTS, num_vertices=6890, num_faces=13776, num_betas=10),
}


# --- A person -------------------------------------------------------------------------------------
class Field(NamedTuple):
    """Shape of one person's array, and its unit or frame."""

    shape: tuple[int, ...]
    unit: str


def person(body: str = 'smpl') -> dict[str, Field]:
    """Every field of a person, annotated or predicted: one name, one shape, one unit.

    Annotations, training targets, predictions, saved files and the metadata of exported models look
    their fields up here. Names in _2d and _3d have the confidence in the last column.

    Args:
        body: key of BODIES.
    """
    layout, points = BODIES[body], len(JOINTS_44)
    joints, crop = len(layout.joints), "fractions of the square crop's side, from its center"
    return {
        # Body and camera as the model predicts them
        'global_orient':      Field((1, 3, 3), 'rotation matrix'),
        'body_pose':          Field((joints - 1, 3, 3), 'rotation matrices relative to the parent'),
        'betas':              Field((layout.num_betas,), ''),
        'camera':             Field((3,), 'as (s, tx, ty) of the square crop'),
        'camera_translation': Field((3,), 'meters, camera of the square crop'),
        'vertices':           Field((layout.num_vertices, 3), 'meters, before camera_translation'),
        'joints':             Field((points, 3), 'meters, before camera_translation'),
        'crop_keypoints':     Field((points, 2), crop),
        # The same in the whole image
        'keypoints':          Field((points, 2), 'pixels of the image'),
        'keypoint_scores':    Field((points,), '0 to 1'),
        'translation':        Field((3,), 'meters, camera of the image'),
        'coco_keypoints':     Field((17, 3), "pixels and score, what a body is lifted from"),
        # Annotations; pose and keypoints_3d turn with the crop
        'keypoints_2d':       Field((points, 3), 'pixels of the image'),
        'crop_keypoints_2d':  Field((points, 3), crop),
        'keypoints_3d':       Field((points, 4), 'meters, camera frame'),
        'center':             Field((2,), 'pixels of the image, middle of the box'),
        'scale':              Field((2,), 'pixels / 200, width and height of the box'),
        'pose':               Field((3 * joints,), 'axis-angle: global_orient, then body_pose'),
        'has_pose':           Field((), '0 or 1'),
        'has_betas':          Field((), '0 or 1'),
    }  # fmt: skip


# Fields from the head, from posing its body, of an annotation, and that MeshLoss compares with.
HEAD_FIELDS = ('global_orient', 'body_pose', 'betas', 'camera')
POSED_FIELDS = ('camera_translation', 'vertices', 'joints', 'crop_keypoints')
ANNOTATED = (
    'keypoints_2d', 'keypoints_3d', 'center', 'scale', 'pose', 'betas', 'has_pose', 'has_betas',
)  # fmt: skip
ON_DISK = {'pose': 'body_pose', 'has_pose': 'has_body_pose'}  # other names in 4D-Humans' files
TARGETS = ('crop_keypoints_2d', 'keypoints_3d', 'pose', 'betas', 'has_pose', 'has_betas')

# --- Joint orders of data sets --------------------------------------------------------------------
COCO_17 = (
    'nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder',               #  0
    'right_shoulder', 'left_elbow', 'right_elbow', 'left_wrist', 'right_wrist', 'left_hip',  #  6
    'right_hip', 'left_knee', 'right_knee', 'left_ankle', 'right_ankle',                     # 12
)  # fmt: skip

COCO_17_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip

# Index maps: X_TO_Y[i] is the index in X of joint i of Y (Y = X[X_TO_Y]), and
# X_IN_44[i] is the index of joint i of X among the 44 (joints_44[X_IN_44] = joints in X's order).
_SMPLX_NAME = {'mid_hip': 'pelvis'}
SMPLX_TO_OPENPOSE = tuple(SMPLX_45.index(_SMPLX_NAME.get(name, name)) for name in OPENPOSE_25)

# Human3.6M as VideoPose3D and mmpose order it: pelvis, right leg, left leg, spine, neck, jaw, head,
# left arm, right arm.
H36M_17_IN_44 = (39, 27, 26, 25, 28, 29, 30, 41, 37, 42, 43, 34, 35, 36, 33, 32, 31)
H36M_17_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
# MPI-INF-3DHP as mmpose orders it: head top, neck, arms, legs, pelvis, spine, head.
MPI_INF_17_IN_44 = (38, 37, 33, 32, 31, 34, 35, 36, 27, 26, 25, 28, 29, 30, 39, 41, 43)

# The 24 joints of the SPIN / HMR npz files (`part`, `S`): the 19 extra, then the face.
SPIN_24_IN_44 = tuple(range(25, 44)) + (0, 16, 15, 18, 17)


# --- Mirrors: flipped[i] = original[permutation[i]], after mirroring x. ---------------------------
def _mirror(names):
    """Permutation that swaps every left joint of `names` with its right one."""

    def partner(name):
        if 'left' in name:
            return name.replace('left', 'right')
        return name.replace('right', 'left')

    return tuple(names.index(partner(name)) for name in names)


COCO_17_SYNONYMS = {'left_ankle': 'left_foot', 'right_ankle': 'right_foot'}  # in Human3.6M
COCO_17_FLIP = _mirror(COCO_17)
H36M_17_FLIP = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)
COCO_17_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
    0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
SMPL_24_FLIP = _mirror(SMPL_24)
JOINTS_44_FLIP = _mirror(JOINTS_44)
# Body pose: permute the 23 joints, then negate y and z of the axis-angle. Global_orient: negate.
BODY_POSE_23_FLIP = tuple(joint - 1 for joint in SMPL_24_FLIP[1:])
AXIS_ANGLE_FLIP_SIGNS = (1, -1, -1)

JOINTS_44_FLIP_PAIRS = tuple((a, b) for a, b in enumerate(JOINTS_44_FLIP) if a < b)

# Evaluation: 14 joints of 44 for MPJPE and PA-MPJPE, both sets centered on the pelvis.
EVAL_14_IN_44 = tuple(range(25, 38)) + (43,)
# 4D-Humans ignores these 3D joints of its evaluation files (the OpenPose limbs).
EVAL_IGNORED_3D = tuple(range(1, 15))

# --- Camera and image constants of HMR2.0 ---------------------------------------------------------
FOCAL_LENGTH = 5000.0  # pixels of the 256-pixel crop
IMAGE_SIZE = 256  # side of the square crop, pixels

"""A dressed, posed person as a mesh in the camera's frame, with its exact joints.

The body is that of `models.body.BodyModel` (a test holds the two against each other); it is posed
here without torch, one person in half a millisecond, so that a person depends on nothing but its
own random numbers.
"""

import functools
from dataclasses import dataclass

import numpy as np

from ..conventions import COCO_17, SMPL_24, SMPLX_TO_OPENPOSE
from ..models.mesh.body import EMBEDDED_BODY, read_body
from . import kernels
from .poses import PARENTS, _forward
from .wardrobe import FOLDS, Grid

# The face and foot joints of `smplx.SMPL` are vertices of SMPL's layout: SMPLX_45[24:35].
SMPLX_VERTICES = (332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787)


@dataclass
class Rows:
    """A sparse regressor in compressed rows."""

    starts: np.ndarray
    indices: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, dense):
        row, column = np.nonzero(dense)
        starts = np.searchsorted(row, np.arange(len(dense) + 1))
        return cls(starts, column.astype(np.int32), dense[row, column].astype(np.float32))

    def __call__(self, vertices):
        out = np.empty((len(self.starts) - 1, 3), np.float32)
        kernels.weighted_points(vertices, self.starts, self.indices, self.weights, out)
        return out


@dataclass
class Body:
    """The embedded body, ready for the kernels (float32)."""

    template: np.ndarray  # (V, 3)
    shapedirs: np.ndarray  # (V, 3, 10)
    normals: np.ndarray  # (V, 3) of the template
    faces: np.ndarray  # (F, 3) int32
    axis: np.ndarray  # (F,) the axis that each face looks along
    joints: np.ndarray  # (V, K) int32
    weights: np.ndarray  # (V, K)
    skeleton: Rows
    coco: Rows
    extra: Rows
    template_skeleton: np.ndarray  # (24, 3)
    folds: np.ndarray  # (FOLDS, V), waves over the body of mean 0; all together have deviation 1
    rings: list  # of the skirt: (y, vertices near it)


@functools.lru_cache(maxsize=1)
def body():
    arrays = read_body(EMBEDDED_BODY)
    template = np.ascontiguousarray(arrays['v_template'], dtype=np.float32)
    faces = np.ascontiguousarray(arrays['f'], dtype=np.int32)
    normals = np.empty_like(template)
    kernels.vertex_normals(template, faces, normals)
    face_normals = np.abs(normals[faces].sum(1))
    used = int((arrays['weights'] > 0).sum(1).max())
    joints = np.argsort(-arrays['weights'], axis=1, kind='stable')[:, :used].astype(np.int32)
    names = arrays['coco17_names'].tolist()
    skeleton = Rows.of(arrays['J_regressor'])
    trunk = np.abs(template[:, 0]) < 0.3
    return Body(
        template=template,
        shapedirs=np.ascontiguousarray(arrays['shapedirs'], dtype=np.float32),
        normals=normals,
        faces=faces,
        axis=face_normals.argmax(1).astype(np.int8),
        joints=joints,
        weights=np.take_along_axis(arrays['weights'], joints, axis=1).astype(np.float32),
        skeleton=skeleton,
        coco=Rows.of(arrays['coco17_regressor'][[names.index(name) for name in COCO_17]]),
        extra=Rows.of(arrays['J_regressor_extra']),
        template_skeleton=skeleton(template),
        folds=_folds(template),
        rings=[
            (y, np.nonzero(trunk & (np.abs(template[:, 1] - y) < 0.035))[0])
            for y in np.arange(0.09, -0.95, -0.09)
        ],
    )


def _folds(template):
    rng = np.random.default_rng(1960)
    waves = rng.standard_normal((FOLDS, 3)) * (14, 18, 14)  # radians a metre
    phases = rng.uniform(0, 2 * np.pi, (FOLDS, 1))
    return (np.sin(waves @ template.T + phases) * np.sqrt(2 / FOLDS)).astype(np.float32)


@dataclass
class Figure:
    """One person. Positions in metres, turned as the camera sees them, the rest pelvis at 0."""

    rotations: np.ndarray  # (24, 3, 3); the root's is in the camera's frame
    betas: np.ndarray  # (10,)
    bare: np.ndarray  # (6890, 3), the body's own vertices
    vertices: np.ndarray  # (N, 3), dressed, with worn meshes after the body's
    normals: np.ndarray  # (N, 3)
    rest: np.ndarray  # (N, 3), where on the mean body
    body_faces: np.ndarray  # (F, 3), seen from the front only
    grid_faces: np.ndarray  # (G, 3), seen from both sides
    grid_materials: np.ndarray  # (G,)
    skeleton: np.ndarray  # (24, 3)
    joints: np.ndarray  # (44, 3), see conventions.JOINTS_44
    coco: np.ndarray  # (17, 3), see conventions.COCO_17
    outfit: object
    translation: np.ndarray  # (3,), metres, from the body model's place to this one

    def move(self, translation):
        self.translation = self.translation + translation
        for array in (self.bare, self.vertices, self.skeleton, self.joints, self.coco):
            array += translation.astype(np.float32)


def build_figure(rotations, betas, outfit):
    """Shape, dress and pose the body.

    Args:
        rotations: (24, 3, 3), the root's into the camera's frame.
        betas: (10,).
        outfit: wardrobe.Outfit.
    """
    mean = body()
    betas = betas.astype(np.float32)
    shaped = np.empty_like(mean.template)
    kernels.shape_body(mean.template, mean.shapedirs, betas, shaped)
    rest_skeleton = mean.skeleton(shaped)

    world, places = _forward(
        np.ascontiguousarray(rotations, np.float64), rest_skeleton.astype(np.float64), PARENTS
    )
    transforms = np.empty((24, 3, 4), np.float32)
    transforms[:, :, :3] = world
    transforms[:, :, 3] = places - np.einsum('jab,jb->ja', world, rest_skeleton)

    bare = np.empty_like(shaped)
    kernels.skin(shaped, mean.joints, mean.weights, transforms, bare)
    skeleton = places.astype(np.float32)
    picked = np.concatenate((skeleton, bare[list(SMPLX_VERTICES)]))
    openpose = picked[list(SMPLX_TO_OPENPOSE)]

    dressed = np.empty_like(shaped)
    kernels.inflate(
        shaped, mean.template, mean.normals, outfit.dress, outfit.thickness, outfit.loose,
        np.einsum('k,kv->v', outfit.folds, mean.folds), dressed,
    )  # fmt: skip
    grids = list(outfit.grids)
    if outfit.skirt is not None:
        grids.append(skirt(shaped, *outfit.skirt))
    worn = [_grid_mesh(grid, rest_skeleton - mean.template_skeleton) for grid in grids]

    parts = [(dressed, mean.joints, mean.weights)] + [mesh[:3] for mesh in worn]
    posed = [np.empty_like(vertices) for vertices, _, _ in parts]
    for (vertices, joints, weights), out in zip(parts, posed, strict=True):
        kernels.skin(vertices, joints, weights, transforms, out)
    offset = np.cumsum([0] + [len(out) for out in posed])
    grid_faces = [mesh[3] + start for mesh, start in zip(worn, offset[1:], strict=False)]
    grid_faces = np.concatenate([np.empty((0, 3), np.int32), *grid_faces])
    vertices = np.concatenate(posed)
    normals = np.empty_like(vertices)
    kernels.vertex_normals(vertices, np.concatenate((mean.faces, grid_faces)), normals)
    return Figure(
        rotations=rotations,
        betas=betas,
        bare=bare,
        vertices=vertices,
        normals=normals,
        rest=np.concatenate([mean.template] + [mesh[0] for mesh in worn]),
        body_faces=mean.faces,
        grid_faces=grid_faces,
        grid_materials=np.concatenate(
            [np.empty(0, np.int32)]
            + [np.full(len(mesh[3]), grid.material) for mesh, grid in zip(worn, grids, strict=True)]
        ).astype(np.int32),
        skeleton=skeleton,
        joints=np.concatenate((openpose, mean.extra(bare))),
        coco=mean.coco(bare),
        outfit=outfit,
        translation=np.zeros(3),
    )


def _grid_mesh(grid, shift):
    """A Grid as (vertices, joints, weights, faces), moved along with the joints' `shift`."""
    rows, columns = grid.points.shape[:2]
    joints = grid.joints.reshape(rows * columns, -1).astype(np.int32)
    weights = grid.weights.reshape(rows * columns, -1).astype(np.float32)
    points = grid.points.reshape(-1, 3) + (weights[..., None] * shift[joints]).sum(1)
    return points.astype(np.float32), joints, weights, _grid_faces(rows, columns, grid.closed)


@functools.lru_cache(maxsize=64)
def _grid_faces(rows, columns, closed):
    index = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    right = np.roll(index, -1, axis=1)
    if not closed:
        index, right = index[:, :-1], right[:, :-1]
    a, b, c, d = index[:-1], right[:-1], index[1:], right[1:]
    return np.concatenate(
        (np.stack((a, b, c), axis=-1).reshape(-1, 3), np.stack((b, d, c), axis=-1).reshape(-1, 3))
    )


def skirt(shaped, hem, flare, slack, columns=24):
    """A tube around hips and legs down to y = `hem`, wider by `flare` towards it.

    It hangs from pelvis and thighs, the left half from the left one, blended across the middle.
    """
    rings = [(y, near) for y, near in body().rings if y > hem - 0.05]
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    points = np.empty((len(rings), columns, 3))
    weights = np.empty((len(rings), columns, 5))
    widest = 0.0
    for k, (y, near) in enumerate(rings):
        ring = shaped[near]
        low, high = ring[:, 2].min(), ring[:, 2].max()
        room = slack * min(k, 2) / 2 + 0.006
        x = max(np.abs(ring[:, 0]).max() + room, widest * 0.97)  # no narrower than the hips
        widest = max(x, widest)
        fall = max(0.0, 0.0 - y)
        x, z = x + flare * 0.3 * fall, (high - low) / 2 + room + flare * 0.4 * fall + 0.12 * fall
        points[k, :, 0] = x * np.sin(angle)
        points[k, :, 1] = ring[:, 1].mean()
        points[k, :, 2] = (high + low) / 2 + z * np.cos(angle)
        left = 0.5 + 0.5 * np.sin(angle) * (1 - 0.5 * (np.sin(angle) ** 2 < 0.1))
        legs = np.clip((0.06 - y) / 0.22, 0, 0.96)
        shin = np.clip((-0.48 - y) / 0.2, 0, 1) * 0.8
        weights[k, :, 0] = 1 - legs
        weights[k, :, 1], weights[k, :, 2] = (
            legs * (1 - shin) * left,
            legs * (1 - shin) * (1 - left),
        )
        weights[k, :, 3], weights[k, :, 4] = legs * shin * left, legs * shin * (1 - left)
    joints = np.broadcast_to(
        [
            SMPL_24.index(name)
            for name in ('pelvis', 'left_hip', 'right_hip', 'left_knee', 'right_knee')
        ],
        weights.shape,
    )
    return Grid(points, joints, weights, kernels.SKIRT)

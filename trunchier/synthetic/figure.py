"""A dressed, posed person: a mesh in the camera frame, with exact joints.

Results equal those of `models.mesh.body.BodyModel` (tested), but are computed without torch, in
half a millisecond per person, and do not depend on other people of a batch.
"""

import functools
from dataclasses import dataclass

import numpy as np

from ..conventions import COCO_17, SMPL_24, SMPLX_TO_OPENPOSE
from ..files.compiled import compiled
from ..files.shipped import asset
from ..render.rasterizer import vertex_normals
from .garments import MATERIALS, inflate
from .poses import forward_kinematics
from .wardrobe import FOLDS, Grid, Outfit

# Vertices of SMPL's layout that `smplx.SMPL` uses as joints of face and feet: SMPLX_45[24:35].
SMPLX_VERTICES = (332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787)


def regressor(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, V), from vertices to joints, in compressed rows: starts, columns and values."""
    row, column = np.nonzero(dense)
    starts = np.searchsorted(row, np.arange(len(dense) + 1))
    return starts, column.astype(np.int32), dense[row, column].astype(np.float32)


@dataclass
class Body:
    """The embedded body as float32 arrays."""

    template: np.ndarray  # (V, 3)
    shapedirs: np.ndarray  # (V, 3, 10)
    normals: np.ndarray  # (V, 3) of the template
    faces: np.ndarray  # (F, 3) int32
    axis: np.ndarray  # (F,) the axis nearest to each face's normal
    joints: np.ndarray  # (V, K) int32
    weights: np.ndarray  # (V, K)
    skeleton: tuple  # see `regressor`, as coco and extra
    coco: tuple
    extra: tuple
    template_skeleton: np.ndarray  # (24, 3)
    folds: np.ndarray  # (FOLDS, V), waves over the body of mean 0; their sum has deviation 1
    rings: list  # of a skirt: (y, indices of vertices near it)


@functools.lru_cache(maxsize=1)
def body() -> Body:
    """The embedded body (cached)."""
    with np.load(asset('body.npz')) as file:
        arrays = dict(file)
    template = np.ascontiguousarray(arrays['v_template'], dtype=np.float32)
    faces = np.ascontiguousarray(arrays['f'], dtype=np.int32)
    normals = np.empty_like(template)
    vertex_normals(template, faces, normals)
    used = int((arrays['weights'] > 0).sum(1).max())
    joints = np.argsort(-arrays['weights'], axis=1, kind='stable')[:, :used].astype(np.int32)
    names = arrays['coco17_names'].tolist()
    skeleton = regressor(arrays['J_regressor'])
    trunk = np.abs(template[:, 0]) < 0.3
    return Body(
        template=template, normals=normals, faces=faces, joints=joints, skeleton=skeleton,
        shapedirs=np.ascontiguousarray(arrays['shapedirs'], dtype=np.float32),
        axis=np.abs(normals[faces].sum(1)).argmax(1).astype(np.int8),
        weights=np.take_along_axis(arrays['weights'], joints, axis=1).astype(np.float32),
        coco=regressor(arrays['coco17_regressor'][[names.index(name) for name in COCO_17]]),
        extra=regressor(arrays['J_regressor_extra']),
        template_skeleton=regress(skeleton, template),
        folds=_folds(template),
        rings=[
            (y, np.nonzero(trunk & (np.abs(template[:, 1] - y) < 0.035))[0])
            for y in np.arange(0.09, -0.95, -0.09)
        ],
    )  # fmt: skip


def _folds(template):
    rng = np.random.default_rng(1960)
    waves = rng.standard_normal((FOLDS, 3)) * (14, 18, 14)  # radians per meter
    phases = rng.uniform(0, 2 * np.pi, (FOLDS, 1))
    return (np.sin(waves @ template.T + phases) * np.sqrt(2 / FOLDS)).astype(np.float32)


@dataclass
class Figure:
    """One person: meters, camera frame; the pelvis of the mean body starts at 0."""

    rotations: np.ndarray  # (24, 3, 3); the root's is into the camera frame
    betas: np.ndarray  # (10,)
    bare: np.ndarray  # (6890, 3), vertices of the body without clothes
    vertices: np.ndarray  # (N, 3), dressed; the body's come first, then those of worn meshes
    normals: np.ndarray  # (N, 3)
    rest: np.ndarray  # (N, 3), rest coordinates, see garments.py
    grid_faces: np.ndarray  # (G, 3), two-sided
    grid_materials: np.ndarray  # (G,)
    skeleton: np.ndarray  # (24, 3)
    joints: np.ndarray  # (44, 3), see conventions.JOINTS_44
    coco: np.ndarray  # (17, 3), see conventions.COCO_17
    outfit: Outfit
    translation: np.ndarray  # (3,), meters, sum of all calls of `move`

    def move(self, translation: np.ndarray) -> None:
        """Translate by (3,) meters, in place."""
        self.translation = self.translation + translation
        for array in (self.bare, self.vertices, self.skeleton, self.joints, self.coco):
            array += translation.astype(np.float32)


def build_figure(rotations: np.ndarray, betas: np.ndarray, outfit: Outfit) -> Figure:
    """Shape, dress and pose the body.

    Args:
        rotations: (24, 3, 3), the root's into the camera frame.
        betas: (10,).
    """
    mean = body()
    betas = betas.astype(np.float32)
    shaped = np.empty_like(mean.template)
    _shape(mean.template, mean.shapedirs, betas, shaped)
    rest_skeleton = regress(mean.skeleton, shaped)

    world, positions = forward_kinematics(rotations, rest_skeleton.astype(np.float64))
    moved = positions - np.einsum('jab,jb->ja', world, rest_skeleton)
    transforms = np.concatenate((world, moved[..., None]), axis=-1, dtype=np.float32)  # (24, 3, 4)

    bare = np.empty_like(shaped)
    _skin(shaped, mean.joints, mean.weights, transforms, bare)
    skeleton = positions.astype(np.float32)
    smplx_joints = np.concatenate((skeleton, bare[list(SMPLX_VERTICES)]))

    dressed = np.empty_like(shaped)
    inflate(
        shaped, mean.template, mean.normals, outfit.dress, outfit.thickness, outfit.loose,
        np.einsum('k,kv->v', outfit.folds, mean.folds), dressed,
    )  # fmt: skip
    grids = list(outfit.grids)
    if outfit.skirt is not None:
        grids.append(_skirt(shaped, *outfit.skirt))
    worn = [_grid_mesh(grid, rest_skeleton - mean.template_skeleton) for grid in grids]

    parts = [(dressed, mean.joints, mean.weights), *(mesh[:3] for mesh in worn)]
    posed = [np.empty_like(part[0]) for part in parts]
    for part, out in zip(parts, posed, strict=True):
        _skin(*part, transforms, out)
    offset = np.cumsum([0] + [len(out) for out in posed])
    grid_faces = [mesh[3] + start for mesh, start in zip(worn, offset[1:], strict=False)]
    grid_faces = np.concatenate([np.empty((0, 3), np.int32), *grid_faces])
    vertices = np.concatenate(posed)
    normals = np.empty_like(vertices)
    vertex_normals(vertices, np.concatenate((mean.faces, grid_faces)), normals)
    return Figure(
        rotations, betas, bare, vertices, normals,
        rest=np.concatenate([mean.template] + [mesh[0] for mesh in worn]),
        grid_faces=grid_faces, skeleton=skeleton,
        grid_materials=np.repeat(
            np.array([grid.material for grid in grids], np.int32), [len(mesh[3]) for mesh in worn]
        ),
        joints=np.concatenate((smplx_joints[list(SMPLX_TO_OPENPOSE)], regress(mean.extra, bare))),
        coco=regress(mean.coco, bare), outfit=outfit, translation=np.zeros(3),
    )  # fmt: skip


def _grid_mesh(grid, shift):
    """A Grid as (vertices, joints, weights, faces), moved by the `shift` (24, 3) of its joints."""
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
    return np.concatenate([np.stack(f, axis=-1).reshape(-1, 3) for f in ((a, b, c), (b, d, c))])


def _skirt(shaped, hem, flare, slack, columns=24):
    """A tube around hips and legs down to y = `hem`, which widens by `flare`.

    It follows pelvis, thighs and shins; the weights of left and right blend across the middle.
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
        for column, share in ((1, legs * (1 - shin)), (3, legs * shin)):
            weights[k, :, column], weights[k, :, column + 1] = share * left, share * (1 - left)
    names = ('pelvis', 'left_hip', 'right_hip', 'left_knee', 'right_knee')
    joints = np.broadcast_to([SMPL_24.index(name) for name in names], weights.shape)
    return Grid(points, joints, weights, MATERIALS.index('skirt'))


# --- Kernels --------------------------------------------------------------------------------------
@compiled(fastmath=True)
def _shape(template, shapedirs, betas, out):
    """out (V, 3) = template + shapedirs (V, 3, 10) @ betas."""
    for v in range(template.shape[0]):
        for c in range(3):
            value = template[v, c]
            for k in range(betas.shape[0]):
                value += shapedirs[v, c, k] * betas[k]
            out[v, c] = value


@compiled(fastmath=True)
def _skin(rest, joints, weights, transforms, out):
    """Linear blend skinning of (V, 3) by joints and weights (V, K), transforms (24, 3, 4)."""
    for v in range(rest.shape[0]):
        x, y, z = rest[v, 0], rest[v, 1], rest[v, 2]
        ox, oy, oz = np.float32(0), np.float32(0), np.float32(0)
        for k in range(weights.shape[1]):
            w = weights[v, k]
            if w == 0.0:
                continue
            t = transforms[joints[v, k]]
            ox += w * (t[0, 0] * x + t[0, 1] * y + t[0, 2] * z + t[0, 3])
            oy += w * (t[1, 0] * x + t[1, 1] * y + t[1, 2] * z + t[1, 3])
            oz += w * (t[2, 0] * x + t[2, 1] * y + t[2, 2] * z + t[2, 3])
        out[v, 0], out[v, 1], out[v, 2] = ox, oy, oz


@compiled(fastmath=True)
def regress(regressor: tuple, vertices: np.ndarray) -> np.ndarray:
    """(V, 3) float32 -> (K, 3), summed in float64."""
    starts, columns, values = regressor
    out = np.empty((len(starts) - 1, 3), np.float32)
    for k in range(len(out)):
        x = y = z = 0.0
        for i in range(starts[k], starts[k + 1]):
            v, w = columns[i], values[i]
            x += w * vertices[v, 0]
            y += w * vertices[v, 1]
            z += w * vertices[v, 2]
        out[k, 0], out[k, 1], out[k, 2] = x, y, z
    return out

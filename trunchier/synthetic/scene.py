"""One image: people, camera, light, furniture, occluders, background, degradations of a camera.

All randomness of an image comes from its own generator, so images can be made in any order and by
any number of processes.
"""

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np

from ..conventions import BODIES
from ..render.rasterizer import bounding_box, project, projected_bounding_box, rasterize
from .backdrop import Folder, View, noises, procedural
from .figure import Figure, body, build_figure
from .garments import MATERIALS
from .natural import draw_distractor, natural
from .poses import pick, rotation_about_axis, sample_pose
from .regime import USUAL, Regime
from .shading import BODY, PROP, Mesh, Shadow, cast_shadow, shade, shade_ground
from .textures import textures
from .wardrobe import cloth_color, linear, random_color, sample_outfit

BETA_LIMIT = 2.5  # training drops bodies beyond 3
SHADOW_MAP_SIZE = 80  # pixels
OCCLUDED = 0.3  # fraction of images with an occluder

# Light: relative frequency; colors of the sun, of light from above and from below.
LIGHTS = {
    'sunny':    (0.30, (1.05, 0.98, 0.86), (0.26, 0.30, 0.38), (0.16, 0.14, 0.11)),
    'overcast': (0.26, (0.22, 0.22, 0.23), (0.58, 0.60, 0.64), (0.28, 0.27, 0.26)),
    'indoors':  (0.28, (0.55, 0.48, 0.38), (0.36, 0.34, 0.31), (0.24, 0.21, 0.18)),
    'lamp':     (0.10, (0.90, 0.74, 0.52), (0.14, 0.13, 0.13), (0.10, 0.09, 0.08)),
    'flash':    (0.06, (0.80, 0.80, 0.82), (0.18, 0.18, 0.20), (0.14, 0.14, 0.14)),
}  # fmt: skip


@dataclass
class Camera:
    """Pinhole: pixel = focal * (x, y) / z + center, of points in the camera frame."""

    focal: float  # pixels
    center: np.ndarray  # (2,), principal point, pixels, x before y

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) meters -> (N, 2) pixels."""
        return points[:, :2] / points[:, 2:] * self.focal + self.center


@dataclass
class Scene:
    """An image and its ground truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    owners: np.ndarray  # (H, W) int8: index into figures, shading.PROP or shading.BACKGROUND
    depth: np.ndarray  # (H, W) float32, meters; infinite in the background
    figures: list[Figure]
    camera: Camera
    jpeg_quality: int


@dataclass
class Prop:
    """A box of a piece of furniture or an occluder."""

    vertices: np.ndarray  # (24, 3), camera frame, four per side
    normals: np.ndarray  # (24, 3)
    rest: np.ndarray  # (24, 3), frame of the box
    paint: np.ndarray  # (len(PAINT),)


def make_scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    max_people: int = 1,
    backgrounds: Folder | None = None,
    plain: bool = False,
    min_people: int = 1,
    regime: Regime = USUAL,
) -> Scene:
    """Render one random image.

    Args:
        size: (W, H), pixels.
        max_people: upper limit.
        backgrounds: None for procedural ones.
        plain: whole people at eye level without occluders, which is easier to learn from.
        min_people: lower limit; 1: a share of 1 - regime.crowd of the images shows one person.
        regime: see Regime; without effect on plain images.
    """
    regime = USUAL if plain else regime
    room = _room(rng, plain, regime.nearest)
    crowd = min_people > 1 or max_people > 1 and rng.random() < regime.crowd
    count = int(rng.integers(max(min_people, 2), max_people + 1)) if crowd else 1
    figures, supports = _people(rng, room, count, regime)
    occluded = 0.0 if plain else OCCLUDED
    props = _furniture(rng, room, figures, supports, occluded)
    camera = _frame(rng, size, figures, 0.0 if plain else regime.truncated)
    return render(rng, size, figures, props, camera, room, occluded, backgrounds, regime)


# --- Placement of people and camera ---------------------------------------------------------------
@dataclass
class Room:
    """The level world (x right, y up, z towards the camera), seen by the camera."""

    to_camera: np.ndarray  # (3, 3), level world to camera frame
    distance: float  # meters to the first person
    ground: float  # up . X of points X of the ground; set with the first person

    @property
    def up(self) -> np.ndarray:
        return self.to_camera[:, 1]


def _room(rng, plain, nearest):
    kind = rng.random()
    if plain or kind < 0.66:
        pitch = rng.normal(4, 6)
    elif kind < 0.92:
        pitch = rng.uniform(10, 42)  # from above
    else:
        pitch = rng.uniform(-22, -4)  # from below
    roll = rng.normal(0, 3) if plain or rng.random() < 0.88 else rng.normal(0, 14)
    distance = math.exp(rng.uniform(math.log(nearest), math.log(11)))
    turn = rotation_about_axis(2, math.radians(roll)) @ rotation_about_axis(0, math.radians(pitch))
    return Room(turn @ np.diag((1.0, -1.0, -1.0)), distance, 0.0)


def _people(rng, room, count, regime):
    figures, supports, spots = [], [], []
    for k in range(count):
        pose = sample_pose(rng, regime.captured)
        betas = np.clip(rng.standard_normal(BODIES['smpl'].num_betas), -BETA_LIMIT, BETA_LIMIT)
        yaw = rng.normal(0, 0.7) if rng.random() < 0.5 else rng.uniform(-np.pi, np.pi)
        rotations = pose.rotations.copy()
        rotations[0] = room.to_camera @ rotation_about_axis(1, yaw) @ rotations[0]
        figure = build_figure(rotations, betas, sample_outfit(rng, pose.holds, regime.held))
        low, high = bounding_box(figure.vertices, np.eye(3, dtype=np.float32))
        lowest, _ = bounding_box(figure.vertices, room.to_camera.T.astype(np.float32))
        lift = float(lowest[1])
        raised = rng.uniform(0.1, 0.4) if pose.support == 'air' else 0.0
        move = np.array((0.0, 0.0, room.distance)) - (low + high) / 2
        if k == 0:
            room.ground = lift + move @ room.up - raised
            spots.append((0.0, 0.0))
        else:
            x, z = _free_spot(rng, spots, regime.spread)
            spots.append((x, z))
            move += room.to_camera @ np.array((x, 0.0, z))
            move += (room.ground + raised - lift - move @ room.up) * room.up
        figure.move(move)
        if figure.vertices[:, 2].min() > 0.3:  # not inside the lens
            figures.append(figure)
            supports.append(pose.support)
    return figures, supports


def _free_spot(rng, spots, spread):
    """x, z beside or behind the others, meters."""
    for _ in range(10):
        x, z = rng.normal(0, 1.1 * spread), rng.normal(-0.4, 0.9)
        if min(math.hypot(x - a, z - b) for a, b in spots) > 0.75 * spread:
            return x, z
    return (max(a for a, _ in spots) + 0.8 * spread, -0.3)


def _frame(rng, size, figures, truncated):
    """Choose the camera: most images show whole people, some cut one off."""
    first = figures[0].vertices
    shown = first
    if len(figures) > 1 and rng.random() < 0.6:
        shown = np.concatenate([figure.vertices for figure in figures])
    low, high = projected_bounding_box(shown)
    size = np.array(size, dtype=np.float64)
    share = rng.uniform(0.5, 0.95)
    if rng.random() >= truncated:
        focal = share * (size / (high - low)).min()
        corner = rng.random(2) * (size - focal * (high - low))
        return Camera(float(focal), corner - focal * low)

    low, high = projected_bounding_box(first)
    wide, tall = high - low
    head = figures[0].skeleton[15]
    upright = (head[1] / head[2] - low[1]) < 0.3 * tall
    if upright and rng.random() < 0.75:  # legs are below the image
        visible = rng.uniform(0.35, 0.85)
        focal = max(share, 0.75) * min(size[1] / (visible * tall), 1.7 * size[0] / wide)
        top = size[1] - focal * visible * tall
        middle = size[0] * rng.uniform(0.4, 0.6)
        corner = np.array((middle - focal * wide / 2, top))
    else:  # one side is outside
        focal = share * (size / (high - low)).min()
        extent = focal * (high - low)
        outside = rng.uniform(0.12, 0.4) * extent[0]
        left = -outside if rng.random() < 0.5 else size[0] - extent[0] + outside
        corner = np.array((left, rng.random() * (size[1] - extent[1])))
    return Camera(float(focal), corner - focal * low)


# --- Props ----------------------------------------------------------------------------------------
CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
SIDES = np.array([(axis, sign) for axis in range(3) for sign in (-1, 1)])
BOX_VERTICES = np.concatenate([CORNERS[CORNERS[:, axis] == sign] for axis, sign in SIDES])
BOX_NORMALS = np.repeat([np.eye(3, dtype=np.float32)[axis] * sign for axis, sign in SIDES], 4, 0)
# Corners in counter-clockwise order from outside, which depends on axis and sign.
WINDINGS = {True: np.array([(0, 1, 3), (0, 3, 2)]), False: np.array([(0, 3, 1), (0, 2, 3)])}
BOX_FACES = np.concatenate(
    [4 * k + WINDINGS[(sign > 0) == (axis == 1)] for k, (axis, sign) in enumerate(SIDES.tolist())]
).astype(np.int32)
BOX_AXIS = np.repeat(SIDES[:, 0], 2).astype(np.int8)


def _box(rng, room, center, half, yaw, color=None):
    """A Prop; center: (3,), camera frame; half: half sizes (3,), rotated by `yaw` (level world)."""
    axes = room.to_camera @ rotation_about_axis(1, yaw)
    color = cloth_color(rng, 0.3) if color is None else color
    tiles, names = textures()
    kind = ('plain', 'mottle', 'weave', 'stripes', 'checks')[rng.integers(5)]
    rest = BOX_VERTICES * np.asarray(half, np.float32)
    return Prop(
        vertices=(rest @ axes.T + center).astype(np.float32),
        normals=(BOX_NORMALS @ axes.T).astype(np.float32),
        rest=rest,
        paint=np.array(
            (*linear(color), *linear(np.array(color) * rng.uniform(0.6, 1.2)),
             pick(rng, names[kind]), rng.uniform(0.8, 3), 0.03, 0.0), np.float32,
        ),
    )  # fmt: skip


def _furniture(rng, room, figures, supports, occluded):
    """Seats below sitting people, and sometimes a table, post or crate in front of a person."""
    props, up = [], room.up
    for figure, support in zip(figures, supports, strict=True):
        if support != 'seat' or rng.random() < 0.12:
            continue
        # Front of the pelvis, level
        front = figure.rotations[0][:, 2] - (figure.rotations[0][:, 2] @ up) * up
        front /= np.linalg.norm(front)
        local = room.to_camera.T @ front
        yaw = math.atan2(local[0], local[2])
        hips = figure.skeleton[1:3].mean(0)
        top = hips @ up - 0.10 - 0.03 * rng.random()
        tall = top - room.ground
        if tall < 0.08:
            continue
        half = np.array((rng.uniform(0.2, 0.3), 0.0, rng.uniform(0.19, 0.26)))
        seat = hips + 0.09 * front
        seat = seat + (top - seat @ up) * up
        color = cloth_color(rng, 0.4)
        if rng.random() < 0.5:  # a bench or block down to the ground
            half[1] = tall / 2
            props.append(_box(rng, room, seat - half[1] * up, half, yaw, color))
        else:
            half[1] = 0.03
            props.append(_box(rng, room, seat - 0.03 * up, half, yaw, color))
            side = np.cross(up, front)
            for a, b in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                foot = seat + 0.9 * (a * half[0] * side + b * half[2] * front) - tall / 2 * up
                props.append(_box(rng, room, foot, (0.018, tall / 2, 0.018), yaw, color))
        if rng.random() < 0.55:
            back = seat - front * (half[2] + 0.05) + 0.25 * up
            props.append(_box(rng, room, back, (half[0], 0.26, 0.025), yaw, color))
    if rng.random() < 0.55 * occluded:
        figure = figures[int(rng.integers(len(figures)))]
        middle = figure.skeleton[0]
        low = middle @ up - room.ground
        aside, _, toward = room.to_camera.T
        kind = rng.integers(3)
        yaw = rng.normal(0, 0.3)
        near = middle + toward * rng.uniform(0.45, 0.7)
        if kind == 0:  # table
            tall = rng.uniform(0.55, 0.9) * max(low, 0.5)
            half = (rng.uniform(0.4, 0.9), 0.025, rng.uniform(0.15, 0.3))
            top = near + (room.ground + tall - near @ up) * up + aside * rng.normal(0, 0.3)
            props.append(_box(rng, room, top, half, yaw))
            if rng.random() < 0.5:
                half = (half[0] * 0.9, tall / 2, half[2] * 0.8)
                props.append(_box(rng, room, top - up * (tall / 2), half, yaw))
        elif kind == 1:  # post
            side = near + aside * pick(rng, (-1, 1)) * rng.uniform(0.05, 0.3)
            base = side + (room.ground + 1.3 - side @ up) * up
            width = rng.uniform(0.03, 0.1)
            props.append(_box(rng, room, base, (width, 1.3, width), yaw))
        else:  # crate
            tall = rng.uniform(0.15, 0.45)
            base = near + aside * rng.normal(0, 0.35)
            base = base + (room.ground + tall - base @ up) * up
            props.append(_box(rng, room, base, (rng.uniform(0.12, 0.32), tall, 0.15), yaw))
    return [prop for prop in props if prop.vertices[:, 2].min() > 0.2]


# --- Rendering ------------------------------------------------------------------------------------
def render(
    rng: np.random.Generator,
    size: tuple[int, int],
    figures: list[Figure],
    props: list[Prop],
    camera: Camera,
    room: Room,
    occluded: float = 0.0,
    backgrounds: Folder | None = None,
    regime: Regime = USUAL,
) -> Scene:
    """Render figures and props under random light, over a random background."""
    mesh = _merge(figures, props)
    width, height = size
    points = np.empty_like(mesh.vertices)
    project(mesh.vertices, np.float32(camera.focal), *camera.center.astype(np.float32), points)
    nearest = np.zeros((height, width), np.float32)
    ids = np.full((height, width), -1, np.int32)
    rasterize(points, mesh.faces, mesh.one_sided, nearest, ids)

    light = _light(rng, room)
    shadow = _shadow_map(light[4], mesh.vertices)
    cast_shadow(mesh, shadow)

    view = _view(room, camera, size)
    if regime.natural and rng.random() < regime.natural:
        image = natural(rng, size)
    else:
        image = procedural(rng, size, view) if backgrounds is None else backgrounds(rng, size)
    if regime.distractors and rng.random() < regime.distractors:
        for _ in range(rng.integers(1, 4)):
            draw_distractor(rng, image)
    image = _adjust(rng, image, 0.25)
    pinhole = np.array((camera.focal, *camera.center), np.float32)
    window = _shadow_window(size, camera, room, light[4], mesh.vertices)
    if window is not None and rng.random() < 0.85:
        shade_ground(
            image, ids, window, pinhole, room.up.astype(np.float32), np.float32(room.ground),
            np.float32(rng.uniform(0.2, 0.65)), shadow,
        )  # fmt: skip
    owners = np.empty((height, width), np.int8)
    shade(image, owners, nearest, ids, points, mesh, textures()[0], pinhole, light, shadow)
    if rng.random() < 0.5 * occluded:
        _foreground(rng, image, owners)
    image = _degrade(rng, image)
    with np.errstate(divide='ignore'):
        depth = 1 / nearest
    return Scene(image, owners, depth, figures, camera, int(rng.uniform(35, 97)))


def _merge(figures, props):
    """All meshes as one: the one-sided faces of bodies and props first, see `Mesh`."""
    meshes, rows = [*figures, *props], len(MATERIALS)
    starts = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    bodies, boxes = enumerate(starts[: len(figures)]), enumerate(starts[len(figures) : -1])
    paint = len(figures) * rows
    # faces, axis, owner, material
    parts = [(body().faces + start, body().axis, k, BODY) for k, start in bodies]
    parts += [(BOX_FACES + start, BOX_AXIS, PROP, paint + k) for k, start in boxes]
    one_sided = sum(len(faces) for faces, _, _, _ in parts)
    for k, figure in enumerate(figures):
        parts.append((figure.grid_faces + starts[k], 2, k, figure.grid_materials + k * rows))

    def column(index, dtype):
        return np.concatenate([np.full(len(part[0]), part[index], dtype) for part in parts])

    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        rest=np.concatenate([mesh.rest for mesh in meshes]).astype(np.float32),
        faces=np.concatenate([faces for faces, _, _, _ in parts]).astype(np.int32),
        one_sided=one_sided,
        axis=column(1, np.int8),
        owner=column(2, np.int8),
        material=column(3, np.int32),
        dresses=np.stack([figure.outfit.dress for figure in figures]),
        paint=np.vstack([figure.outfit.paint for figure in figures] + [box.paint for box in props]),
    )


def _light(rng, room):
    """(5, 3) float32: colors of sun, sky and ground; up; direction to the sun. Camera frame."""
    name = pick(rng, list(LIGHTS), [row[0] for row in LIGHTS.values()])
    colors = np.array(LIGHTS[name][1:]) * np.exp(rng.normal(0, 0.16, (3, 1)))
    colors *= np.exp(rng.normal(0, 0.05, (3, 3))) * rng.uniform(0.75, 1.25)
    if name == 'flash':
        to_sun = np.array((rng.normal(0, 0.1), -0.15, -1.0))
    else:
        rise = math.radians(rng.uniform(18, 82))
        turn = rng.normal(0, 1.2) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
        level = math.cos(rise)
        world = np.array((level * math.sin(turn), math.sin(rise), level * math.cos(turn)))
        to_sun = room.to_camera @ world
    to_sun = to_sun / np.linalg.norm(to_sun)
    return np.concatenate((colors, [room.up, to_sun])).astype(np.float32)


def _shadow_map(to_sun, vertices):
    """Empty shadow map around the vertices."""
    helper = np.eye(3, dtype=np.float32)[np.abs(to_sun).argmin()]
    x = np.cross(helper, to_sun)
    x /= np.linalg.norm(x)
    axes = np.stack((x, np.cross(to_sun, x), to_sun)).astype(np.float32)
    low, high = (corner[:2] for corner in bounding_box(vertices, axes))
    step = np.float32((high - low).max() / (SHADOW_MAP_SIZE - 3))
    heights = np.full((SHADOW_MAP_SIZE, SHADOW_MAP_SIZE), -1e9, np.float32)
    return Shadow(axes, (low - step).astype(np.float32), step, heights)


def _shadow_window(size, camera, room, to_sun, vertices):
    """Part of the image that the shadow on the ground may reach: x0, y0, x1, y1, or None."""
    rise = float(to_sun @ room.up)
    if rise < 0.15:
        return None
    low, high = bounding_box(vertices, room.to_camera.T.astype(np.float32))
    corners = CORNERS * (high - low) / 2 + (high + low) / 2  # of the people's box, level world
    corners = corners @ room.to_camera.T
    fallen = corners - np.outer((corners @ room.up - room.ground) / rise, to_sun)
    if fallen[:, 2].min() < 0.2:
        return np.array((0, 0, *size))
    pixels = camera.project(fallen)
    corners = np.floor(pixels.min(0)), np.ceil(pixels.max(0)) + 1
    return np.clip(corners, 0, size).astype(int).ravel()


def _view(room, camera, size):
    """The ground plane in the image."""
    up = room.up
    # Rays along the horizon have no component along `up`.
    at_middle = (size[0] / 2 - camera.center[0]) / camera.focal
    slope = -up[0] / up[1]
    horizon = camera.center[1] - camera.focal * (up[0] * at_middle + up[2]) / up[1]
    foot = np.array((0.0, 0.0, room.distance))
    foot = foot + (room.ground - foot @ up) * up
    feet = camera.center[1] + camera.focal * foot[1] / max(foot[2], 0.1)
    return View(float(horizon), float(slope), float(feet))


def _foreground(rng, image, owners):
    """A flat occluder near the lens, skipped if it would hide 40 % of the visible people."""
    height, width = owners.shape
    mask = np.zeros((height, width), np.uint8)
    kind = rng.integers(4)
    if kind == 0:  # leaves from one side
        center = np.array((pick(rng, (0, width)), rng.uniform(0, height)))
        for leaf in (center + rng.normal(0, 0.16, (30, 2)) * (width, height)).astype(int).tolist():
            axes = [int(rng.uniform(0.01, high) * width) + 1 for high in (0.05, 0.03)]
            cv2.ellipse(mask, leaf, axes, rng.uniform(0, 180), 0, 360, 255, -1)
    elif kind == 1:  # a rail
        a, b = rng.uniform(0.3, 1, 2) * height
        cv2.line(mask, (0, int(a)), (width, int(b)), 255, int(rng.uniform(0.01, 0.05) * height) + 1)
    elif kind == 2:  # the edge of something
        y = rng.uniform(0.72, 0.95) * height
        edge = [(0, y), (width, y + rng.normal(0, 0.06) * height), (width, height), (0, height)]
        cv2.fillPoly(mask, [np.array(edge, np.int32)], 255)
    else:  # a blot
        center = (int(rng.uniform(0, width)), int(rng.uniform(0.3, 1) * height))
        axes = [int(rng.uniform(0.04, 0.16) * side) + 1 for side in (width, height)]
        cv2.ellipse(mask, center, axes, rng.uniform(0, 180), 0, 360, 255, -1)
    covered = mask > 0
    people = owners >= 0
    if (covered & people).sum() > 0.4 * people.sum():
        return
    owners[covered] = PROP
    color = np.clip(random_color(rng) * rng.uniform(0.4, 1), 0, 255)
    noise = cv2.resize(noises()[rng.integers(len(noises()))][:128, :128], (width, height))
    shade = np.clip(color * (0.6 + 0.8 * noise[covered][:, None] / 255), 0, 255).astype(np.uint8)
    image[covered] = shade


# --- Degradations of a camera ---------------------------------------------------------------------
def _adjust(rng, image, strength, exposed=None):
    """Change exposure, contrast and tint at random; expose for a brightness (0 to 255) if given."""
    ramp = np.arange(256, dtype=np.float32) / 255
    tables = np.empty((256, 3), np.uint8)
    gain = 255 * math.exp(rng.normal(0, 0.35 * strength))
    if exposed is not None:
        gain *= (exposed / max(sum(cv2.mean(image)) / 3, 10)) ** 0.7
    bent = ramp ** math.exp(rng.normal(0, 0.9 * strength)) * gain
    for channel in range(3):
        tables[:, channel] = np.minimum(bent * math.exp(rng.normal(0, 0.2 * strength)), 255)
    return cv2.LUT(image, tables[None])


def _degrade(rng, image):
    """Lens and motion blur, low resolution, exposure, saturation, sensor noise."""
    height, width = image.shape[:2]
    unit = height / 256
    if rng.random() < 0.12:  # low resolution, enlarged
        share = rng.uniform(0.35, 0.8)
        small = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    else:  # at least enough to smooth aliased edges
        image = cv2.GaussianBlur(image, (0, 0), unit * (0.5 + 0.55 * rng.random() ** 2))
    if rng.random() < 0.06:
        length = int(rng.uniform(3, 8) * unit) | 1
        streak = np.zeros((length, length), np.float32)
        angle = rng.uniform(0, np.pi)
        half = length / 2 * np.array((np.cos(angle), np.sin(angle)))
        start, end = (length // 2 - half).astype(int), (length // 2 + half).astype(int)
        cv2.line(streak, start.tolist(), end.tolist(), 1.0)
        image = cv2.filter2D(image, -1, streak / streak.sum())
    image = _adjust(rng, image, 0.22, exposed=rng.normal(118, 18))
    kind = rng.random()
    if kind < 0.4:
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        saturation = rng.uniform(0.4, 1.35) if kind >= 0.06 else 0.0
        image = cv2.addWeighted(image, saturation, gray, 1 - saturation, 0)
    strength = rng.random() ** 3 * 10
    if strength > 1:
        grain = _grain()
        y, x = rng.integers(len(grain) - height), rng.integers(len(grain) - width)
        grain = grain[y : y + height, x : x + width]
        image = cv2.addWeighted(image, 1, grain, strength / 40, -128 * strength / 40)
    return image


@functools.lru_cache(maxsize=1)
def _grain():
    """(1024, 1024, 3) uint8 of mean 128 and deviation 40."""
    noise = np.random.default_rng(1839).normal(128, 40, (1024, 1024, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)

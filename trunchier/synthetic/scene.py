"""One picture: people, camera, light, things in the way, background, and the camera's faults.

Everything in a picture follows from its own random generator, so pictures can be made in any
order and by any number of processes.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from . import kernels
from .backdrop import View, noises, procedural
from .figure import body, build_figure
from .poses import pick, sample_pose
from .textures import textures
from .wardrobe import cloth_colour, linear, random_colour, sample_outfit

BETA_LIMIT = 2.5  # training drops bodies beyond 3
SHADOW_MAP = 80  # pixels
TRUNCATED = 0.15  # share of pictures that are meant to cut a person off
OCCLUDED = 0.3  # share with something in front
CROWD = 0.35  # share of pictures with more than one person, where they are allowed

# Light: colours of the sun, of what comes from above and from below; and how often.
LIGHTS = {
    'sunny':    (0.30, (1.05, 0.98, 0.86), (0.26, 0.30, 0.38), (0.16, 0.14, 0.11)),
    'overcast': (0.26, (0.22, 0.22, 0.23), (0.58, 0.60, 0.64), (0.28, 0.27, 0.26)),
    'indoors':  (0.28, (0.55, 0.48, 0.38), (0.36, 0.34, 0.31), (0.24, 0.21, 0.18)),
    'lamp':     (0.10, (0.90, 0.74, 0.52), (0.14, 0.13, 0.13), (0.10, 0.09, 0.08)),
    'flash':    (0.06, (0.80, 0.80, 0.82), (0.18, 0.18, 0.20), (0.14, 0.14, 0.14)),
}  # fmt: skip


@dataclass
class Camera:
    """Pinhole: pixel = focal * (x, y) / z + centre, of points in the camera's frame."""

    focal: float
    centre: np.ndarray  # (2,), x before y

    def project(self, points):
        """(N, 3) metres -> (N, 2) pixels."""
        return points[:, :2] / points[:, 2:] * self.focal + self.centre


@dataclass
class Scene:
    image: np.ndarray  # (H, W, 3) uint8 RGB
    owners: np.ndarray  # (H, W) int8: index into figures, kernels.PROP or kernels.NOBODY
    depth: np.ndarray  # (H, W) float32 metres, infinite where nothing is
    figures: list
    camera: Camera
    jpeg_quality: int


@dataclass
class Prop:
    """A box in the room: (24, 3) vertices with normals of their own, and colours."""

    vertices: np.ndarray
    normals: np.ndarray
    rest: np.ndarray
    paint: np.ndarray


def make_scene(rng, size, max_people=1, backgrounds=None, plain=False):
    """Draw one picture.

    Args:
        rng: np.random.Generator.
        size: (W, H), pixels.
        max_people: at most so many in the picture.
        backgrounds: backdrop.Folder, or None for procedural ones.
        plain: seen from eye level, whole, with nothing in front: easier to learn from.

    Returns:
        Scene
    """
    room = _room(rng, plain)
    count = 1
    if max_people > 1 and rng.random() < CROWD:
        count = int(rng.integers(2, max_people + 1))
    figures, supports = _people(rng, room, count)
    occluded = 0.0 if plain else OCCLUDED
    props = _furniture(rng, room, figures, supports, occluded)
    camera = _frame(rng, size, figures, 0.0 if plain else TRUNCATED)
    return render(rng, size, figures, props, camera, room, occluded, backgrounds)


# ---------------------------------------------------------------------------------------------
# The room: a level world of which the camera has its own view
# ---------------------------------------------------------------------------------------------
@dataclass
class Room:
    to_camera: np.ndarray  # (3, 3): level world (x right, y up, z to the camera) to camera frame
    distance: float  # metres to the first person
    ground: float  # of the ground's points, along `up`; set with the first person

    @property
    def up(self):
        return self.to_camera[:, 1]


def _room(rng, plain):
    pick = rng.random()
    if plain or pick < 0.66:
        pitch = rng.normal(4, 6)
    elif pick < 0.92:
        pitch = rng.uniform(10, 42)  # from above
    else:
        pitch = rng.uniform(-22, -4)  # from below
    roll = rng.normal(0, 3) if plain or rng.random() < 0.88 else rng.normal(0, 14)
    distance = math.exp(rng.uniform(math.log(2.2), math.log(11)))
    turn = _rotation(2, math.radians(roll)) @ _rotation(0, math.radians(pitch))
    return Room(turn @ np.diag((1.0, -1.0, -1.0)), distance, 0.0)


def _rotation(axis, angle):
    c, s = math.cos(angle), math.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = np.eye(3)
    out[i, i], out[i, j], out[j, i], out[j, j] = c, -s, s, c
    return out


def _people(rng, room, count):
    figures, supports, spots = [], [], []
    for k in range(count):
        pose = sample_pose(rng)
        betas = np.clip(rng.standard_normal(10), -BETA_LIMIT, BETA_LIMIT)
        yaw = rng.normal(0, 0.7) if rng.random() < 0.5 else rng.uniform(-np.pi, np.pi)
        rotations = pose.rotations.copy()
        rotations[0] = room.to_camera @ _rotation(1, yaw) @ rotations[0]
        figure = build_figure(rotations, betas, sample_outfit(rng, pose.holds))
        low, high = kernels.bounds(figure.vertices)
        level, _ = kernels.bounds_along(figure.vertices, room.to_camera.T.astype(np.float32))
        lift = float(level[1])
        raised = rng.uniform(0.1, 0.4) if pose.support == 'air' else 0.0
        if k == 0:
            move = np.array((0.0, 0.0, room.distance)) - (low + high) / 2
            room.ground = lift + move @ room.up - raised
            spots.append((0.0, 0.0))
        else:
            x, z = _free_spot(rng, spots)
            spots.append((x, z))
            move = np.array((0.0, 0.0, room.distance)) - (low + high) / 2
            move += room.to_camera @ np.array((x, 0.0, z))
            move += (room.ground + raised - lift - move @ room.up) * room.up
        figure.move(move)
        if kernels.bounds(figure.vertices)[0][2] > 0.3:  # not in the lens
            figures.append(figure)
            supports.append(pose.support)
    return figures, supports


def _free_spot(rng, spots):
    """Beside or behind the others, metres."""
    for _ in range(10):
        x, z = rng.normal(0, 1.1), rng.normal(-0.4, 0.9)
        if min(math.hypot(x - a, z - b) for a, b in spots) > 0.75:
            return x, z
    return (max(a for a, _ in spots) + 0.8, -0.3)


def _frame(rng, size, figures, truncated):
    """Choose focal length and centre: most pictures hold the people whole, some cut one off."""
    first = figures[0].vertices
    shown = first
    if len(figures) > 1 and rng.random() < 0.6:
        shown = np.concatenate([figure.vertices for figure in figures])
    low, high = kernels.flat_bounds(shown)
    size = np.array(size, dtype=np.float64)
    share = rng.uniform(0.5, 0.95)
    if rng.random() >= truncated:
        focal = share * (size / (high - low)).min()
        corner = rng.random(2) * (size - focal * (high - low))
        return Camera(float(focal), corner - focal * low)

    low, high = kernels.flat_bounds(first)
    head = figures[0].skeleton[15]
    upright = (head[1] / head[2] - low[1]) < 0.3 * (high[1] - low[1])
    if upright and rng.random() < 0.75:  # legs are below the picture
        visible = rng.uniform(0.35, 0.85)
        focal = max(share, 0.75) * min(
            size[1] / (visible * (high[1] - low[1])), 1.7 * size[0] / (high[0] - low[0])
        )
        top = size[1] - focal * visible * (high[1] - low[1])
        middle = size[0] * rng.uniform(0.4, 0.6)
        corner = np.array((middle - focal * (high[0] - low[0]) / 2, top))
    else:  # one side is out
        focal = share * (size / (high - low)).min()
        extent = focal * (high - low)
        outside = rng.uniform(0.12, 0.4) * extent[0]
        left = -outside if rng.random() < 0.5 else size[0] - extent[0] + outside
        corner = np.array((left, rng.random() * (size[1] - extent[1])))
    return Camera(float(focal), corner - focal * low)


# ---------------------------------------------------------------------------------------------
# Things
# ---------------------------------------------------------------------------------------------
CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
SIDES = np.array([(axis, sign) for axis in range(3) for sign in (-1, 1)])
BOX_VERTICES = np.concatenate([CORNERS[CORNERS[:, axis] == sign] for axis, sign in SIDES])
BOX_NORMALS = np.repeat(
    np.array([np.eye(3, dtype=np.float32)[axis] * sign for axis, sign in SIDES]), 4, axis=0
)
# Wound so that the front is outside: the order of the corners turns with the axis and the sign.
WINDINGS = {True: np.array([(0, 1, 3), (0, 3, 2)]), False: np.array([(0, 3, 1), (0, 2, 3)])}
BOX_FACES = np.concatenate(
    [4 * k + WINDINGS[(sign > 0) == (axis == 1)] for k, (axis, sign) in enumerate(SIDES.tolist())]
).astype(np.int32)
BOX_AXIS = np.repeat(SIDES[:, 0], 2).astype(np.int8)


def _box(rng, room, centre, half, yaw, colour=None):
    """A box in the camera's frame; `centre` is there already, `half` in the level world."""
    axes = room.to_camera @ _rotation(1, yaw)
    colour = cloth_colour(rng, 0.3) if colour is None else colour
    tiles, names = textures()
    kind = ('plain', 'mottle', 'weave', 'stripes', 'checks')[rng.integers(5)]
    rest = BOX_VERTICES * np.asarray(half, np.float32)
    return Prop(
        vertices=(rest @ axes.T + centre).astype(np.float32),
        normals=(BOX_NORMALS @ axes.T).astype(np.float32),
        rest=rest,
        paint=np.array(
            (*linear(colour), *linear(np.array(colour) * rng.uniform(0.6, 1.2)),
             pick(rng, names[kind]), rng.uniform(0.8, 3), 0.03, 0.0), np.float32,
        ),
    )  # fmt: skip


def _furniture(rng, room, figures, supports, occluded):
    """Seats below who sits, and sometimes a table, post or crate in front of somebody."""
    props = []
    up = room.up
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
        place = hips + 0.09 * front
        place = place + (top - place @ up) * up
        colour = cloth_colour(rng, 0.4)
        if rng.random() < 0.5:  # a bench or block down to the ground
            half[1] = tall / 2
            props.append(_box(rng, room, place - half[1] * up, half, yaw, colour))
        else:
            half[1] = 0.03
            props.append(_box(rng, room, place - 0.03 * up, half, yaw, colour))
            side = np.cross(up, front)
            for a, b in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                foot = place + 0.9 * (a * half[0] * side + b * half[2] * front) - tall / 2 * up
                props.append(_box(rng, room, foot, (0.018, tall / 2, 0.018), yaw, colour))
        if rng.random() < 0.55:
            back = place - front * (half[2] + 0.05) + 0.25 * up
            props.append(_box(rng, room, back, (half[0], 0.26, 0.025), yaw, colour))
    if rng.random() < 0.55 * occluded:
        figure = figures[int(rng.integers(len(figures)))]
        middle = figure.skeleton[0]
        low = middle @ up - room.ground
        toward = room.to_camera[:, 2]
        aside = room.to_camera[:, 0]
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


# ---------------------------------------------------------------------------------------------
# Rendering
# ---------------------------------------------------------------------------------------------
def render(rng, size, figures, props, camera, room, occluded=0.0, backgrounds=None):
    """Draw figures and props; the rest of the random choices (light, background) is made here."""
    mesh = _merge(figures, props)
    width, height = size
    points = np.empty_like(mesh.vertices)
    kernels.project(
        mesh.vertices, np.float32(camera.focal), *camera.centre.astype(np.float32), points
    )
    nearest = np.zeros((height, width), np.float32)
    ids = np.full((height, width), -1, np.int32)
    kernels.rasterise(points, mesh.faces, mesh.one_sided, nearest, ids)

    light = _light(rng, room)
    axes, low, step = _light_view(light[4], mesh.vertices)
    heights = np.full((SHADOW_MAP, SHADOW_MAP), -1e9, np.float32)
    kernels.shadow_map(mesh.vertices, mesh.faces, mesh.one_sided, axes, low, step, heights)

    view = _view(room, camera, size)
    image = procedural(rng, size, view) if backgrounds is None else backgrounds(rng, size)
    image = _adjust(rng, image, 0.25)
    pinhole = np.array((camera.focal, *camera.centre), np.float32)
    window = _shadow_window(size, camera, room, light[4], mesh.vertices)
    if window is not None and rng.random() < 0.85:
        kernels.shade_ground(
            image, ids, window, pinhole, room.up.astype(np.float32), np.float32(room.ground),
            np.float32(rng.uniform(0.2, 0.65)), axes, low, step, heights,
        )  # fmt: skip
    owners = np.empty((height, width), np.int8)
    kernels.shade(
        image, owners, nearest, ids, points, mesh.normals, mesh.rest, mesh.faces, mesh.axis,
        mesh.owner, mesh.material, mesh.dresses, mesh.paint, textures()[0], pinhole, light, axes,
        low, step, heights,
    )  # fmt: skip
    if rng.random() < 0.5 * occluded:
        _foreground(rng, image, owners)
    image = _photograph(rng, image)
    with np.errstate(divide='ignore'):
        depth = 1 / nearest
    return Scene(image, owners, depth, figures, camera, int(rng.uniform(35, 97)))


@dataclass
class Mesh:
    vertices: np.ndarray
    normals: np.ndarray
    rest: np.ndarray
    faces: np.ndarray
    one_sided: int
    axis: np.ndarray
    owner: np.ndarray
    material: np.ndarray
    dresses: np.ndarray
    paint: np.ndarray


def _merge(figures, props):
    """All meshes as one: bodies first, since only their fronts are drawn."""
    starts = np.cumsum([0] + [len(f.vertices) for f in figures] + [24] * len(props))
    rows = len(kernels.MATERIALS)
    faces, axis, owner, material = [], [], [], []

    def add(new_faces, new_axis, new_owner, new_material):
        faces.append(new_faces)
        axis.append(new_axis)
        owner.append(np.full(len(new_faces), new_owner, np.int8))
        material.append(new_material)

    for k, figure in enumerate(figures):
        count = len(figure.body_faces)
        add(figure.body_faces + starts[k], body().axis, k, np.full(count, kernels.BODY, np.int32))
    for k in range(len(props)):
        row = len(figures) * rows + k
        add(
            BOX_FACES + starts[len(figures) + k], BOX_AXIS, kernels.PROP, np.full(12, row, np.int32)
        )
    one_sided = sum(len(part) for part in faces)
    for k, figure in enumerate(figures):
        count = len(figure.grid_faces)
        add(figure.grid_faces + starts[k], np.full(count, 2, np.int8), k,
            figure.grid_materials + k * rows)  # fmt: skip
    meshes = [*figures, *props]
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        rest=np.concatenate([mesh.rest for mesh in meshes]).astype(np.float32),
        faces=np.concatenate(faces).astype(np.int32),
        one_sided=one_sided,
        axis=np.concatenate(axis),
        owner=np.concatenate(owner),
        material=np.concatenate(material).astype(np.int32),
        dresses=np.stack([figure.outfit.dress for figure in figures]),
        paint=np.concatenate(
            [figure.outfit.paint for figure in figures] + [prop.paint[None] for prop in props]
        ),
    )


def _light(rng, room):
    """(5, 3) float32: colours of sun, sky and ground; up; direction to the sun. Camera frame."""
    name = pick(rng, list(LIGHTS), [row[0] for row in LIGHTS.values()])
    colours = np.array(LIGHTS[name][1:]) * np.exp(rng.normal(0, 0.16, (3, 1)))
    colours *= np.exp(rng.normal(0, 0.05, (3, 3))) * rng.uniform(0.75, 1.25)
    if name == 'flash':
        to_sun = np.array((rng.normal(0, 0.1), -0.15, -1.0))
    else:
        rise = math.radians(rng.uniform(18, 82))
        turn = rng.normal(0, 1.2) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
        level = math.cos(rise)
        world = np.array((level * math.sin(turn), math.sin(rise), level * math.cos(turn)))
        to_sun = room.to_camera @ world
    to_sun = to_sun / np.linalg.norm(to_sun)
    return np.concatenate((colours, [room.up, to_sun])).astype(np.float32)


def _light_view(to_sun, vertices):
    """Axes (3, 3) of the shadow map, its corner (2,) and its step, metres."""
    helper = np.eye(3, dtype=np.float32)[np.abs(to_sun).argmin()]
    x = np.cross(helper, to_sun)
    x /= np.linalg.norm(x)
    axes = np.stack((x, np.cross(to_sun, x), to_sun)).astype(np.float32)
    low, high = kernels.bounds_along(vertices, axes)
    low, high = low[:2], high[:2]
    step = np.float32((high - low).max() / (SHADOW_MAP - 3))
    return axes, (low - step).astype(np.float32), step


def _shadow_window(size, camera, room, to_sun, vertices):
    """Part of the picture that the shadow on the ground may reach, or None: x0, y0, x1, y1."""
    up = room.up
    rise = float(to_sun @ up)
    if rise < 0.15:
        return None
    low, high = kernels.bounds_along(vertices, room.to_camera.T.astype(np.float32))
    corners = CORNERS * (high - low) / 2 + (high + low) / 2  # of the people's box, level world
    corners = corners @ room.to_camera.T
    fallen = corners - np.outer((corners @ up - room.ground) / rise, to_sun)
    if fallen[:, 2].min() < 0.2:
        return np.array((0, 0, *size))
    pixels = camera.project(fallen)
    start = np.clip(np.floor(pixels.min(0)), 0, size).astype(int)
    stop = np.clip(np.ceil(pixels.max(0)) + 1, 0, size).astype(int)
    return np.array((*start, *stop))


def _view(room, camera, size):
    """Horizon of the ground plane on the screen."""
    up = room.up
    # Rays along the horizon have no component along `up`.
    at_middle = (size[0] / 2 - camera.centre[0]) / camera.focal
    slope = -up[0] / up[1]
    horizon = camera.centre[1] - camera.focal * (up[0] * at_middle + up[2]) / up[1]
    foot = np.array((0.0, 0.0, room.distance))
    foot = foot + (room.ground - foot @ up) * up
    feet = camera.centre[1] + camera.focal * foot[1] / max(foot[2], 0.1)
    return View(float(horizon), float(slope), float(feet))


def _foreground(rng, image, owners):
    """Something near the lens, drawn flat; left out where it would hide most of the people."""
    height, width = owners.shape
    mask = np.zeros((height, width), np.uint8)
    kind = rng.integers(4)
    if kind == 0:  # leaves from one side
        centre = np.array((pick(rng, (0, width)), rng.uniform(0, height)))
        for place in (centre + rng.normal(0, 0.16, (30, 2)) * (width, height)).astype(int).tolist():
            axes = (
                int(rng.uniform(0.01, 0.05) * width) + 1,
                int(rng.uniform(0.01, 0.03) * width) + 1,
            )
            cv2.ellipse(mask, place, axes, rng.uniform(0, 180), 0, 360, 255, -1)
    elif kind == 1:  # a rail
        a, b = rng.uniform(0.3, 1, 2) * height
        cv2.line(mask, (0, int(a)), (width, int(b)), 255, int(rng.uniform(0.01, 0.05) * height) + 1)
    elif kind == 2:  # the edge of something
        y = rng.uniform(0.72, 0.95) * height
        edge = [(0, y), (width, y + rng.normal(0, 0.06) * height), (width, height), (0, height)]
        cv2.fillPoly(mask, [np.array(edge, np.int32)], 255)
    else:  # a blot
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0.3, 1) * height))
        axes = (int(rng.uniform(0.04, 0.16) * width) + 1, int(rng.uniform(0.04, 0.16) * height) + 1)
        cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 255, -1)
    covered = mask > 0
    people = owners >= 0
    if (covered & people).sum() > 0.4 * people.sum():
        return
    owners[covered] = kernels.PROP
    colour = np.clip(random_colour(rng) * rng.uniform(0.4, 1), 0, 255)
    noise = cv2.resize(noises()[rng.integers(len(noises()))][:128, :128], (width, height))
    shade = np.clip(colour * (0.6 + 0.8 * noise[covered][:, None] / 255), 0, 255).astype(np.uint8)
    image[covered] = shade


# ---------------------------------------------------------------------------------------------
# The camera's faults
# ---------------------------------------------------------------------------------------------
def _adjust(rng, image, strength, exposed=None):
    """Exposure, contrast and tint, one table a channel.

    Args:
        strength: of the random changes.
        exposed: brightness that the camera aims at, 0 to 255; None: it leaves the light as it is.
    """
    ramp = np.arange(256, dtype=np.float32) / 255
    tables = np.empty((256, 3), np.uint8)
    gain = 255 * math.exp(rng.normal(0, 0.35 * strength))
    if exposed is not None:
        gain *= (exposed / max(sum(cv2.mean(image)) / 3, 10)) ** 0.7
    bent = ramp ** math.exp(rng.normal(0, 0.9 * strength)) * gain
    for channel in range(3):
        tables[:, channel] = np.minimum(bent * math.exp(rng.normal(0, 0.2 * strength)), 255)
    return cv2.LUT(image, tables[None])


def _photograph(rng, image):
    """Lens blur, motion, low resolution, colours, vignette and sensor noise."""
    height, width = image.shape[:2]
    unit = height / 256
    if rng.random() < 0.12:  # shot small, then enlarged
        share = rng.uniform(0.35, 0.8)
        small = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    else:  # at least what softens the z-buffer's stairs
        image = cv2.GaussianBlur(image, (0, 0), unit * (0.5 + 0.55 * rng.random() ** 2))
    if rng.random() < 0.06:
        length = int(rng.uniform(3, 8) * unit) | 1
        streak = np.zeros((length, length), np.float32)
        angle = rng.uniform(0, np.pi)
        x, y = length / 2 * np.cos(angle), length / 2 * np.sin(angle)
        middle = length // 2
        cv2.line(
            streak, (int(middle - x), int(middle - y)), (int(middle + x), int(middle + y)), 1.0
        )
        image = cv2.filter2D(image, -1, streak / streak.sum())
    image = _adjust(rng, image, 0.22, exposed=rng.normal(118, 18))
    pick = rng.random()
    if pick < 0.06:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    elif pick < 0.4:  # saturation
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        share = rng.uniform(0.4, 1.35)
        image = cv2.addWeighted(image, share, grey, 1 - share, 0)
    strength = rng.random() ** 3 * 10
    if strength > 1:
        y, x = rng.integers(len(_grain()) - height), rng.integers(len(_grain()) - width)
        grain = _grain()[y : y + height, x : x + width]
        image = cv2.addWeighted(image, 1, grain, strength / 40, -128 * strength / 40)
    return image


_GRAIN = {}


def _grain():
    """(1024, 1024, 3) uint8 of mean 128 and deviation 40."""
    if not _GRAIN:
        noise = np.random.default_rng(1839).normal(128, 40, (1024, 1024, 3))
        _GRAIN['grain'] = np.clip(noise, 0, 255).astype(np.uint8)
    return _GRAIN['grain']

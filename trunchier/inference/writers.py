"""Writers of result files: JSON as MMPose writes it, npz, OBJ, GLB, MP4, images.

Each file appears complete or not at all, see `files.whole_file`.
"""

import csv
import json
import zipfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..files import need, whole_file
from .sources import import_av

# From the camera's frame (y down, z forward) to that of OBJ and glTF (y up, z backward).
CAMERA_TO_Y_UP = np.array([1, -1, -1], np.float32)
FOLDERS = {
    'json': 'predictions', 'npz': 'predictions', 'obj': 'meshes', 'glb': 'meshes',
    'animation': 'meshes', 'bvh': 'meshes', 'video': 'visualizations', 'images': 'visualizations',
}  # fmt: skip
FORMATS = tuple(FOLDERS)
OF_MESHES = tuple(name for name, folder in FOLDERS.items() if folder == 'meshes')
DEFAULT_FORMATS = ('json', 'images', 'video')
SMPL_FIELDS = ('global_orient', 'body_pose', 'betas', 'transl')  # of a mesh in JSON


def check_formats(save: str | Iterable[str], meshes: bool) -> tuple[str, ...]:
    """Names of formats, given as such or as 'json,npz'.

    Args:
        meshes: whether there are any to save.

    Raises:
        ValueError: an unknown format; a format of meshes without any.
    """
    save = tuple(save.replace(' ', '').split(',')) if isinstance(save, str) else tuple(save)
    if unknown := sorted(set(save) - set(FORMATS)):
        raise ValueError(f'cannot save {unknown}; choose from {", ".join(FORMATS)}')
    if not meshes and set(OF_MESHES) & set(save):
        raise ValueError(f'{", ".join(OF_MESHES)} require a mesh model')
    return save


def instances_to_json(fields: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """People as MMPose writes them: `keypoints`, `keypoint_scores`, `bbox`, `bbox_score`.

    `bbox` is [[x1, y1, x2, y2]]. Meshes have no `keypoint_scores`, but SMPL_FIELDS; lifted people
    have `joints` and `transl`, and people in a world `joints_world`. People of videos have a
    `track_id`, unless they are not tracked.

    Args:
        fields: arrays (P, ...), see `results.to_record`.
    """
    people = []
    for person in range(len(fields['bboxes'])):
        each = {
            'keypoints': fields['keypoints'][person].tolist(),
            'bbox': [fields['bboxes'][person].tolist()],
            'bbox_score': float(fields['bbox_scores'][person]),
        }
        if 'keypoint_scores' in fields:
            each['keypoint_scores'] = fields['keypoint_scores'][person].tolist()
        if 'track_ids' in fields and fields['track_ids'][person] >= 0:
            each['track_id'] = int(fields['track_ids'][person])
        names = SMPL_FIELDS if 'global_orient' in fields else ('joints', 'transl')
        names = *names, 'joints_world'
        each |= {name: fields[name][person].tolist() for name in names if name in fields}
        people.append(each)
    return people


def write_json(content: Any, path: str | Path) -> None:
    with whole_file(path) as part:
        part.write_text(json.dumps(content))


def write_csv(rows: list[dict[str, Any]], path: str | Path) -> None:
    """A line per row below the names of the columns, which are those of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path) as part, open(part, 'w', newline='') as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def concatenate_npz(
    parts: list[Path], path: Path, constants: dict[str, Any], leave_out: Iterable[str] = ()
) -> None:
    """Join npz files along the first axis, with one of them in memory at a time.

    Args:
        parts: in order, files with equal names, types and inner shapes.
        constants: arrays to add unchanged.
        leave_out: prefixes of names to skip.
    """
    with np.load(parts[0], allow_pickle=False) as first:
        names = [name for name in first.files if not name.startswith(tuple(leave_out))]
    with whole_file(path) as target, zipfile.ZipFile(target, 'w', zipfile.ZIP_STORED) as archive:
        for name in names:
            first = _array(parts[0], name)
            shape = (sum(len(_array(part, name)) for part in parts), *first.shape[1:])
            kind = np.lib.format.dtype_to_descr(first.dtype)
            header = dict(descr=kind, fortran_order=False, shape=shape)
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    file.write(_array(part, name).tobytes())
        for name, array in constants.items():
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _array(path, name):
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


# --- Meshes ---------------------------------------------------------------------------------------
def write_obj(
    vertices: np.ndarray, faces: np.ndarray, translation: np.ndarray, path: str | Path
) -> None:
    """One person as Wavefront OBJ, y up, near the origin; OBJ has no transforms.

    Args:
        vertices: (V, 3), meters, camera axes, before `translation`.
        faces: (F, 3).
        translation: (3,), into the camera's frame; a comment of the file states it, y up.
    """
    mesh = _upright_mesh(vertices, faces)
    x, y, z = np.asarray(translation) * CAMERA_TO_Y_UP
    header = f'# meters, y up; the camera is at {-x:.6g} {-y:.6g} {-z:.6g} and looks along -z'
    with whole_file(path) as part:
        part.write_text(header + '\n' + mesh.export(file_type='obj', include_normals=True))


def write_glb(
    people: np.ndarray,
    faces: np.ndarray,
    translations: np.ndarray,
    path: str | Path,
    colors: np.ndarray,
) -> None:
    """The people of an image as binary glTF, in the frame of the camera, y up.

    Each person is a node `person0`, `person1`... whose mesh lies near the node's origin and whose
    transform is the translation.

    Args:
        people: (P, V, 3), meters, camera axes, before the translations.
        faces: (F, 3).
        translations: (P, 3), meters.
        colors: (P, 3) RGB in [0, 1], sRGB as on a screen.
    """
    trimesh = need('trimesh', 'writing OBJ and GLB')
    scene, surface = trimesh.Scene(), dict(metallicFactor=0.0, roughnessFactor=0.6)
    for person, color in enumerate(linear_color(np.asarray(colors))):
        material = trimesh.visual.material.PBRMaterial(baseColorFactor=[*color, 1.0], **surface)
        mesh = _upright_mesh(people[person], faces)
        mesh.visual = trimesh.visual.TextureVisuals(material=material)
        transform = np.eye(4)
        transform[:3, 3] = translations[person] * CAMERA_TO_Y_UP
        name = f'person{person}'
        scene.add_geometry(mesh, node_name=name, geom_name=name, transform=transform)
    with whole_file(path) as part:
        part.write_bytes(trimesh.exchange.gltf.export_glb(scene, include_normals=True))


def linear_color(color: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 1] to linear ones (IEC 61966-2-1), as glTF's factors are defined."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def _upright_mesh(vertices, faces):
    """trimesh.Trimesh with y up and smooth normals, weighted by the area of the faces.

    trimesh weights by angle, where the few small folded faces of the embedded body flip the normals
    around them.
    """
    vertices = vertices * CAMERA_TO_Y_UP
    normals = vertex_normals(vertices, np.asarray(faces))
    trimesh = need('trimesh', 'writing OBJ and GLB')
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals, process=False)


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals of a mesh, weighted by the areas of the faces."""
    a, b, c = (vertices[corner] for corner in faces.T)
    normals = np.zeros_like(vertices)
    for corner in faces.T:
        np.add.at(normals, corner, np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


# --- Images and videos ----------------------------------------------------------------------------
def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write (H, W, 3) uint8 BGR in the format of the suffix; ValueError if OpenCV does not."""
    suffix = Path(path).suffix
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix in ('.jpg', '.jpeg') else []
    encoded, data = False, None
    if cv2.haveImageWriter(str(path)):
        encoded, data = cv2.imencode(suffix, image, quality)
    if not encoded:
        raise ValueError(
            f'OpenCV does not write {path}, {suffix} images of {image.shape}; use .jpg'
        )
    with whole_file(path) as part:
        part.write_bytes(data.tobytes())


class VideoWriter:
    """H.264 in MP4 that browsers, QuickTime and VLC play (yuv420p, index in front).

    Args:
        path: of the file, written in place; use it with `whole_file`.
        fps: frames per second.
        shape: (H, W) of the images; odd sides lose a pixel, since H.264 requires even ones.
    """

    def __init__(self, path: str | Path, fps: float, shape: tuple[int, int]):
        self.av = import_av()
        self.height, self.width = (max(side - side % 2, 2) for side in shape)
        self.container = _create_mp4(path)
        rate = Fraction(fps).limit_denominator(1001)
        self.stream = self.container.add_stream('libx264', rate=rate)
        self.stream.width, self.stream.height = self.width, self.height
        self.stream.pix_fmt = 'yuv420p'
        # Without B-frames, joined files have no gaps in time.
        self.stream.options = {'preset': 'veryfast', 'crf': '20', 'bf': '0'}

    def write(self, image: np.ndarray) -> None:
        """Append (H, W, 3) uint8 BGR; larger images are cropped, others resized."""
        if image.shape[0] < self.height or image.shape[1] < self.width:
            image = cv2.resize(image, (self.width, self.height))
        image = np.ascontiguousarray(image[: self.height, : self.width])
        frame = self.av.VideoFrame.from_ndarray(image, format='bgr24')
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        with self.container:
            self.container.mux(self.stream.encode())


def _create_mp4(path):
    return import_av().open(str(path), 'w', format='mp4', options={'movflags': 'faststart'})


def concatenate_videos(parts: list[Path], path: Path) -> None:
    """Join MP4 files of one encoder and size without re-encoding."""
    av = import_av()
    with whole_file(path) as target, _create_mp4(target) as out:
        stream, shift = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(video)
                    stream.time_base = video.time_base
                end = 0
                for packet in source.demux(video):
                    if packet.dts is None:  # the end
                        continue
                    end = max(end, packet.pts + packet.duration)
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    out.mux(packet)
                shift += end

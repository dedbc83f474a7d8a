"""Predictions as files that other programs open, each written whole or not at all.

JSON as MMPose writes it, npz of SMPL parameters, OBJ and GLB (trimesh), H.264 in MP4 (PyAV),
pictures (OpenCV). A file appears under its name once it is complete; until then its content lies
beside it in a hidden file that ends in `.part`.
"""

import json
import zipfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from ..files.whole import whole_file
from .sources import import_av

# Meshes stand in the camera's frame (y down, z forward); OBJ and glTF want y up, z backward.
CAMERA_TO_Y_UP = np.array([1, -1, -1], np.float32)


# ---------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------
# What JSON says of a mesh, beside MMPose's own four fields.
JSON_FIELDS = ('global_orient', 'body_pose', 'betas', 'transl')


def instances_to_json(fields):
    """What MMPose writes of a picture: a list of dicts `keypoints`, `keypoint_scores`, `bbox`

    ([[x1, y1, x2, y2]]), `bbox_score`; with `track_id` and, of meshes, JSON_FIELDS.

    Args:
        fields: dict of arrays (P, ...), see `saving.to_record`.
    """
    people = []
    for person in range(len(fields['bboxes'])):
        each = {
            'keypoints': fields['keypoints'][person].tolist(),
            'keypoint_scores': fields['keypoint_scores'][person].tolist(),
            'bbox': [fields['bboxes'][person].tolist()],
            'bbox_score': float(fields['bbox_scores'][person]),
        }
        if 'track_ids' in fields:
            each['track_id'] = int(fields['track_ids'][person])
        each |= {name: fields[name][person].tolist() for name in JSON_FIELDS if name in fields}
        people.append(each)
    return people


def write_json(content, path):
    with whole_file(path) as part:
        part.write_text(json.dumps(content))


def write_npz(arrays, path):
    """A dict of arrays, without pickles."""
    with whole_file(path) as part, open(part, 'wb') as file:
        np.savez(file, **arrays)


def concatenate_npz(parts, path, constants, leave_out=()):
    """Join npz files along the first axis, in the memory that one of them needs.

    Args:
        parts: paths, in order; all hold arrays of the same names, types and inner shapes.
        path: of the result.
        constants: dict of arrays that are added as they are.
        leave_out: beginnings of names that do not come along.
    """
    names = [name for name in _npz_names(parts[0]) if not name.startswith(tuple(leave_out))]
    with whole_file(path) as target, zipfile.ZipFile(target, 'w', zipfile.ZIP_STORED) as archive:
        for name in names:
            headers = [_npz_header(part, name) for part in parts]
            shape, dtype = (sum(s[0] for s, _ in headers), *headers[0][0][1:]), headers[0][1]
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as file:
                header = dict(
                    descr=np.lib.format.dtype_to_descr(dtype), fortran_order=False, shape=shape
                )
                np.lib.format.write_array_header_1_0(file, header)
                for part in parts:
                    with np.load(part, allow_pickle=False) as arrays:
                        file.write(np.ascontiguousarray(arrays[name]).tobytes())
        for name, array in constants.items():
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _npz_names(path):
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix('.npy') for name in archive.namelist()]


def _npz_header(path, name):
    with zipfile.ZipFile(path) as archive, archive.open(f'{name}.npy') as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return shape, dtype


# ---------------------------------------------------------------------------------------------
# Meshes
# ---------------------------------------------------------------------------------------------
def write_obj(vertices, faces, path):
    """One person as Wavefront OBJ.

    Args:
        vertices: (V, 3), metres, camera frame. faces: (F, 3).
        path: of the file.
    """
    mesh = _upright_mesh(vertices, faces)
    with whole_file(path) as part:
        part.write_text(mesh.export(file_type='obj', include_normals=True))


def write_glb(people, faces, path, colours=None):
    """The people of a picture as binary glTF, one node each, where they stand before the camera.

    Args:
        people: (P, V, 3), metres, camera frame. faces: (F, 3).
        path: of the file.
        colours: (P, 3) in [0, 1]; None for one grey.
    """
    trimesh = _import_trimesh()
    scene = trimesh.Scene()
    for person, vertices in enumerate(people):
        colour = (0.7, 0.7, 0.7) if colours is None else colours[person]
        material = trimesh.visual.material.PBRMaterial(
            baseColorFactor=[*colour, 1.0], metallicFactor=0.0, roughnessFactor=0.6
        )
        mesh = _upright_mesh(vertices, faces)
        mesh.visual = trimesh.visual.TextureVisuals(material=material)
        scene.add_geometry(mesh, node_name=f'person{person}', geom_name=f'person{person}')
    with whole_file(path) as part:
        part.write_bytes(trimesh.exchange.gltf.export_glb(scene, include_normals=True))


def _upright_mesh(vertices, faces):
    """trimesh.Trimesh with y up, lit smoothly.

    Its normals weigh faces by area. trimesh's own weigh them by angle, by which the few small faces
    that are folded over in the embedded body turn the normals around them inside out.
    """
    vertices = vertices * CAMERA_TO_Y_UP
    a, b, c = (vertices[corner] for corner in np.asarray(faces).T)
    normals = np.zeros_like(vertices)
    for corner in np.asarray(faces).T:
        np.add.at(normals, corner, np.cross(b - a, c - a))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return _import_trimesh().Trimesh(vertices, faces, vertex_normals=normals, process=False)


def _import_trimesh():
    try:
        import trimesh
    except ImportError as error:
        raise ImportError('writing OBJ and GLB needs trimesh: pip install trimesh') from error
    return trimesh


# ---------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------
def write_image(image, path):
    """(H, W, 3) uint8 BGR as the format that the suffix names."""
    suffix = Path(path).suffix
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix in ('.jpg', '.jpeg') else []
    encoded, data = cv2.imencode(suffix, image, quality)
    if not encoded:
        raise ValueError(f'OpenCV does not write {suffix} pictures of {image.shape}; use .jpg')
    with whole_file(path) as part:
        part.write_bytes(data.tobytes())


class VideoWriter:
    """H.264 in MP4, as browsers, QuickTime and VLC play it (yuv420p, index in front).

    Args:
        path: of the file, which is written in place: give it to `whole_file` first.
        fps: frames a second.
        shape: (H, W) of the pictures; an odd side loses a pixel, which H.264 cannot hold.
    """

    def __init__(self, path, fps, shape):
        av = import_av()
        self.av = av
        self.height, self.width = (max(side - side % 2, 2) for side in shape)
        self.container = av.open(str(path), 'w', format='mp4', options={'movflags': 'faststart'})
        self.stream = self.container.add_stream(
            'libx264', rate=Fraction(fps).limit_denominator(1001)
        )
        self.stream.width, self.stream.height = self.width, self.height
        self.stream.pix_fmt = 'yuv420p'
        # No B-frames: files that are joined then follow each other in time without gaps.
        self.stream.options = {'preset': 'veryfast', 'crf': '20', 'bf': '0'}

    def write(self, image):
        """Append (H, W, 3) uint8 BGR; pictures of another size are fitted."""
        if image.shape[0] < self.height or image.shape[1] < self.width:
            image = cv2.resize(image, (self.width, self.height))
        image = np.ascontiguousarray(image[: self.height, : self.width])
        frame = self.av.VideoFrame.from_ndarray(image, format='bgr24')
        self.container.mux(self.stream.encode(frame))

    def close(self):
        try:
            self.container.mux(self.stream.encode())
        finally:
            self.container.close()


def concatenate_videos(parts, path):
    """Join MP4 files of one encoder and size, without encoding them again."""
    av = import_av()
    with (
        whole_file(path) as target,
        av.open(str(target), 'w', format='mp4', options={'movflags': 'faststart'}) as out,
    ):
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

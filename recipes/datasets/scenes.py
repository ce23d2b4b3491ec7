"""Synthetic road scenes, seen by a camera, a lidar and a radar: a small ray-caster over boxes, in numpy.

Everything here is **synthetic**: shapes are boxes, the camera is a pinhole with flat shading, fog and noise, the
lidar measures ranges with noise and drop-outs, the radar is a simulated FMCW front end (two FFTs over a beat
signal). A model trained on it knows these boxes and no road.

Coordinates in metres, of the car that carries the sensors: x forward, y left, z up, the ground at z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KINDS = ("car", "truck", "pedestrian", "cyclist", "pole", "container")
CAR, TRUCK, PEDESTRIAN, CYCLIST, POLE, CONTAINER = range(6)
ABSENT = -1

SENSOR = np.array([0.0, 0.0, 1.6], np.float32)
"""Where camera, lidar and radar sit."""
FIELD = np.pi / 2
"""Horizontal field of view of camera and lidar, in radians."""

_SHAPES: dict[int, tuple[tuple[float, ...], ...]] = {  # offset x, z; length, width, height; brightness
    CAR: ((0.0, 0.5, 4.3, 1.8, 0.8, 1.0), (-0.2, 1.2, 2.2, 1.6, 0.6, 0.25)),
    TRUCK: ((-0.9, 1.9, 6.6, 2.5, 2.8, 1.0), (3.4, 1.3, 1.8, 2.4, 2.2, 0.6)),
    PEDESTRIAN: ((0.0, 0.75, 0.45, 0.6, 1.5, 1.0), (0.0, 1.65, 0.25, 0.25, 0.3, 1.8)),
    CYCLIST: ((0.0, 0.45, 1.8, 0.25, 0.9, 0.3), (-0.1, 1.3, 0.5, 0.55, 0.9, 1.0)),
    POLE: ((0.0, 1.3, 0.3, 0.3, 2.6, 1.0), (0.0, 2.2, 0.5, 0.5, 0.5, 1.4)),
    CONTAINER: ((0.0, 0.7, 4.0, 1.8, 1.4, 1.0), (0.0, 1.0, 4.1, 1.85, 0.1, 0.9)),
}
_FACES = np.array([0.7, 0.5, 1.0], np.float32)  # brightness of the faces across x, y, z of a box


@dataclass(frozen=True, slots=True)
class Objects:
    """What stands in one scene, K objects.

    Attributes:
        kind: `[K]`, index into `KINDS`.
        place: `[K, 2]`, x and y of the centre in metres.
        yaw: `[K]`, heading in radians, 0 along x.
        colour: `[K, 3]`, RGB from 0 to 1.
    """

    kind: np.ndarray
    place: np.ndarray
    yaw: np.ndarray
    colour: np.ndarray

    def boxes(self) -> _Boxes:
        """Returns the boxes that the objects are made of, two each."""
        parts = np.array([_SHAPES[int(k)] for k in self.kind], np.float32).reshape(-1, 2, 6)
        cosine, sine = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        x = self.place[:, :1] + cosine * parts[..., 0]
        y = self.place[:, 1:] + sine * parts[..., 0]
        centre = np.stack([x, y, parts[..., 1]], -1).reshape(-1, 3)
        colour = np.clip(self.colour[:, None] * parts[..., 5:], 0.02, 1.0).reshape(-1, 3)
        yaw = np.repeat(self.yaw, 2)
        return _Boxes(*(a.astype(np.float32) for a in (centre, parts[..., 2:5].reshape(-1, 3) / 2, yaw, colour)))

    def footprints(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns length and width `[K, 2]`, and the middle `[K, 2]`, of the ground under each, in metres."""
        parts = np.array([_SHAPES[int(k)] for k in self.kind], np.float32).reshape(-1, 2, 6)
        low = (parts[..., 0] - parts[..., 2] / 2).min(1)
        high = (parts[..., 0] + parts[..., 2] / 2).max(1)
        middle = (low + high)[:, None] / 2 * np.stack([np.cos(self.yaw), np.sin(self.yaw)], -1)
        return np.stack([high - low, parts[..., 3].max(1)], -1), self.place + middle


@dataclass(frozen=True, slots=True)
class _Boxes:
    centre: np.ndarray  # [P, 3]
    half: np.ndarray  # [P, 3]
    yaw: np.ndarray  # [P]
    colour: np.ndarray  # [P, 3]


@dataclass(frozen=True, slots=True)
class Hits:
    """What rays met first.

    Attributes:
        distance: `[R]` metres; infinite where the ray leaves the scene.
        part: `[R]`, index of the box (object = part // 2), -1 for the ground, -2 for nothing.
        face: `[R]`, axis of the box's face, 0 to 2.
    """

    distance: np.ndarray
    part: np.ndarray
    face: np.ndarray


def cast(directions: np.ndarray, boxes: _Boxes) -> Hits:
    """Returns what rays from the sensor meet first: the slab test of Kay and Kajiya (1986) in each box's frame.

    Args:
        directions: `[R, 3]`, of length 1.
        boxes: Turned about z.
    """
    cosine, sine = np.cos(boxes.yaw)[:, None], np.sin(boxes.yaw)[:, None]

    def turned(vector: np.ndarray) -> np.ndarray:  # [P or 1, 3, R] in the frame of each box
        x, y, z = vector[:, 0], vector[:, 1], vector[:, 2]
        return np.stack(np.broadcast_arrays(cosine * x + sine * y, cosine * y - sine * x, z), 1)

    ray = turned(directions.T[None])
    ray = np.where(np.abs(ray) < 1e-6, np.float32(1e-6), ray)
    start = turned((SENSOR - boxes.centre)[:, :, None])
    one, other = (-boxes.half[:, :, None] - start) / ray, (boxes.half[:, :, None] - start) / ray
    near = np.minimum(one, other)
    enter, leave = near.max(1), np.maximum(one, other).min(1)
    enter[(enter >= leave) | (enter <= 0)] = np.inf
    rays = np.arange(len(directions))
    part = enter.argmin(0) if len(enter) else np.zeros(len(directions), int)
    distance = enter[part, rays] if len(enter) else np.full(len(directions), np.inf, np.float32)
    face = near[part, :, rays].argmax(1) if len(enter) else np.zeros(len(directions), int)
    down = directions[:, 2] < -1e-3
    ground = np.full(len(directions), np.inf, np.float32)
    ground[down] = -SENSOR[2] / directions[down, 2]
    part = np.where(np.isinf(distance), -2, part)
    part = np.where(ground < distance, -1, part)
    return Hits(np.minimum(distance, ground).astype(np.float32), part, face)


def pixel_rays(height: int, width: int) -> np.ndarray:
    """Returns the directions `[height * width, 3]` through the pixels of a pinhole camera that looks along x."""
    reach = np.tan(FIELD / 2)
    left = (1 - (np.arange(width) + 0.5) * 2 / width) * reach
    up = (1 - (np.arange(height) + 0.5) * 2 / height) * reach * height / width
    grid = np.stack(np.broadcast_arrays(1.0, left[None, :], up[:, None]), -1).reshape(-1, 3)
    return (grid / np.linalg.norm(grid, axis=1, keepdims=True)).astype(np.float32)


def beam_rays(beams: int, columns: int) -> np.ndarray:
    """Returns the directions `[beams * columns, 3]` of a lidar: from 2 degrees up to 15 down, across the field."""
    pitch = np.deg2rad(np.linspace(2, -15, beams))[:, None]
    turn = FIELD * (0.5 - (np.arange(columns) + 0.5) / columns)[None]
    grid = np.stack([np.cos(pitch) * np.cos(turn), np.cos(pitch) * np.sin(turn), np.sin(pitch) + 0 * turn], -1)
    return grid.reshape(-1, 3).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Weather:
    """What the light does to a picture.

    Attributes:
        sight: Metres after which fog leaves 1 / e of a colour.
        light: Brightness, 1 at noon.
        noise: Standard deviation of a pixel that goes from 0 to 1.
    """

    sight: float
    light: float
    noise: float


def photograph(
    rng: np.random.Generator, boxes: _Boxes, size: tuple[int, int], weather: Weather
) -> tuple[np.ndarray, np.ndarray]:
    """Returns an RGB picture `[3, height, width]` float32 in [0, 1], and the part `[height, width]` at each."""
    rays = pixel_rays(*size)
    hits = cast(rays, boxes)
    colour = np.empty((len(rays), 3), np.float32)
    sky, ground, solid = hits.part == -2, hits.part == -1, hits.part >= 0
    colour[sky] = np.array([0.65, 0.75, 0.9]) + 0.1 * rays[sky, 2:]
    points = rays[ground] * hits.distance[ground, None]
    line = (np.abs(np.abs(points[:, 1]) - 1.8) < 0.12) & (points[:, 0] % 6 < 4)
    colour[ground] = np.where(line, 0.85, 0.35 + 0.05 * rng.standard_normal(len(line)))[:, None]
    colour[solid] = boxes.colour[hits.part[solid]] * _FACES[hits.face[solid], None]
    seen = np.exp(-np.minimum(hits.distance, 200.0) / weather.sight)[:, None]
    colour = weather.light * (colour * seen + 0.75 * (1 - seen))
    colour += rng.normal(0, weather.noise, colour.shape)
    picture = np.clip(colour, 0, 1).T.reshape(3, *size)
    return picture.astype(np.float32), hits.part.reshape(size)


def scan(rng: np.random.Generator, boxes: _Boxes, beams: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns lidar points `[N, 4]` float32 (x, y, z in metres, intensity 0 to 1), and the part `[N]` each hit.

    Ranges have 3 cm of noise; one return in twenty is lost, and all beyond 60 m.
    """
    rays = beam_rays(beams, columns)
    hits = cast(rays, boxes)
    kept = (hits.distance < 60) & (rng.random(len(rays)) > 0.05)
    rays, part = rays[kept], hits.part[kept]
    distance = hits.distance[kept] + rng.normal(0, 0.03, len(rays))
    bright = np.where(part >= 0, boxes.colour.mean(1)[np.maximum(part, 0)], 0.3) if len(boxes.yaw) else 0.3
    intensity = np.clip(bright + rng.normal(0, 0.1, len(rays)), 0, 1)
    points = np.column_stack([SENSOR + rays * distance[:, None], intensity])
    return points.astype(np.float32), part


@dataclass(frozen=True, slots=True)
class Echoes:
    """Point reflectors before a radar, N of them.

    Attributes:
        range: Metres.
        speed: Metres per second away from the radar.
        strength: Amplitude.
    """

    range: np.ndarray
    speed: np.ndarray
    strength: np.ndarray


RANGE_STEP, SPEED_STEP = 1.25, 0.75
"""Resolution of the radar: metres, and metres per second."""


def range_doppler(rng: np.random.Generator, echoes: Echoes, ranges: int, speeds: int, noise: float) -> np.ndarray:
    """Returns the radar's range-Doppler map `[ranges, speeds]` float32, decibels over the noise, zero speed amid.

    The beat signal of a linear FMCW radar (Stove 1992): each reflector is a tone along a chirp (its range) whose
    phase turns from chirp to chirp (its speed); Hann windows, an FFT along each axis, the power in decibels.

    Args:
        rng: Phases and noise.
        echoes: What reflects.
        ranges: Range bins of `RANGE_STEP`.
        speeds: Doppler bins of `SPEED_STEP`, that many chirps.
        noise: Standard deviation of the receiver's noise per sample.
    """
    fast, slow = np.arange(2 * ranges), np.arange(speeds)
    phase = np.exp(2j * np.pi * rng.random(len(echoes.range))) * echoes.strength
    along = np.exp(2j * np.pi * np.outer(echoes.range / RANGE_STEP / (2 * ranges), fast)) * phase[:, None]
    across = np.exp(2j * np.pi * np.outer(echoes.speed / SPEED_STEP / speeds, slow))
    beat = along.T @ across
    beat = beat + noise * (rng.standard_normal(beat.shape) + 1j * rng.standard_normal(beat.shape))
    beat = beat * np.hanning(2 * ranges)[:, None] * np.hanning(speeds)
    spectrum = np.fft.fftshift(np.fft.fft2(beat)[:ranges], axes=1)
    floor = noise * np.sqrt(2 * np.sum(np.hanning(2 * ranges) ** 2) * np.sum(np.hanning(speeds) ** 2))
    return (20 * np.log10(np.abs(spectrum) / floor + 1e-2)).astype(np.float32)


_REFLECTORS = {  # how many, spread of range in metres and of speed in m/s, amplitude
    CAR: (5, 1.4, 0.3, 0.9),
    TRUCK: (6, 1.8, 0.3, 1.0),
    PEDESTRIAN: (5, 0.3, 0.6, 0.6),
    CYCLIST: (5, 0.7, 0.8, 0.7),
    POLE: (1, 0.1, 0.0, 0.5),
    CONTAINER: (4, 1.5, 0.0, 1.0),
}


def echoes_of(rng: np.random.Generator, kind: int, distance: float, speed: float) -> Echoes:
    """Returns the reflectors of one object: rigid bodies echo at one speed, limbs and wheels around it."""
    count, depth, spread, strength = _REFLECTORS[kind]
    return Echoes(
        distance + rng.uniform(-depth, depth, count),
        speed + rng.normal(0, spread or 1e-6, count),
        strength * rng.rayleigh(0.8, count) * (10 / max(distance, 5.0)),
    )

"""One study to one picture: body, findings, exposure, lung mask and boxes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulations.phantom import acquisition
from simulations.phantom.anatomy import LEFT, RIGHT, Body, Thorax, sample_body, with_view
from simulations.phantom.fields import Field, Pose, noise, single
from simulations.phantom.findings import SIGNS
from simulations.phantom.scene import Box, Lesion, Scene

# What is drawn from which stream of random numbers. Streams are separate so that a finding more
# or less leaves everything else on the picture as it was.
BODY, STANCE, TISSUE, TEXTURE, FILM, WARD, LESION = range(10, 17)


@dataclass(frozen=True)
class Study:
    """One image to make. `findings` pairs names with a severity 0..1; `hospital` counts from 0."""

    seed: int
    patient: int
    follow_up: int
    age: int
    sex: str
    view: str
    hospital: int
    findings: tuple[tuple[str, float], ...] = ()
    labelled: bool = True

    @property
    def image(self) -> str:
        """File name in the release's form, for example 00000001_000.png."""
        return f"{self.patient:08d}_{self.follow_up:03d}.png"

    def rng(self, stream: int, *more: int) -> np.random.Generator:
        """This patient's generator for one stream, the same in every process."""
        key = (0, self.patient, stream, *more)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


@dataclass(frozen=True)
class Radiograph:
    """picture (size, size) uint8; mask (size, size) bool; boxes as (finding, box)."""

    picture: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    boxes: list[tuple[str, Box]]


def lesions(study: Study) -> dict[str, Lesion]:
    """Where each finding of the study sits and how severe it is, in the order of `SIGNS`."""
    severity = dict(study.findings)
    found: dict[str, Lesion] = {}
    for number, name in enumerate(SIGNS):
        if name in severity:
            rng = study.rng(LESION, number)
            side = LEFT if rng.random() < 0.45 else RIGHT
            found[name] = Lesion(side, severity[name], rng)
    return found


def stance(study: Study) -> tuple[Body, Pose]:
    """The patient's body on this image, findings included, and the pose before the detector."""
    own, now = study.rng(BODY), study.rng(STANCE, study.follow_up)
    body = sample_body(own, study.age, study.sex)
    bend = 0.02 * own.standard_normal()
    zoom = 1.13 + 0.04 * own.standard_normal() + 0.03 * now.standard_normal()
    if study.view == "AP":
        zoom -= 0.06
    body = with_view(body, study.view, 0.025 * now.standard_normal())
    for name, lesion in lesions(study).items():
        body = SIGNS[name].reshape(body, lesion)
    zoom = min(zoom, 0.92 / body.half_width)  # the film takes in both lungs
    tilted = 0.035 if study.view == "AP" else 0.015
    pose = Pose(
        zoom=float(np.clip(zoom, 0.96, 1.20)),
        angle=float(np.clip(tilted * now.standard_normal(), -0.09, 0.09)),
        dx=float(np.clip(0.025 * now.standard_normal(), -0.07, 0.07)),
        dy=float(np.clip(0.10 + 0.03 * now.standard_normal(), 0.02, 0.18)),
        bend=float(np.clip(bend, -0.05, 0.05)),
    )
    return body, pose


def scene_of(study: Study, size: int) -> Scene:
    """The chest with its findings, `size` pixels wide and high, before the exposure."""
    body, pose = stance(study)
    x, y = pose.grid(size)
    scene = Scene(Thorax(body, x, y, size), pose, study.rng(TISSUE), study.view)
    for name, lesion in lesions(study).items():
        SIGNS[name].paint(scene, lesion)
    return scene


def render(study: Study, size: int) -> Radiograph:
    """Picture, lung mask and boxes of a study; the same bytes for the same study and size.

    The mask is the lung field that the heart leaves free, as an annotator would outline it. It
    follows changes of shape (heart, diaphragm) but not opacities: a lung full of fluid is lung.
    """
    scene = scene_of(study, size)
    profile = acquisition.unit(study.seed, study.hospital)
    attenuation = scene.attenuation() + _texture(scene, study.rng(TEXTURE, study.follow_up))
    film = study.rng(FILM, study.follow_up)
    if study.view == "AP":
        ward = study.rng(WARD, study.follow_up)
        drain = _drain(study, ward)
        body, pose = scene.thorax.body, scene.pose
        attenuation = attenuation + acquisition.devices(body, pose, size, ward, drain)
    letter = acquisition.marker(profile, size, film)
    attenuation = attenuation * (1.0 - letter) + letter
    picture = acquisition.expose(single(attenuation), profile, study.view, film)
    boxes = [(name, box) for name, _ in study.findings for box in scene.boxes(name)]
    return Radiograph(picture, scene.thorax.mask, boxes)


def _texture(scene: Scene, rng: np.random.Generator) -> Field:
    """Fine interstitial pattern in the lungs and soft unevenness elsewhere."""
    fine = 0.011 * noise(rng, 48, scene.size) + 0.010 * noise(rng, 24, scene.size)
    soft = 0.010 * noise(rng, 7, scene.size)
    return single(scene.depth * (fine + soft) + 0.6 * soft * (1.0 - scene.depth))


def _drain(study: Study, rng: np.random.Generator) -> int:
    """The side of a chest tube: now and then with air in the pleural space, else none."""
    air = lesions(study).get("Pneumothorax")
    return air.side if air is not None and rng.random() < 0.25 else 0

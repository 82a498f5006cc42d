"""The pictures: anatomy, masks, and for every finding a sign where a radiologist expects it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from common.findings import FINDINGS
from simulations.phantom.anatomy import LEFT, RIGHT
from simulations.phantom.findings import SIGNS
from simulations.phantom.render import Study, lesions, render, scene_of, stance

SIZE = 128


def study(patient: int = 1, view: str = "PA", **changes: object) -> Study:
    plain = Study(
        seed=3, patient=patient, follow_up=0, age=55, sex="M", view=view, hospital=patient % 4
    )
    return replace(plain, **changes)


def with_finding(plain: Study, name: str, severity: float = 0.8) -> Study:
    return replace(plain, findings=((name, severity),))


def components(mask: np.ndarray) -> int:
    """Number of 4-connected pieces."""
    return int(ndimage.label(mask)[1])


def change(plain: Study, name: str, severity: float = 0.8) -> np.ndarray:
    """What the finding does to attenuation: (SIZE, SIZE), positive is whiter."""
    after = scene_of(with_finding(plain, name, severity), SIZE).attenuation()
    return after - scene_of(plain, SIZE).attenuation()


def test_every_finding_has_a_sign() -> None:
    assert set(SIGNS) == set(FINDINGS)


def test_a_picture_is_8_bit_and_uses_the_grey_scale() -> None:
    film = render(study(), SIZE)
    assert film.picture.shape == (SIZE, SIZE)
    assert film.picture.dtype == np.uint8
    assert np.percentile(film.picture, 98) > 190
    assert np.percentile(film.picture, 2) < 60


@pytest.mark.parametrize("size", [32, 64, 200])
def test_other_sizes_show_the_same_chest(size: int) -> None:
    small, large = render(study(), size), render(study(), 256)
    resized = Image.fromarray(large.picture).resize((size, size), Image.Resampling.BOX)
    away = np.abs(np.asarray(resized, dtype=float) - small.picture).mean()
    assert away < 12
    assert abs(small.mask.mean() - large.mask.mean()) < 0.03


def test_the_same_study_gives_the_same_bytes() -> None:
    one, two = render(study(), SIZE), render(study(), SIZE)
    assert one.picture.tobytes() == two.picture.tobytes()
    assert one.mask.tobytes() == two.mask.tobytes()


def test_lungs_are_dark_and_heart_and_abdomen_bright() -> None:
    for patient in range(1, 13):
        plain = study(patient, view="AP" if patient % 3 == 0 else "PA")
        picture = render(plain, SIZE).picture.astype(float)
        thorax = scene_of(plain, SIZE).thorax
        lungs = picture[thorax.mask].mean()
        heart = (thorax.heart > 0.9) & (thorax.y > 0.05) & (thorax.below < 0.1)
        assert picture[heart].mean() > lungs + 50
        abdomen = (thorax.below > 0.9) & (np.abs(thorax.x) < 0.4) & (thorax.y < 0.75)
        assert picture[abdomen].mean() > lungs + 50


@pytest.mark.parametrize("size", [32, 128])
def test_masks_are_two_lungs_of_plausible_size(size: int) -> None:
    hard = ("Cardiomegaly", "Atelectasis", "Emphysema", "Fibrosis")
    for patient in range(1, 31):
        view = "AP" if patient % 2 else "PA"
        age = (2, 8, 40, 90)[patient % 4]
        names = hard[: patient % 5]
        film = render(
            study(patient, view, age=age, findings=tuple((name, 1.0) for name in names)), size
        )
        assert components(film.mask) == 2
        assert 0.15 < film.mask.mean() < 0.5


def test_the_right_lung_is_larger_and_the_right_diaphragm_higher() -> None:
    larger = 0
    for patient in range(1, 21):
        body, _ = stance(study(patient))
        assert body.dome_right < body.dome_left
        thorax = scene_of(study(patient), 64).thorax
        larger += int(thorax.mask[thorax.x < 0].sum() > thorax.mask[thorax.x > 0].sum())
    assert larger >= 18


def test_heart_is_within_half_of_the_chest_and_cardiomegaly_beyond() -> None:
    for patient in range(1, 41):
        normal, _ = stance(study(patient))
        assert 0.33 < normal.cardiothoracic_ratio < 0.52
        assert normal.heart_left > normal.heart_right
        large, _ = stance(with_finding(study(patient), "Cardiomegaly", 0.0))
        assert large.cardiothoracic_ratio > 0.53


def test_ap_shows_a_larger_heart_and_a_higher_diaphragm() -> None:
    pairs = [(stance(study(p))[0], stance(study(p, "AP"))[0]) for p in range(1, 11)]
    assert all(ap.cardiothoracic_ratio > pa.cardiothoracic_ratio for pa, ap in pairs)
    assert all(ap.dome_right < pa.dome_right for pa, ap in pairs)


@pytest.mark.parametrize("name", sorted(set(FINDINGS) - {"Cardiomegaly", "Emphysema", "Hernia"}))
def test_a_finding_changes_its_lung_and_is_visible_on_the_picture(name: str) -> None:
    for patient in (4, 5, 6):
        plain = study(patient)
        ill = with_finding(plain, name)
        scene = scene_of(ill, SIZE)
        shown = scene.shown[name]
        assert shown.max() > 0.3
        inside = scene.lung(LEFT).inside + scene.lung(RIGHT).inside
        assert shown[inside < 0.02].max(initial=0.0) < 0.2
        before, after = render(plain, SIZE).picture, render(ill, SIZE).picture
        core = (shown > 0.6 * shown.max()) & (scene.thorax.heart < 0.2)
        moved = (after.astype(float) - before.astype(float))[core]
        darker = name == "Pneumothorax"
        assert (-moved if darker else moved).mean() > (4 if darker else 18)


@pytest.mark.parametrize("name", ["Mass", "Consolidation", "Pneumonia", "Pneumothorax"])
def test_one_sided_findings_leave_the_other_lung_alone(name: str) -> None:
    plain = study(9)
    side = lesions(with_finding(plain, name))[name].side
    scene = scene_of(plain, SIZE)
    other = (scene.lung(scene.other(side)).inside > 0.5) & (scene.thorax.heart < 0.01)
    assert np.abs(change(plain, name)[other]).max() < 0.01


def test_pneumothorax_is_a_rim_without_vessels_beside_the_wall() -> None:
    scene = scene_of(with_finding(study(2), "Pneumothorax"), SIZE)
    side = lesions(with_finding(study(2), "Pneumothorax"))["Pneumothorax"].side
    rim = scene.shown["Pneumothorax"] > 0.9
    assert scene.markings[rim].max() < 0.15
    assert scene.lung(side).rim[rim].max() < 0.4


def test_effusion_lies_low_and_climbs_to_the_side() -> None:
    ill = with_finding(study(2), "Effusion", 0.7)
    scene = scene_of(ill, SIZE)
    side = lesions(ill)["Effusion"].side
    lung = scene.lung(side)
    fluid = (scene.shown["Effusion"] > 0.5) & (lung.inside > 0.5)
    assert scene.y[fluid].min() > scene.thorax.body.apex + 0.4
    outer, inner = fluid & (lung.out > 0.60), fluid & (lung.out < 0.45)
    assert scene.y[outer].min() < scene.y[inner].min()


def test_nodules_are_under_and_masses_over_three_centimetres() -> None:
    centimetre = 1.0 / 20.0  # body units; see anatomy
    for severity in (0.0, 1.0):
        for name, low, high in (("Nodule", 1.0, 3.0), ("Mass", 3.0, 8.0)):
            scene = scene_of(with_finding(study(8), name, severity), 512)
            x, _, w, _ = scene.boxes(name)[0]
            if name == "Mass":
                wide = w / 512.0 / scene.pose.zoom
                assert low * centimetre < wide < high * centimetre
            share = float((scene.shown[name] > 0.4).mean()) * 4.0 / scene.pose.zoom**2
            spots = 3 if name == "Nodule" else 1
            assert share < spots * np.pi * (high * centimetre / 2.0) ** 2
            assert x >= 0.0


def test_emphysema_darkens_flattens_and_narrows() -> None:
    plain = study(3)
    before, after = stance(plain)[0], stance(with_finding(plain, "Emphysema"))[0]
    assert after.dome_right > before.dome_right + 0.05
    assert after.angle - after.dome_right < before.angle - before.dome_right
    assert after.cardiothoracic_ratio < before.cardiothoracic_ratio
    mask = render(plain, SIZE).mask & render(with_finding(plain, "Emphysema"), SIZE).mask
    assert change(plain, "Emphysema")[mask].mean() < -0.02


def test_atelectasis_raises_the_diaphragm_and_pulls_the_mediastinum() -> None:
    plain = study(3)
    ill = with_finding(plain, "Atelectasis")
    side = lesions(ill)["Atelectasis"].side
    before, after = stance(plain)[0], stance(ill)[0]
    raised = before.dome_right - after.dome_right + before.dome_left - after.dome_left
    assert raised > 0.05
    assert np.sign(after.shift) == side


def test_edema_is_on_both_sides_and_fibrosis_at_the_bases() -> None:
    wings = scene_of(with_finding(study(5), "Edema"), SIZE)
    for side in (RIGHT, LEFT):
        lung = wings.lung(side).inside > 0.5
        near = lung & (wings.lung(side).out < 0.4) & (np.abs(wings.y) < 0.15)
        far = lung & (wings.lung(side).height < 0.2)
        assert wings.fill[near].mean() > wings.fill[far].mean() + 0.3
    net = scene_of(with_finding(study(5), "Fibrosis"), SIZE)
    lung = net.lung(RIGHT)
    low, high = (lung.height > 0.75), (lung.height < 0.35)
    inside = lung.inside > 0.5
    assert net.fill[inside & low].mean() > net.fill[inside & high].mean() + 0.15


def test_hernia_holds_air_above_a_level_behind_the_heart() -> None:
    plain = study(6)
    scene = scene_of(with_finding(plain, "Hernia"), SIZE)
    body = scene.thorax.body
    where = scene.shown["Hernia"] > 0.5
    assert np.abs(scene.x[where].mean()) < 0.25
    assert scene.y[where].mean() > body.dome_left - 0.35
    moved = change(plain, "Hernia")
    middle = float(scene.y[where].mean())
    above, beneath = where & (scene.y < middle - 0.08), where & (scene.y > middle + 0.08)
    assert moved[above].mean() < -0.05 < 0.05 < moved[beneath].mean()


def test_the_finding_stays_in_place_over_follow_ups() -> None:
    for name in ("Mass", "Pneumothorax", "Effusion"):
        first = with_finding(study(11), name)
        again = replace(first, follow_up=3)
        assert lesions(first)[name].side == lesions(again)[name].side


def test_boxes_enclose_the_finding_in_1024_px() -> None:
    film = render(with_finding(study(7), "Mass"), SIZE)
    assert [name for name, _ in film.boxes] == ["Mass"]
    x, y, w, h = film.boxes[0][1]
    assert 0 <= x < x + w <= 1024
    assert 0 <= y < y + h <= 1024
    plain = render(study(7), SIZE).picture.astype(float)
    scale = SIZE / 1024
    rows = slice(round(y * scale), round((y + h) * scale))
    columns = slice(round(x * scale), round((x + w) * scale))
    assert (film.picture.astype(float) - plain)[rows, columns].mean() > 20
    assert render(study(7), SIZE).boxes == []


def test_hospitals_differ_in_acquisition() -> None:
    means = [render(study(12, hospital=k), 64).picture[20:44, 20:44].mean() for k in range(4)]
    assert max(means) - min(means) > 10


def test_bedside_films_carry_devices_and_a_drain_for_pneumothorax() -> None:
    ill = with_finding(study(1, "AP"), "Pneumothorax")
    films = [render(replace(ill, patient=p), 64).picture for p in range(1, 13)]
    assert len({film.tobytes() for film in films}) == len(films)

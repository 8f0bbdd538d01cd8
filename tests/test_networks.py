"""Overlap of maps with templates, and what a stream of candidates becomes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from bids_fbn.networks import dynamics
from bids_fbn.networks import overlap as overlap_module
from bids_fbn.networks.dynamics import find_networks, network_courses
from bids_fbn.networks.maps import SupportRule, find_peaks, label_voxels, zscore_maps
from bids_fbn.networks.overlap import (
    Match,
    Matcher,
    Overlap,
    assign_one_to_one,
    overlap_with_templates,
    support_iou,
    support_of,
)
from bids_fbn.networks.templates import TemplateSet
from bids_fbn.signal.windows import Steps, lay_windows

RULES = [
    SupportRule(),
    SupportRule(either_sign=False),
    SupportRule(1.0),
    SupportRule(0.8, standardize=False, either_sign=False),
]


def template_set(maps: np.ndarray, threshold: float = 1.0) -> TemplateSet:
    names = tuple(f"N{number}" for number in range(len(maps)))
    return TemplateSet("Test", names, maps, maps > threshold, "", "", "")


def overlap(maps: Any, supports: Any, rule: SupportRule) -> Overlap:
    supports = np.asarray(supports, dtype=bool)
    return overlap_with_templates(
        np.asarray(maps, dtype=np.float32), supports.astype(np.float32), supports, rule
    )


# --- one map, one template ----------------------------------------------------------------------


def block(start: int, shape: tuple[int, int, int] = (12, 10, 10)) -> np.ndarray:
    """4 × 4 × 4 voxels of 1 from `start` along x, flat."""
    volume = np.zeros(shape, dtype=np.float32)
    volume[start : start + 4, 3:7, 3:7] = 1
    return volume.ravel()


@pytest.mark.parametrize(
    ("shift", "iou", "dice"), [(0, 1, 1), (1, 48 / 80, 0.75), (2, 32 / 96, 0.5), (4, 0, 0)]
)
def test_iou_and_dice_of_a_shifted_block(shift: int, iou: float, dice: float) -> None:
    rule = SupportRule(0.5, standardize=False, either_sign=False)
    found = overlap(block(3 + shift)[None], block(3)[None] > 0, rule)
    assert found.iou[0, 0] == pytest.approx(iou)
    assert found.dice[0, 0] == pytest.approx(dice)
    # The same by size: values inside the block differ, so that there are no ties.
    graded = block(3 + shift) + 0.01 * np.random.default_rng(0).random(1200)
    found = overlap(graded[None], block(3)[None] > 0, SupportRule(either_sign=False))
    assert found.iou[0, 0] == pytest.approx(iou)
    assert found.dice[0, 0] == pytest.approx(dice)


def test_two_empty_supports_have_no_overlap() -> None:
    nothing = np.zeros((1, 5), dtype=bool)
    for rule in RULES:
        found = overlap(np.arange(5.0)[None] - 10, nothing, rule)
        assert found.iou[0, 0] == found.dice[0, 0] == 0
    assert support_iou(nothing[0], nothing[0]) == 0
    assert support_iou(np.array([True, True, False]), np.array([False, True, True])) == 1 / 3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [0.0, 0.3, 1e6])
def test_a_constant_map_is_like_nothing(rule: SupportRule, value: float) -> None:
    maps = np.full((1, 301), value, dtype=np.float32)
    if rule.standardize:
        maps = zscore_maps(maps)
        assert not maps.any()
    supports = np.arange(301) < 50
    found = overlap(maps * (value < 1), supports[None], rule)
    assert (found.iou[0, 0], found.dice[0, 0], found.r[0, 0]) == (0, 0, 0)
    assert not support_of(np.zeros(301), SupportRule(), 50).any()


def test_z_scores_are_those_of_numpy() -> None:
    maps = np.random.default_rng(0).normal(3, 2, (4, 500)).astype(np.float32)
    by_hand = (maps - maps.mean(axis=1, keepdims=True)) / maps.std(axis=1, keepdims=True)
    assert np.allclose(zscore_maps(maps), by_hand, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 77, 299, 300])
def test_size_matched_supports_have_as_many_voxels_as_the_template(size: int) -> None:
    values = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    support = support_of(values, SupportRule(), size)
    assert support.sum() == size
    assert size == 300 or values[support].min() > values[~support].max()
    template = np.random.default_rng(1).permutation(300) < size
    found = overlap(values[None], template[None], SupportRule(either_sign=False))
    assert found.iou[0, 0] == pytest.approx(float(support_iou(support, template)))
    assert found.dice[0, 0] == pytest.approx((support & template).sum() / size)


def test_a_flat_map_with_a_spike_is_no_perfect_match() -> None:
    spike = np.zeros((1, 300), dtype=np.float32)
    spike[0, 7] = 1
    template = np.arange(300) < 60
    found = overlap(spike, template[None], SupportRule())
    assert found.iou[0, 0] == pytest.approx(1 / 60)
    assert support_of(spike[0], SupportRule(), 60).sum() == 1


@pytest.mark.parametrize("rule", RULES)
def test_supports_and_overlaps_follow_the_same_rule(rule: SupportRule) -> None:
    rng = np.random.default_rng(0)
    # In steps of a quarter, so that there are ties.
    maps = (np.round(4 * rng.standard_normal((6, 400))) / 4).astype(np.float32)
    supports = rng.random((3, 400)) < 0.15
    found = overlap(maps, supports, rule)
    for k in range(6):
        for p in range(3):
            support = support_of(maps[k] * found.sign[k, p], rule, int(supports[p].sum()))
            expected = support_iou(support, supports[p])
            assert found.iou[k, p] == pytest.approx(float(expected), abs=1e-6)


def test_either_sign_takes_the_better_one() -> None:
    values = np.random.default_rng(0).standard_normal(300)
    template = values < np.sort(values)[60]
    both = overlap(values[None], template[None], SupportRule())
    assert both.iou[0, 0] == pytest.approx(1)
    assert both.sign[0, 0] == -1
    assert both.r[0, 0] > 0.5  # of the map as it was turned
    positive = overlap(values[None], template[None], SupportRule(either_sign=False))
    assert (positive.iou[0, 0], positive.sign[0, 0]) == (0, 1)
    assert positive.r[0, 0] == pytest.approx(-both.r[0, 0])
    straight = overlap(-values[None], template[None], SupportRule())
    assert straight.sign[0, 0] == 1


def test_r_is_pearsons() -> None:
    rng = np.random.default_rng(0)
    maps, templates = rng.standard_normal((5, 200)), rng.standard_normal((3, 200))
    found = overlap_with_templates(maps, templates, templates > 1, SupportRule(either_sign=False))
    expected = np.corrcoef(maps, templates)[:5, 5:]
    assert np.allclose(found.r, expected, atol=1e-6)


# --- many maps, many templates ------------------------------------------------------------------


def match_one_by_one(
    maps: np.ndarray, supports: np.ndarray, covered: np.ndarray, rule: SupportRule
) -> dict[str, np.ndarray]:
    """Map by map, template by template, sign by sign, by the definitions."""
    shape = (len(maps), len(supports))
    found = {name: np.zeros(shape) for name in ("iou", "dice", "sign")}
    counted = np.zeros((*shape, int(covered.sum())), dtype=bool)
    for k, p in np.ndindex(shape):
        values = maps[k, covered].astype(np.float64)
        if rule.standardize:
            varies = values.std() > np.finfo(np.float32).eps * abs(values.mean())
            values = (values - values.mean()) / values.std() if varies else 0 * values
        template = supports[p, covered]
        best = -1.0
        for sign in (1, -1) if rule.either_sign else (1,):
            limit = rule.threshold
            if limit is None:
                limit = [*np.sort(sign * values)[::-1], -np.inf][template.sum()]
            support = sign * values > limit
            both, sizes = (support & template).sum(), support.sum() + template.sum()
            iou = both / (sizes - both) if sizes else 0.0
            if iou > best:
                best, counted[k, p] = iou, support
                found["iou"][k, p], found["sign"][k, p] = iou, sign
                found["dice"][k, p] = 2 * both / sizes if sizes else 0.0
    return {**found, "support": counted}


def awkward_maps(n_voxels: int) -> np.ndarray:
    """Maps with what makes a comparison of ranks hard, (14, V) of float32."""
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal((4, n_voxels))
    flat = np.array([0.0, 0.3, 1e6])[:, None] * np.ones(n_voxels)
    rounding = 1e6 + 0.0625 * (np.arange(n_voxels) % 2)
    spike, far = np.zeros(n_voxels), 1e4 + 1e-2 * np.arange(n_voxels) % 7
    spike[5] = 1
    tied = np.round(2 * rng.standard_normal((3, n_voxels))) / 2
    gated = np.maximum(rng.standard_normal(n_voxels), 0)
    return np.vstack([smooth, flat, rounding, spike, far, tied, gated]).astype(np.float32)


@pytest.mark.parametrize(
    "rule",
    [
        *RULES,
        SupportRule(standardize=False),
        SupportRule(1.0, either_sign=False),
        SupportRule(0.4, standardize=False),
        SupportRule(-0.5),
    ],
)
@pytest.mark.parametrize("all_covered", [True, False])
@pytest.mark.parametrize("kind", ["array", "blocks side by side", "tensor"])
def test_a_batch_is_matched_as_its_maps_one_by_one(
    rule: SupportRule, all_covered: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_voxels = 200
    rng = np.random.default_rng(1)
    covered = np.arange(n_voxels) < (n_voxels if all_covered else 180)
    supports = np.stack([rng.random(n_voxels) < share for share in (0, 0.01, 0.1, 0.5, 0.9, 1)])
    supports = np.vstack([supports, ~covered])
    maps = awkward_maps(n_voxels)
    monkeypatch.setattr(overlap_module, "_BLOCK_BYTES", 3000)
    monkeypatch.setattr(overlap_module, "_BLOCK_BYTES_ON_GPU", 4000)
    device = torch.device("cpu") if kind == "tensor" else None
    matcher = Matcher(supports, rule, covered, device, 3 if kind == "blocks side by side" else 1)
    batch: Any = maps.reshape(2, len(maps) // 2, n_voxels)
    found = matcher.match(torch.from_numpy(batch) if kind == "tensor" else batch)
    assert found.iou.shape == (2, len(maps) // 2, len(supports))
    found = Match(*(values.reshape(len(maps), -1) for values in vars(found).values()))
    expected = match_one_by_one(maps, supports, covered, rule)
    for name in ("iou", "dice", "sign"):
        np.testing.assert_allclose(getattr(found, name), expected[name], atol=1e-6, err_msg=name)
    turned = found.sign[..., None] * maps[:, None, covered]
    np.testing.assert_array_equal(turned > found.limit[..., None], expected["support"])


@pytest.mark.parametrize("shape", [(2, 5), (4, 4), (6, 3), (1, 3)])
def test_one_to_one_assignment_is_the_best_of_all(shape: tuple[int, int]) -> None:
    n_maps, n_templates = shape
    for seed in range(5):
        iou = np.random.default_rng(seed).random(shape)
        chosen = assign_one_to_one(iou)
        given = chosen[chosen >= 0]
        assert len(set(given.tolist())) == len(given) == min(shape)
        total = sum(iou[k, p] for p, k in enumerate(chosen) if k >= 0)
        if n_maps >= n_templates:
            best = max(
                sum(iou[k, p] for p, k in enumerate(order))
                for order in permutations(range(n_maps), n_templates)
            )
        else:
            best = max(
                sum(iou[k, p] for k, p in enumerate(order))
                for order in permutations(range(n_templates), n_maps)
            )
        assert total == pytest.approx(best)


# --- a stream of candidates ---------------------------------------------------------------------


def naive(
    candidates: dict[int, np.ndarray],
    steps: Steps,
    templates: TemplateSet,
    covered: np.ndarray,
    rule: SupportRule,
    state_threshold: float,
) -> dict[str, np.ndarray]:
    """All steps in memory at once, by the definitions."""
    n_steps, n_networks, n_voxels = len(steps), len(templates.networks), int(covered.sum())
    shape = (n_steps, n_networks)
    iou, dice, r = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    own = np.full((*shape, n_voxels), np.nan, dtype=np.float32)
    own_iou = np.full(shape, np.nan)
    supports = np.zeros((*shape, n_voxels), dtype=bool)
    best_maps = np.zeros((*shape, n_voxels), dtype=np.float32)
    sizes = templates.supports[:, covered].sum(axis=1)
    for step, all_maps in candidates.items():
        maps = all_maps[:, covered].astype(np.float32)
        if rule.standardize:
            maps = (maps - maps.mean(axis=1, keepdims=True)) / maps.std(axis=1, keepdims=True)
        # float32, so that equal scores are equal here too.
        scores = np.zeros((len(maps), n_networks, 2), dtype=np.float32)
        for k, one in enumerate(maps):
            for p in range(n_networks):
                template = templates.supports[p, covered]
                for turned, sign in enumerate((1, -1) if rule.either_sign else (1,)):
                    if rule.threshold is None:
                        order = np.argsort(sign * one)
                        support = np.isin(np.arange(n_voxels), order[n_voxels - sizes[p] :])
                    else:
                        support = sign * one > rule.threshold
                    union = (support | template).sum()
                    scores[k, p, turned] = (support & template).sum() / union if union else 0
        score, sign = scores.max(axis=2), np.where(scores[..., 1] > scores[..., 0], -1, 1)
        for p in range(n_networks):
            k = int(score[:, p].argmax())
            template = templates.supports[p, covered]
            best_maps[step, p] = sign[k, p] * maps[k]
            support = support_of(best_maps[step, p], rule, int(sizes[p]))
            iou[step, p] = score[k, p]
            both = support.sum() + template.sum()
            dice[step, p] = 2 * (support & template).sum() / both if both else 0
            r[step, p] = np.corrcoef(best_maps[step, p], templates.maps[p, covered])[0, 1]
        for p, k in enumerate(assign_one_to_one(score)):
            if k >= 0:
                own[step, p] = sign[k, p] * maps[k]
                own_iou[step, p] = score[k, p]
                supports[step, p] = support_of(own[step, p], rule, int(sizes[p]))
    fbn, membership = np.zeros((n_networks, len(covered))), np.zeros((n_networks, len(covered)))
    present = np.nan_to_num(own_iou, nan=-1) >= state_threshold
    for p in range(n_networks):
        if present[:, p].any():
            weight = own_iou[present[:, p], p]
            mean = np.average(own[present[:, p], p], axis=0, weights=weight)
            share = np.average(supports[present[:, p], p], axis=0, weights=weight)
        else:
            if (np.nan_to_num(own_iou[:, p]) > 0).any():
                mean = own[np.nanargmax(own_iou[:, p]), p]
            else:
                mean = best_maps[np.nanargmax(iou[:, p]), p]
            share = support_of(mean, rule, int(sizes[p]))
        fbn[p, covered] = (mean - mean.mean()) / mean.std()
        membership[p, covered] = share
    previous, apart = np.full(shape, np.nan), np.full(shape, np.nan)
    for lag, series in ((1, previous), (steps.window_apart, apart)):
        for step in range(lag, n_steps):
            for p in range(n_networks):
                if not np.isnan(own_iou[[step, step - lag], p]).any():
                    series[step, p] = support_iou(supports[step, p], supports[step - lag, p])
    return {
        "maps": fbn,
        "membership": membership,
        "present": present.sum(axis=0),
        "iou": iou,
        "dice": dice,
        "r": r,
        "iou_previous": previous,
        "iou_window_apart": apart,
        "best_of_all": np.nanmax(iou, axis=0),
    }


def stream(
    seed: int, n_candidates: int, window: int, left_out: list[int], strength: float
) -> tuple[dict[int, np.ndarray], Steps, TemplateSet, np.ndarray]:
    rng = np.random.default_rng(seed)
    n_networks, n_voxels, n_volumes = 4, 240, 30
    templates = template_set(rng.standard_normal((n_networks, n_voxels)).astype(np.float32))
    covered = rng.random(n_voxels) < 0.9
    kept = np.setdiff1d(np.arange(n_volumes), left_out)
    steps = lay_windows(kept, n_volumes, 2.0, window)
    mixing = rng.standard_normal((n_volumes, n_candidates, n_networks))
    noise = rng.standard_normal((n_volumes, n_candidates, n_voxels))
    maps = (strength * mixing @ templates.maps + noise).astype(np.float32)
    candidates = {int(step): maps[step] for step in np.flatnonzero(steps.valid)}
    return candidates, steps, templates, covered


def batches(
    candidates: dict[int, np.ndarray], size: int = 1, tensors: bool = False
) -> Iterator[tuple[np.ndarray, Any]]:
    """Candidates of `size` steps at a time."""
    all_steps = list(candidates)
    for first in range(0, len(all_steps), size):
        steps = all_steps[first : first + size]
        maps = np.stack([candidates[step] for step in steps])
        yield np.array(steps), torch.from_numpy(maps) if tensors else maps


def test_networks_that_were_never_present_do_not_share_a_map() -> None:
    templates = template_set(2 * np.repeat(np.eye(3), 40, axis=1).astype(np.float32))
    covered = np.ones(120, dtype=bool)
    rng = np.random.default_rng(0)
    # The first candidate is the best for the first two.
    maps = np.vstack([0.5 * templates.maps[:2].sum(axis=0), np.zeros((2, 120))])
    maps = (maps + 0.6 * rng.standard_normal((3, 120))).astype(np.float32)
    steps = lay_windows(np.arange(30), 30, 2.0, 30)
    candidates = [(np.flatnonzero(steps.valid)[:1], maps[None])]
    found = find_networks(candidates, steps, templates, covered, SupportRule(), 0.99)
    assert found.weak.all()
    r = np.corrcoef(found.maps)
    assert np.abs(r[np.triu_indices(3, 1)]).max() < 0.9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("n_candidates", "window", "left_out", "strength"),
    [
        (7, 5, [], 1.5),
        (7, 1, [3, 4, 17], 1.5),
        (2, 1, [9], 1.5),
        (2, 10, [12], 0.5),
        (3, 4, [], 0),
    ],
)
def test_the_stream_gives_what_the_definitions_say(
    rule: SupportRule, n_candidates: int, window: int, left_out: list[int], strength: float
) -> None:
    candidates, steps, templates, covered = stream(0, n_candidates, window, left_out, strength)
    dynamic = np.full((4, len(steps), 240), 0, dtype=np.float32)
    found = find_networks(batches(candidates), steps, templates, covered, rule, 0.3, dynamic)
    expected = naive(candidates, steps, templates, covered, rule, 0.3)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, atol=2e-5, err_msg=name)
    assert found.n_candidates == n_candidates * int(steps.valid.sum())
    assert (found.maps[:, ~covered] == 0).all()
    assert np.isnan(found.iou[~steps.valid]).all()
    assert not np.isnan(found.iou[steps.valid]).any()
    assert np.array_equal(found.weak, expected["present"] == 0)
    assert (dynamic[:, :, ~covered] == 0).all()
    assert not dynamic[:, ~steps.valid].any()
    # With fewer candidates than networks some have none of their own at a step.
    having = (np.abs(dynamic).max(axis=2) > 0).sum(axis=0)[steps.valid]
    assert (having == min(4, n_candidates)).all()


def _measured(networks: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in networks.items() if value is not None}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_candidates", [2, 7])
def test_tensors_on_any_device_and_batches_of_any_size_give_the_same(
    rule: SupportRule, n_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates, *rest = stream(0, n_candidates, 4, [11], 1.5)

    def found(size: int, tensors: bool) -> dict[str, Any]:
        dynamic = np.zeros((4, len(rest[0]), 240), dtype=np.float32)
        stream_of = batches(candidates, size, tensors)
        networks = vars(find_networks(stream_of, *rest, rule, 0.3, dynamic))
        return {**_measured(networks), "dynamic": dynamic}

    expected = found(1, False)
    for size, tensors in ((5, False), (5, True), (100, True)):
        for name, values in found(size, tensors).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
    # What is done with tensors on a GPU, done with tensors in main memory.
    monkeypatch.setattr(dynamics, "native", lambda maps: maps)
    for name, values in found(5, True).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
@pytest.mark.parametrize("rule", RULES)
def test_a_gpu_gives_what_the_processor_gives(rule: SupportRule) -> None:
    candidates, *rest = stream(0, 7, 4, [11], 1.5)
    expected = find_networks(batches(candidates, 5), *rest, rule)
    on_gpu = ((steps, maps.cuda()) for steps, maps in batches(candidates, 5, tensors=True))
    for name, values in _measured(vars(find_networks(on_gpu, *rest, rule))).items():
        np.testing.assert_allclose(values, getattr(expected, name), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("tensors", [False, True])
def test_no_batch_is_kept(tensors: bool) -> None:
    candidates, *rest = stream(0, 3, 1, [], 1.5)
    alive: list[weakref.ref[Any]] = []

    def watched() -> Iterator[tuple[np.ndarray, Any]]:
        for steps, maps in batches(candidates, 3, tensors):
            # The one before is let go when this one arrives.
            assert [earlier() for earlier in alive[:-1]] == [None] * max(0, len(alive) - 1)
            alive.append(weakref.ref(maps))
            yield steps, maps

    find_networks(watched(), *rest, SupportRule())
    assert len(alive) == 10


def test_a_network_that_was_never_there_is_weak_and_takes_the_candidate_of_a_step() -> None:
    candidates, steps, templates, covered = stream(1, 3, 1, [], 0)
    found = find_networks(batches(candidates), steps, templates, covered, SupportRule(), 0.9)
    assert found.weak.all()
    for p in range(4):
        every = np.concatenate(list(candidates.values()))[:, covered]
        r = [np.corrcoef(found.maps[p, covered], one)[0, 1] for one in every]
        assert np.abs(r).max() == pytest.approx(1, abs=1e-5)
        assert set(np.unique(found.membership[p])) == {0, 1}
        assert found.best_of_all[p] == np.nanmax(found.iou[:, p])


def test_constant_candidates_make_no_network_and_no_nan() -> None:
    _, steps, templates, covered = stream(0, 2, 1, [], 0)
    flat = {step: np.full((2, 240), 5.0, dtype=np.float32) for step in range(30)}
    found = find_networks(batches(flat), steps, templates, covered, SupportRule(), 0.3)
    assert found.weak.all()
    for values in (found.maps, found.membership, found.iou, found.dice, found.r):
        assert not values.any()


def test_without_any_window_there_is_nothing_and_no_crash() -> None:
    _, _, templates, covered = stream(0, 2, 1, [], 0)
    steps = lay_windows(np.arange(0, 30, 2), 30, 2.0, 8)
    assert not steps.valid.any()
    found = find_networks([], steps, templates, covered, SupportRule())
    assert np.isnan(found.iou).all()
    assert found.weak.all()
    assert not found.maps.any()


def test_courses_come_back_by_least_squares() -> None:
    rng = np.random.default_rng(0)
    maps = zscore_maps(rng.standard_normal((3, 500)))
    maps[1] = zscore_maps(maps[0] + maps[1])  # two that overlap
    courses = rng.standard_normal((40, 3))
    covered = np.arange(500) >= 50
    data = courses @ maps
    data[:, ~covered] = 1e3
    found = network_courses(maps, data.astype(np.float32), covered)
    assert np.allclose(found, courses, atol=1e-4)


def test_maps_that_nearly_depend_on_each_other_do_not_amplify_noise() -> None:
    rng = np.random.default_rng(0)
    maps = zscore_maps(rng.standard_normal((3, 500)))
    maps[2] = zscore_maps(1e-2 * maps[2] - maps[0] - maps[1])  # as of states: they add up to 0
    course = rng.standard_normal(40)
    data = course[:, None] * maps[0] + rng.standard_normal((40, 500))
    found = network_courses(maps, data, np.ones(500, dtype=bool))
    assert np.corrcoef(found[:, 0], course)[0, 1] > 0.95
    assert found.std(axis=0).max() < course.std()


def test_a_weak_network_takes_nothing_from_those_that_are_there() -> None:
    rng = np.random.default_rng(0)
    maps = zscore_maps(rng.standard_normal((3, 500)))
    maps[2] = zscore_maps(maps[0] + maps[1])  # a volume in which both were on
    courses = rng.standard_normal((40, 2))
    data = courses @ maps[:2]
    found = network_courses(maps, data, np.ones(500, dtype=bool), np.array([False, False, True]))
    assert np.allclose(found[:, :2], courses)
    assert np.allclose(found[:, 2], data @ maps[2] / 500)


@pytest.mark.parametrize("weak", [False, True])
def test_two_equal_maps_have_one_course_and_no_map_has_none(weak: bool) -> None:
    one = np.random.default_rng(0).standard_normal(100)
    maps = np.stack([one, one, 0 * one])
    every = np.ones(100, dtype=bool)
    courses = network_courses(maps, 2 * one[None], every, np.full(3, weak))
    assert np.allclose(courses, [2, 2, 0] if weak else [1, 1, 0])


def test_the_winner_takes_a_voxel_from_half_membership_on() -> None:
    membership = np.array([[0.9, 0.5, 0.2, 0.0], [0.1, 0.6, 0.4, 0.0]])
    assert label_voxels(membership).tolist() == [1, 2, 0, 0]
    assert label_voxels(membership, 0.1).tolist() == [1, 2, 2, 0]


def test_peaks_are_the_highest_voxels() -> None:
    maps = np.array([[0.1, 3.0, -9.0], [-1.0, -2.0, -0.5]])
    coordinates = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]])
    first, second = find_peaks(maps, coordinates, np.array(["a", "b", "c"]))
    assert (first.x, first.y, first.z, first.value, first.place) == (4, 5, 6, 3, "b")
    assert (second.value, second.place) == (-0.5, "c")

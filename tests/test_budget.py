"""Equal budgets of maps, chosen in one half of a run and scored in the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from bids_fbn.networks.budget import (
    PoolCollector,
    collect_pool,
    halves,
    held_out_variance,
    rank_maps,
    score_halves,
    variance_explained,
)
from bids_fbn.networks.maps import SupportRule, zscore_maps
from bids_fbn.networks.overlap import overlap_with_templates

N_VOXELS = 1000
N_NETWORKS = 5


def networks() -> np.ndarray:
    """Five networks (P, V) of 100 voxels each, which share a few with their neighbours."""
    maps = np.zeros((N_NETWORKS, N_VOXELS), dtype=np.float32)
    for p in range(N_NETWORKS):
        maps[p, 90 * p : 90 * p + 100] = 1
    return maps


def noise(n: int, seed: int = 0, n_voxels: int = N_VOXELS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n_voxels)).astype(np.float32)


def volumes(maps: np.ndarray, n_volumes: int, amplitude: float, seed: int = 0) -> np.ndarray:
    """Networks with white courses, ever weaker from one to the next, in noise of variance 1."""
    courses = np.random.default_rng(seed + 100).standard_normal((n_volumes, len(maps)))
    weights = amplitude * 0.8 ** np.arange(len(maps))
    values = courses * weights @ maps + noise(n_volumes, seed + 200, maps.shape[1])
    return values.astype(np.float32)


def by_lstsq(maps: np.ndarray, data: np.ndarray) -> float:
    """Variance explained, written down plainly."""
    wanted = data.astype(np.float64) - data.mean(axis=0, dtype=np.float64)
    wanted -= wanted.mean(axis=1, keepdims=True)
    regressors = maps.astype(np.float64)
    regressors -= regressors.mean(axis=1, keepdims=True)
    courses, *_ = np.linalg.lstsq(regressors.T, wanted.T, rcond=1e-6)
    return 1 - ((wanted - courses.T @ regressors) ** 2).sum() / (wanted**2).sum()


# --- halves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_volumes", "gap"), [(100, 5), (101, 5), (100, 0), (7, 5)])
def test_halves_are_equally_long_and_keep_their_distance(n_volumes: int, gap: int) -> None:
    first, second = halves(n_volumes, gap)
    rows = np.arange(n_volumes)
    assert len(rows[first]) == len(rows[second]) >= 1
    assert rows[first][0] == 0
    assert rows[second][-1] == n_volumes - 1
    between = rows[second][0] - rows[first][-1] - 1
    assert gap <= between <= gap + 1


def test_a_run_too_short_for_halves_is_refused() -> None:
    with pytest.raises(ValueError, match="6 volumes leave no halves with 5 volumes"):
        halves(6, 5)


# --- the pool ------------------------------------------------------------------------------------

EVERYWHERE = np.ones(50, dtype=bool)


def stream(maps: np.ndarray, batch: int = 3) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The maps (S, K, V) of all steps, a few steps at a time."""
    for first in range(0, len(maps), batch):
        yield np.arange(first, min(first + batch, len(maps))), maps[first : first + batch]


def numbered(n_steps: int, n_each: int, n_voxels: int = 50) -> np.ndarray:
    """Candidates (S, K, V) that are noise, but for their number in the first voxel."""
    maps = noise(n_steps * n_each, n_voxels=n_voxels)
    maps[:, 0] = np.arange(len(maps))
    return maps.reshape(n_steps, n_each, n_voxels)


def test_a_pool_is_made_of_windows_that_lie_within_the_stretch() -> None:
    start = np.arange(17)
    start[6] = -1  # this step has no window
    pool = collect_pool(stream(numbered(17, 1)), start, 4, slice(3, 12), EVERYWHERE)
    assert pool.dtype == np.float32
    assert pool[:, 0].tolist() == [3, 4, 5, 7, 8]  # the window of 8 is 8, 9, 10, 11


def test_no_window_within_the_stretch_makes_an_empty_pool() -> None:
    pool = collect_pool(stream(numbered(5, 2)), np.arange(5), 4, slice(0, 3), EVERYWHERE)
    assert pool.shape == (0, 50)
    assert collect_pool([], np.arange(5), 4, slice(0, 3), EVERYWHERE).shape == (0, 50)


@pytest.mark.parametrize("limit", [2, 7, 30, 99, 200])
def test_a_pool_is_thinned_evenly_to_its_limit(limit: int) -> None:
    maps = numbered(40, 3)
    pool = collect_pool(stream(maps), np.arange(40), 1, slice(0, 40), EVERYWHERE, limit)
    assert limit - 3 < len(pool) <= limit or len(pool) == 120
    steps = np.unique(pool[:, 0] // 3)
    assert len(steps) == min(40, max(1, limit // 3))
    if len(steps) > 1:
        apart = np.diff(steps)
        assert apart.max() - apart.min() <= 1
        assert steps[0] + (39 - steps[-1]) <= apart.max() + 1


def test_a_pool_has_the_covered_voxels_of_tensors_too() -> None:
    maps = numbered(4, 2)
    covered = np.arange(50) % 3 > 0
    expected = maps.reshape(8, 50)[:, covered]
    tensors = ((steps, torch.from_numpy(batch)) for steps, batch in stream(maps))
    pool = collect_pool(tensors, np.arange(4), 2, slice(0, 5), covered)
    assert np.array_equal(pool, expected)


def test_duplicates_are_removed_whatever_their_sign_scale_and_offset() -> None:
    first, second = noise(2)
    close = first + 0.01 * second  # r = 0.99995: another map
    maps = np.stack(
        [
            np.stack([first, second]),
            np.stack([-3 * first, 0.01 * second + 100]),  # of the step before
            np.stack([close, -close]),  # of the same step
            np.stack([np.full(N_VOXELS, 2.0), np.zeros(N_VOXELS)]),  # no maps at all
        ]
    ).astype(np.float32)
    everywhere = np.ones(N_VOXELS, dtype=bool)
    pool = collect_pool(stream(maps, 2), np.arange(4), 1, slice(0, 4), everywhere)
    assert np.array_equal(pool, np.stack([first, second, close]))


def test_the_maps_of_a_static_method_enter_once() -> None:
    maps = np.repeat(noise(20)[None], 60, axis=0)
    everywhere = np.ones(N_VOXELS, dtype=bool)
    pool = collect_pool(stream(maps), np.arange(60), 1, slice(0, 60), everywhere)
    assert np.array_equal(pool, maps[0])


def test_two_collectors_listen_to_one_stream() -> None:
    maps, start = numbered(30, 2), np.arange(30)
    parts = halves(30, 4)
    collectors = [PoolCollector(start, 2, part, EVERYWHERE) for part in parts]
    for batch in stream(maps):
        for collector in collectors:
            collector.add(*batch)
    for collector, part in zip(collectors, parts, strict=True):
        alone = collect_pool(stream(maps), start, 2, part, EVERYWHERE)
        assert len(alone) == 2 * 12
        assert np.array_equal(collector.pool, alone)


# --- the budget ----------------------------------------------------------------------------------


def test_the_maps_that_made_the_volumes_come_first_the_strongest_before_the_weak() -> None:
    truth = networks()
    data = volumes(truth, 200, amplitude=2)
    pool = np.concatenate([noise(60, seed=1), truth, noise(60, seed=2)])
    chosen, explained = rank_maps(pool, data, 20)
    assert len(chosen) == 20
    assert chosen[:N_NETWORKS].tolist() == [60, 61, 62, 63, 64]
    assert len(set(chosen)) == 20
    gains = np.diff(explained, prepend=0)
    assert gains[:N_NETWORKS].min() > 5 * gains[N_NETWORKS:].max()


def test_offset_sign_and_scale_of_maps_do_not_matter() -> None:
    data = volumes(networks(), 50, amplitude=1)
    pool = np.concatenate([networks(), noise(30)])
    rng = np.random.default_rng(0)
    scale, offset = rng.choice([-10, 0.1, 2], (35, 1)), rng.normal(0, 5, (35, 1))
    chosen, explained = rank_maps(pool, data, 10)
    changed, as_much = rank_maps((pool * scale + offset).astype(np.float32), data, 10)
    assert np.array_equal(chosen, changed)
    assert np.allclose(explained, as_much, rtol=1e-5)


def test_what_is_explained_is_that_of_least_squares() -> None:
    data = volumes(networks(), 40, amplitude=1) + 3  # the offset is no variance
    pool = np.concatenate([networks(), noise(30)])
    chosen, explained = rank_maps(pool, data, 12)
    for n in (1, 2, 7, 12):
        assert explained[n - 1] == pytest.approx(by_lstsq(pool[chosen[:n]], data), abs=1e-9)
        assert variance_explained(pool[chosen[:n]], data) == pytest.approx(explained[n - 1])
    # No other single map, and no other second one, explains more.
    alone = [by_lstsq(pool[[k]], data) for k in range(len(pool))]
    assert int(np.argmax(alone)) == chosen[0]
    second = [by_lstsq(pool[[chosen[0], k]], data) for k in range(len(pool)) if k != chosen[0]]
    assert max(second) == pytest.approx(explained[1])


def test_every_voxel_counts_where_there_are_many() -> None:
    pool, data = noise(6, n_voxels=9001), noise(10, seed=1, n_voxels=9001)
    data[:, -50:] += 20 * noise(10, seed=2, n_voxels=50)
    assert variance_explained(pool, data) == pytest.approx(by_lstsq(pool, data), rel=1e-6)


def test_nearly_collinear_maps_count_for_what_they_differ_by() -> None:
    """Maps of neighbouring windows: in single precision the difference would be rounding."""
    shared, *differences = noise(9)
    pool = np.stack([shared, *(shared + 0.003 * d for d in differences)]).astype(np.float32)
    data = volumes(np.stack(differences), 60, amplitude=1)
    chosen, explained = rank_maps(pool, data, 9)
    assert len(chosen) == 9
    assert explained[-1] == pytest.approx(by_lstsq(pool, data), abs=1e-6)
    assert variance_explained(pool, data) == pytest.approx(by_lstsq(pool, data), abs=1e-6)


def test_the_ranking_stops_where_pool_or_variance_is_exhausted() -> None:
    pool, data = noise(8), noise(30, seed=1)
    assert len(rank_maps(pool, data, 20)[0]) == 8
    sums = np.concatenate([pool, pool[:1] + pool[1:2], pool[2:3] - 2 * pool[3:4]])
    chosen, explained = rank_maps(sums, data, 20)
    assert len(chosen) == 8  # the sums add nothing to their parts, nor parts to sums
    assert explained[-1] == pytest.approx(by_lstsq(pool, data), abs=1e-9)
    assert variance_explained(sums, data) == pytest.approx(explained[-1])
    courses = np.random.default_rng(0).standard_normal((30, 3))
    made_of_three = (courses @ pool[:3]).astype(np.float32)
    chosen, explained = rank_maps(pool, made_of_three, 20)
    assert sorted(chosen) == [0, 1, 2]
    assert explained[-1] == pytest.approx(1)
    flat = np.concatenate([np.full((1, N_VOXELS), 0.1, dtype=np.float32), pool])
    assert 0 not in rank_maps(flat, data, 20)[0]


def test_nothing_explains_nothing() -> None:
    for pool, data in (
        (noise(0), noise(5)),
        (noise(3), np.zeros((5, N_VOXELS), dtype=np.float32)),
        (np.ones((2, N_VOXELS), dtype=np.float32), noise(5)),
    ):
        chosen, explained = rank_maps(pool, data)
        assert len(chosen) == len(explained) == 0
        assert variance_explained(pool, data) == 0


# --- held-out variance ---------------------------------------------------------------------------


def test_held_out_variance_is_the_share_that_the_maps_made() -> None:
    truth = networks()
    data = volumes(truth, 150, amplitude=1, seed=1), volumes(truth, 150, amplitude=1, seed=2)
    shares = []
    for values in data:
        in_noise = (values - values.mean(axis=0)).var(axis=1).sum()
        shares.append(1 - (150 - 1) * (1 - N_NETWORKS / N_VOXELS) / in_noise)
    found = held_out_variance((truth, truth), data)
    assert found == pytest.approx(np.mean(shares), abs=0.01)
    assert 0.15 < found < 0.3
    mixed = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32) @ truth
    assert held_out_variance((mixed, mixed), data) == pytest.approx(found, abs=1e-4)


def test_noise_maps_explain_little_of_what_they_were_not_chosen_from() -> None:
    data = noise(40, seed=1), noise(40, seed=2)
    budgets = []
    for seed, values in enumerate(data):
        pool = np.concatenate([noise(100, seed=10 + seed), values])
        budgets.append(pool[rank_maps(pool, values, 20)[0]])
    assert variance_explained(budgets[0], data[0]) > 0.4  # it learned volumes by heart
    assert held_out_variance((budgets[0], budgets[1]), data) == pytest.approx(0.02, abs=0.005)


def test_the_mean_of_one_half_is_not_known_from_the_other() -> None:
    """Signals are z-scored over the run: the mean volumes of its halves are opposites."""
    drift = 5 * noise(1)
    data = noise(40, seed=1) + drift, noise(40, seed=2) - drift
    assert held_out_variance((drift, drift), data) < 0.01


# --- scores over halves --------------------------------------------------------------------------


def planted(seed: int, amount: float = 1.0) -> np.ndarray:
    """The networks in noise, in any order and either way up, among twenty maps."""
    rng = np.random.default_rng(seed)
    maps = noise(20, seed)
    maps[:N_NETWORKS] *= 0.3
    maps[:N_NETWORKS] += amount * networks()
    return maps[rng.permutation(20)] * rng.choice([-1, 1], (20, 1)).astype(np.float32)


@pytest.mark.parametrize("rule", [SupportRule(), SupportRule(1.0)])
def test_networks_of_both_halves_are_found_again(rule: SupportRule) -> None:
    truth = networks()
    scores = score_halves((planted(1), planted(2)), truth, truth > 0, rule)
    assert scores.iou.shape == (N_NETWORKS,)
    assert scores.iou.min() > 0.6
    assert scores.r.min() > 0.6
    assert scores.reproducibility.min() > 0.4
    assert np.allclose(scores.iou, scores.select_iou, atol=0.1)


def test_in_noise_the_search_scores_but_hardly_the_other_half() -> None:
    """What it is all for: of what searching many maps gains, little survives in the other half.

    Not nothing: the partner resembles the map that was chosen, which resembles the template.
    """
    truth = networks()[:4]
    supports = truth > 0
    single = overlap_with_templates(
        zscore_maps(noise(2000, seed=99)), truth, supports, SupportRule(either_sign=False)
    ).iou.mean()
    searched, scored = [], []
    for seed in range(5):
        maps = noise(400, seed), noise(400, seed + 50)
        scores = score_halves(maps, truth, supports, SupportRule())
        searched.append(scores.select_iou)
        scored.append(scores.iou)
        either_way = [
            overlap_with_templates(zscore_maps(half), truth, supports, SupportRule()).iou
            for half in maps
        ]
        best_of_all = np.mean([iou.max(axis=0) for iou in either_way], axis=0)
        assert (scores.select_iou <= best_of_all + 1e-6).all()
    assert np.mean(searched) > 2 * single
    assert np.mean(scored) == pytest.approx(single, abs=0.01)


def test_a_map_that_only_one_half_has_does_not_count() -> None:
    truth = networks()
    without = planted(2)
    r = abs(np.corrcoef(np.concatenate([truth[:1], without]))[0, 1:])
    without[r.argmax()] = noise(1, seed=9)
    scores = score_halves((planted(1), without), truth, truth > 0, SupportRule())
    assert scores.iou[1:].min() > 0.6
    assert scores.iou[0] < 0.15
    assert scores.reproducibility[0] < 0.2


def test_partners_are_turned_with_the_map_that_was_chosen() -> None:
    truth = networks()
    maps = truth + 0.1 * noise(N_NETWORKS)
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        scores = score_halves((signs[0] * maps, signs[1] * maps), truth, truth > 0, SupportRule())
        assert scores.iou == pytest.approx(1)
        assert scores.r.min() > 0.9
        assert scores.reproducibility == pytest.approx(1)


def test_where_the_positive_side_counts_no_map_is_turned() -> None:
    truth = networks()
    maps = truth + 0.1 * noise(N_NETWORKS)
    for rule in (
        SupportRule(either_sign=False),
        SupportRule(0.5, standardize=False, either_sign=False),
    ):
        same = score_halves((maps, maps), truth, truth > 0, rule)
        assert same.iou == pytest.approx(1)
        turned = score_halves((maps[:1], -maps[:1]), truth[:1], truth[:1] > 0, rule)
        assert turned.select_iou == pytest.approx(0.5, abs=0.1)  # chosen in one way only
        assert turned.iou == turned.r == turned.reproducibility == 0


def test_a_fixed_threshold_is_in_the_units_of_the_map_where_the_rule_says_so() -> None:
    truth = networks()
    rule = SupportRule(0.5, standardize=False, either_sign=False)
    weak = score_halves((truth, 0.4 * truth), truth, truth > 0, rule)
    # From strong to weak nothing is left; from weak nothing is chosen by, and a strong one is met.
    strong = score_halves((truth, truth), truth, truth > 0, rule)
    assert strong.iou == pytest.approx(1)
    assert weak.select_iou == pytest.approx(0.5)
    assert weak.iou.max() <= 0.5


def test_partners_are_one_to_one() -> None:
    """Two maps of one half that resemble one map of the other do not both get it."""
    truth = networks()[:2]
    both = truth.sum(axis=0, keepdims=True)
    r = np.corrcoef(truth[0], both[0])[0, 1]
    scores = score_halves((truth, both), truth, truth > 0, SupportRule())
    # One of the two in one way, and the one template that the other half can serve in the other.
    assert scores.reproducibility.sum() == pytest.approx((r + r) / 2)


def test_more_templates_than_maps_leaves_some_without() -> None:
    truth = networks()
    maps = truth[[3, 1]] + 0.1 * noise(2)
    scores = score_halves((maps, maps[::-1]), truth, truth > 0, SupportRule())
    assert scores.iou[[1, 3]] == pytest.approx(1)
    for values in (scores.iou, scores.r, scores.select_iou, scores.reproducibility):
        assert not values[[0, 2, 4]].any()
    # Only one half has a map: it is chosen there, and met with nothing.
    one_sided = score_halves((maps, maps[:0]), truth, truth > 0, SupportRule())
    assert one_sided.select_iou[[1, 3]] == pytest.approx(0.5)
    assert not one_sided.iou.any()

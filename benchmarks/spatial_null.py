"""Time and memory of the spatial nulls, on the 4 mm grid unless told otherwise.

    python benchmarks/spatial_null.py [--resolution 4] [--fwhm 12] [--candidates 20]
                                      [--surrogates 150] [--threads 2] [--templates smith2009]

Candidates are smooth noise. `--profile` prints where the time goes, on one thread.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import resource
import time

import numpy as np

from bids_fbn.networks.maps import SupportRule
from bids_fbn.networks.templates import load_templates
from bids_fbn.nulls.fields import draw_fields, estimate_smoothness
from bids_fbn.nulls.spatial import elsewhere_null, random_maps_null
from bids_fbn.simulation.noise import mni_head, smooth_fields

RULES = {
    "size-matched, either sign": SupportRule(),
    "size-matched, positive side": SupportRule(either_sign=False),
    "z > 2, either sign": SupportRule(2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--resolution", type=float, default=4.0, help="mm")
    parser.add_argument("--fwhm", type=float, default=12.0, help="of the candidates, mm")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--surrogates", type=int, default=150, help="sets that are made")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--templates", default="smith2009")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    grid = mni_head(asked.resolution, "MNI152NLin2009cAsym").grid
    templates = load_templates(asked.templates, grid)
    covered = np.ones(grid.n_voxels, dtype=bool)
    maps = smooth_fields(np.random.default_rng(0), asked.candidates, grid, asked.fwhm)

    if asked.profile:
        smoothness = estimate_smoothness(maps, grid, covered)
        with cProfile.Profile() as profile:
            for seed in range(20):
                draw_fields(smoothness, asked.candidates, np.random.default_rng(seed))
            random_maps_null(maps, templates, grid, covered, SupportRule(), 20)
        pstats.Stats(profile).sort_stats("tottime").print_stats(12)
        return

    print(
        f"{grid.n_voxels} voxels, {len(templates.networks)} templates, sets of "
        f"{asked.candidates} maps, {asked.threads} threads\n"
    )
    print("| null | rule | 1,000 sets, s | 3,000 maps, s | peak of the process, MB |")
    print("|---|---|---|---|---|")
    nulls = {"elsewhere": elsewhere_null, "random maps": random_maps_null}
    for (kind, null), (name, rule) in itertools.product(nulls.items(), RULES.items()):
        # What is done once (smoothness, correlation) is not part of the price of a set.
        seconds = []
        for n_sets in (1, 1 + asked.surrogates):
            start = time.perf_counter()
            null(maps, templates, grid, covered, rule, n_sets, threads=asked.threads)
            seconds.append(time.perf_counter() - start)
        once, each = seconds[0], (seconds[1] - seconds[0]) / asked.surrogates
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"| {kind} | {name} | {once + 1000 * each:.1f} | "
            f"{once + 3000 / asked.candidates * each:.1f} | {peak:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

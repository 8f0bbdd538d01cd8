"""Fill an image with the files that runs would otherwise download, and say what there is.

What lies in TEMPLATEFLOW_HOME and NILEARN_DATA already is taken, the rest is downloaded. The app's
own functions ask for the files, so that no list of them can be forgotten here. Fails where a file
of the default template set or of fMRIPrep's default space can be had from neither.
"""

import sys

from bids_fbn.environment import prepare_environment
from bids_fbn.errors import InputError
from bids_fbn.networks.templates import load_templates
from bids_fbn.signal.standard import analysis_grid, background_image, load_parcels

NEEDED = "MNI152NLin2009cAsym"
WANTED = "MNI152NLin6Asym"
RESOLUTION = 4.0  # mm; any will do
HELP = "Build where there is a network, or fill containers/templates, as its README says."


def sources(space: str) -> dict[str, str]:
    """Where mask, background and parcels of a space come from, in words."""
    grid = analysis_grid(space, RESOLUTION)
    return {
        "brain mask": grid.mask_source,
        "background": background_image(space)[1],
        "parcels": load_parcels(grid).source,
    }


def main() -> int:
    prepare_environment()
    lacking = []
    try:
        print("smith2009:", load_templates("smith2009", analysis_grid(NEEDED, RESOLUTION)).source)
    except InputError as error:
        lacking.append(str(error))
    for space in (NEEDED, WANTED):
        for what, source in sources(space).items():
            print(f"{space}, {what}: {source}")
            if space == NEEDED and not source.startswith("TemplateFlow"):
                lacking.append(f"{space}, {what}: not from TemplateFlow, but {source}")
    if lacking:
        print(*lacking, HELP, sep="\n", file=sys.stderr)
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())

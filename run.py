#!/usr/bin/env python
"""The BIDS-App entry point: ``run.py BIDS_DIR OUTPUT_DIR {participant,group} [options]``."""

import sys

from bids_fbn.cli import main

if __name__ == "__main__":
    sys.exit(main())

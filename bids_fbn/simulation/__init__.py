"""The parts of :mod:`bids_fbn.simulate`: networks, noise, confounds, one run."""

"""The classical methods, as models like any other: what a network has to be better than."""

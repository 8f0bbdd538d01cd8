"""From candidate maps to networks: overlap with templates, states, transitions.

NumPy, or torch where the maps lie on a GPU; nothing here knows a model or BIDS.
"""

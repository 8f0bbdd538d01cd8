"""From candidate maps to networks: overlap with templates, states, transitions.

Plain NumPy; nothing here knows a torch model or BIDS.
"""

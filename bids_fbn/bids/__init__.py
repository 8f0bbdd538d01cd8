"""All that knows BIDS: which runs there are, what outputs are called, how they are written."""

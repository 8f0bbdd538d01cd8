"""nipype workflows: nodes and edges only."""

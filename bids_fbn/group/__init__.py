"""The group level: collecting, maps, statistics, harmonisation, and what is written of them."""

"""Nulls: what a statistic would be if there were nothing."""

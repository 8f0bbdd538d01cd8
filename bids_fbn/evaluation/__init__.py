"""Evaluation: how near results come to a truth that is known."""

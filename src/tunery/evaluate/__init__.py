"""Measuring a model on rows that it never learned from, before and after training."""

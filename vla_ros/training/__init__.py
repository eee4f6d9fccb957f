"""Data set, objectives, training and evaluation."""

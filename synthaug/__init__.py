"""Synthetic images for training classifiers, and the audit that says whether they are copies."""

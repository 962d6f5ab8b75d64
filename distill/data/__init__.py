"""Procedural training data: endless, seeded, with the ground truth that evaluation measures against."""

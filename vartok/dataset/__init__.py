"""Bulk tokenization: many pictures to the shards of a data set, and from there to training."""

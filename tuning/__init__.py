"""Sweeps: a trial is a call of `pipelines.train.fit`."""

"""Sweeps: `run(Sweep(...))` searches a space of dotted keys; every trial is `pipelines.train.fit`."""

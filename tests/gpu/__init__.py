"""What has to be shown on a machine with a GPU: `python -m tests.gpu`, or `make gpu`."""

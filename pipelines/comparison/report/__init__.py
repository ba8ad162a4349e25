"""The report: finished runs compared in one HTML file that loads nothing else."""

"""The report: finished runs side by side as one HTML file that needs nothing beside it."""

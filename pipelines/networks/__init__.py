"""Networks by the names that a configuration gives them: backbones (models) and segmenters."""

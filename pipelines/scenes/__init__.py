"""Built-in street scenes, and the small segmenter trained on them, for users without a data set."""

from pipelines.scenes.drawing import VERSION, SceneError, scene
from pipelines.scenes.writing import MANIFEST, STARTED, write_scenes

__all__ = ["MANIFEST", "STARTED", "VERSION", "SceneError", "scene", "write_scenes"]

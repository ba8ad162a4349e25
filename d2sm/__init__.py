"""D2SM: deep semantic statistics matching for image restoration. Pure torch and torchvision."""

from d2sm.loss import D2SMLoss
from d2sm.matching import StatisticsMatching

__all__ = ["D2SMLoss", "StatisticsMatching"]

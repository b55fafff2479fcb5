"""Layers of image flows."""

from genmod.bijectors.image.conv1x1 import Conv1x1 as Conv1x1
from genmod.bijectors.image.multi_scale import MultiScale as MultiScale, Split as Split
from genmod.bijectors.image.squeeze import Squeeze as Squeeze

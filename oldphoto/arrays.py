"""The arrays that the whole package speaks of: shape, dtype and range, once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# (H, W, 3) RGB, 0 to 255 or 0 to 65,535.
Pixels = NDArray[np.uint8] | NDArray[np.uint16]
# (H, W), True = damaged.
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

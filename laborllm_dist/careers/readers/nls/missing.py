"""The five negative codes of the NLS for missing values, by kind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.int32]  # [people]; below zero: missing, by kind

MISSING_KINDS = {-1: "refused", -2: "not known", -3: "invalid skip", -4: "valid skip", -5: "not interviewed"}
NOT_INTERVIEWED = -5

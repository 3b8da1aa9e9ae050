"""Names of the files in a run's folder."""

from vartok.checkpoints import RUN_WEIGHTS

STATE = "state.pt"
"""Everything that a resumed run needs."""
SETTINGS = "settings.toml"
"""The settings, as the run uses them."""
WEIGHTS = RUN_WEIGHTS
"""The exported checkpoint."""
CARD = "weights.md"
"""The card of the exported checkpoint."""
SAMPLES = "samples"
"""Folder of validation pictures, the originals above their reconstructions."""
LOGS = "log"
"""Folder of TensorBoard's logs."""

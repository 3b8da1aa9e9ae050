"""Names of the files in a run's folder."""

from vartok.checkpoints import RUN_STATE, RUN_WEIGHTS

STATE = RUN_STATE
"""The state of the run, from which it is resumed."""
SETTINGS = "settings.toml"
"""All settings of the run."""
WEIGHTS = RUN_WEIGHTS
"""The exported checkpoint."""
CARD = "weights.md"
"""The card of the exported checkpoint."""
SAMPLES = "samples"
"""Folder of samples: validation pictures above their reconstructions."""
LOGS = "log"
"""Folder of TensorBoard's logs."""
REPORT = "report.html"
"""The HTML report of the run so far."""
HISTORY = "history.json"
"""The curves of the report."""

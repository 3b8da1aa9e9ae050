"""How well tokenizers reconstruct pictures, with JPEG and WebP files of the same size beside them.

`evaluate_files` does what `vartok eval` does. `Evaluation` is the loop below it, for pictures that come
from elsewhere. `FIGURES` names every figure and tells how it is computed.
"""

from vartok.evaluation.files import evaluate_files
from vartok.evaluation.run import Evaluation
from vartok.evaluation.scores import (
    BASELINES,
    FIGURES,
    REFERENCE,
    SCALE_FIGURES,
    BaselineScores,
    EvaluationReport,
    Failure,
    Figure,
    ModelScores,
    PictureScores,
    Scores,
)

__all__ = [
    "BASELINES",
    "FIGURES",
    "REFERENCE",
    "SCALE_FIGURES",
    "BaselineScores",
    "Evaluation",
    "EvaluationReport",
    "Failure",
    "Figure",
    "ModelScores",
    "PictureScores",
    "Scores",
    "evaluate_files",
]

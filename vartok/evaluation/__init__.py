"""Measure how well tokenizers reconstruct pictures, with JPEG and WebP of the tokens' size as baselines.

`evaluate_files` is the function behind `vartok eval`. `Evaluation` is the loop in that function, for samples
from any source. `FIGURES` lists the figures, and how each is computed.
"""

from vartok.evaluation.agreement import Agreement, AgreementMeter
from vartok.evaluation.equality import EqualTokens
from vartok.evaluation.figures import BASELINES, FIGURES, REFERENCE, SCALE_FIGURES, Figure
from vartok.evaluation.files import evaluate_files
from vartok.evaluation.round_trips import RoundTrip
from vartok.evaluation.run import Evaluation
from vartok.evaluation.scores import (
    BaselineScores,
    EvaluationReport,
    Failure,
    ModelScores,
    PictureScores,
    Scores,
)

__all__ = [
    "BASELINES",
    "FIGURES",
    "REFERENCE",
    "SCALE_FIGURES",
    "Agreement",
    "AgreementMeter",
    "BaselineScores",
    "EqualTokens",
    "Evaluation",
    "EvaluationReport",
    "Failure",
    "Figure",
    "ModelScores",
    "PictureScores",
    "RoundTrip",
    "Scores",
    "evaluate_files",
]

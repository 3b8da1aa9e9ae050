"""Files as people have them: each is read with the right configuration, or refused in a line that helps."""

import argparse
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_cases import ASSUMED, TEN, same, two
from noise import bare, draw
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from cli.messages import explain
from vartok.checkpoints import CODEBOOK, HITS, read_checkpoint
from vartok.config import TokenizerConfig
from vartok.errors import CheckpointError
from vartok.schedule import VAR_512, VAR_1024, square, to_json

THREE = square(1, 2, 4)

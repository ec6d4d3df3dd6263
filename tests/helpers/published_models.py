"""config.json files that publishers wrote, and the parameters that transformers and torch count for them."""

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any


@cache
def models() -> dict[str, dict[str, Any]]:
    """By name: config, hf_quant_config (or None), class and parameters (None if transformers does not know it)."""
    path = Path(__file__).parents[1] / "data/published-models.json.xz"
    return json.loads(lzma.decompress(path.read_bytes()))["models"]

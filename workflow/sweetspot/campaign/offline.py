"""Plans a campaign for an offline GPU machine, where `measure.unattended` runs it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sweetspot import __version__
from sweetspot.campaign.campaign import Campaign
from sweetspot.measure.rows import place
from sweetspot.measure.unattended import SCHEMA_VERSION


def plan(campaign: Campaign, architectures: Mapping[str, Any]) -> dict[str, Any]:
    """The plan as JSON: resolved architectures by model, blocks, and steps in their order.

    The most informative steps come first: the first model's whole grid at the first batch; its other batches on a
    coarse grid; the other models on the coarse grid, batch by batch; then all remaining cells; then second visits. A
    list of `cells` counts as coarse. Models and batches keep the order of the configuration.
    """
    blocks, cells = [], []
    for model, batch, block in campaign.jobs:
        measure = json.loads(campaign.measure_job(model, batch, block))
        build = json.loads(campaign.engine_job(model, batch))
        blocks.append({"model": model, "batch": batch, "block": block, "build": build, "measure": measure})
        cells.append([list(place(cell)) for cell in measure["cells"]])
    inputs, outputs = _coarse(campaign.config.input_tokens), _coarse(campaign.config.output_tokens)
    coarse = [[[n, m] for n, m in block if n in inputs and m in outputs] or block for block in cells]
    coarse = cells if campaign.config.cells else coarse
    models = campaign.config.select or list(campaign.models)
    batches = [*campaign.config.batches, *sorted({block["batch"] for block in blocks})]  # a list may have others
    where = [(batches.index(block["batch"]), models.index(block["model"])) for block in blocks]
    lead = min(where)
    order = sorted(range(len(blocks)), key=lambda index: (where[index][1] != lead[1], where[index]))
    first, rest = ([index for index in order if (where[index] == lead) == is_first] for is_first in (True, False))
    visits = campaign.config.protocol.visits
    steps = [{"block": index, "cells": cells[index], "visits": 1} for index in first]
    steps += [{"block": index, "cells": coarse[index], "visits": 1} for index in rest]
    steps += [{"block": index, "cells": cells[index], "visits": each} for each in (1, visits) for index in order]
    return {
        "schema_version": SCHEMA_VERSION,
        "sweetspot_version": __version__,
        "campaign": campaign.config.campaign,
        "architectures": dict(architectures),
        "blocks": blocks,
        "steps": steps,
    }


def _coarse(lengths: Sequence[int]) -> set[int]:
    """The shortest, the middle and the longest length."""
    ordered = sorted(lengths)
    return {ordered[0], ordered[len(ordered) // 2], ordered[-1]}

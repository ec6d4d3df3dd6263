"""Measure, model and predict the energy of LLM inference.

The library lies in wings, and imports point one way:

    base (errors, files, gpus, precision, architecture, memory) <- sensors <- engines <- measure
    base <- models, predict
    models <- engines, measure
    base, sensors <- table
    predict, table, models <- fit
    fit, table, measure, sensors <- report
    everything but report <- campaign
    everything <- commands

sensors, engines, measure, models and predict run beside an engine: they import the standard library only, and
nvidia-ml-py, transformers or the engine's own package inside functions. tests/test_wings.py holds both rules.
"""

__version__ = "0.1.0"

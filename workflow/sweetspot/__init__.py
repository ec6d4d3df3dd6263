"""Measure, model and predict the energy of LLM inference.

The library lies in wings, and imports point one way:

    base (errors, files, gpus, architecture, memory) <- sensors <- engines <- measure
    base <- predict
    base, sensors <- table
    predict, table <- fit
    fit, table, measure, sensors <- report
    everything but report <- campaign
    everything <- commands

sensors, engines, measure and predict run beside an engine: they import the standard library only, and nvidia-ml-py or
the engine's own package inside functions. tests/test_wings.py holds both rules.
"""

__version__ = "0.1.0"

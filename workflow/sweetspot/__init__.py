"""Measure, model and predict the energy of LLM inference.

Dependencies between modules point one way: architecture -> engines, meters -> measurement -> energy model ->
validation -> report. The modules that run inside an engine's environment (architecture, gpus, clock, meter, engines,
measurement, journal, session) import nothing beyond the standard library, nvidia-ml-py and the engine.
"""

__version__ = "0.1.0"

"""Sine waves as networks, and three questions to their weights: `python -m examples.sine_waves` (see README.md).

waves.py           a set of SIRENs, each fitted to a sine wave
regression.py      which frequency has the wave?
representation.py  contrastive learning, then a linear probe for amplitude and frequency
classifiers.py     binary image classifiers, and a corrupted domain of images
adaptation.py      a network that adapts those classifiers to that domain
report.py          tables and pictures
"""

from examples.sine_waves.waves import Waves, WaveSet, fit_waves, make_waves

__all__ = ["WaveSet", "Waves", "fit_waves", "make_waves"]

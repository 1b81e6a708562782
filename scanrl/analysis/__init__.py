"""What a trained scan does: how long its state remembers, and which steps of an episode it keeps or drops.

Every Mamba inside a model is looked at, wherever it stands, by its place in the model's tree of modules.
"""

from scanrl.analysis.activations import Activation, activations
from scanrl.analysis.drawing import draw_activations, draw_spectra
from scanrl.analysis.scans import full_windows
from scanrl.analysis.spectra import Spectrum, spectra

__all__ = ["Activation", "Spectrum", "activations", "draw_activations", "draw_spectra", "full_windows", "spectra"]

"""What experts buy a language model: the grid of *Mixture of Parrots* trained as a thin layer over OLMo."""

__version__ = "0.1.0"

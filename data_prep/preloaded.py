"""What the process that workers are forked from imports before the first of them."""

from data_prep import parts, tokenization

tokenization.import_dolma()
__all__ = ["parts"]

"""Sweeps: many training runs from one file, run where you are, stopped and gone on with at will."""

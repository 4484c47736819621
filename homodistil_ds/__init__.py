"""Distil a pre-trained transformer into a smaller one while its neurons are pruned a few at a time, under DeepSpeed."""

__version__ = "0.1.0"

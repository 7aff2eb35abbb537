"""Configurations for experiments/train.py."""

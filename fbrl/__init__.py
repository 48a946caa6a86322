"""Feedback memory for Stable-Baselines3."""

"""Prediction: images in, answers out."""

"""Runners: acting and training on the device and on the host, and evaluation."""

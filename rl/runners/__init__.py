"""Agents at work: on the device, on the host, in training and in evaluation."""

"""Numbered examples for pipelines, and what tests ask of a source."""

import multiprocessing

import numpy as np


class Numbers:
    """Examples that are their number, and count how often they were read."""

    def __init__(self, size):
        self.size = size
        self.reads = 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.reads += 1
        return {"input": np.full(3, index, np.float32), "target": np.int32(index)}

    def name(self, index):
        return f"number {index}"


def take(source, count):
    return [source.next() for _ in range(count)]


def targets(batches):
    return [batch["target"].tolist() for batch in batches]


def ended(*sources):
    for source in sources:
        source.close()
    assert not multiprocessing.active_children()

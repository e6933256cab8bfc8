"""The other side of `models`: the same networks in PyTorch, eager or compiled. Needs PyTorch and NumPy, not JAX."""

import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.bench.measure import serve

# name: batch, steps in one measurement; the shapes are those of `models`
SIZES = {"mlp": (128, 300), "cnn": (128, 20), "lstm": (64, 20), "gpt": (32, 4), "resnet18": (64, 1)}
TIME, INPUTS, HIDDEN = 64, 64, 256  # of the LSTM's sequences
VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 256, 128, 192, 4, 6  # of the GPT


def arrays(name: str) -> dict[str, np.ndarray]:
    """Random inputs and targets of one batch, in our layout."""
    random, batch = np.random.default_rng(0), SIZES[name][0]
    if name == "gpt":
        ids = random.integers(0, VOCABULARY, (batch, CONTEXT + 1)).astype(np.int32)
        return {"input": ids[:, :-1], "target": ids[:, 1:]}
    shape = (TIME, INPUTS) if name == "lstm" else (28, 28, 1)
    inputs = random.normal(size=(batch, *shape)).astype(np.float32)
    return {"input": inputs, "target": random.integers(0, 10, batch).astype(np.int32)}


def network(name: str) -> Any:
    """The module."""
    from torch import nn  # type: ignore

    class Last(nn.Module):
        """An LSTM's last output, classified."""

        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.lstm(x)[0][:, -1])

    class Attention(nn.Module):
        """Causal self-attention, one projection for query, key and value."""

        def __init__(self) -> None:
            super().__init__()
            self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            batch, length, _ = x.shape
            heads = self.project(x).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            return self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))

    class Block(nn.Module):
        """Attention and a feed-forward network, normalized first."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.attention, self.second = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
            layers = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH)]
            self.forwards = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.first(x))
            return x + self.forwards(self.second(x))

    class GPT(nn.Module):
        """Logits tied to the embedding."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks, self.norm = nn.Sequential(*(Block() for _ in range(LAYERS))), nn.LayerNorm(WIDTH)

        def forward(self, ids: Any) -> Any:
            x = self.blocks(self.tokens(ids) + self.positions.weight[None])
            return (self.norm(x) @ self.tokens.weight.T).flatten(0, 1)

    class Residual(nn.Module):
        """Two 3 x 3 convolutions."""

        def __init__(self, before: int, features: int, stride: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                *[nn.Conv2d(before, features, 3, stride, 1, bias=False), nn.BatchNorm2d(features), nn.ReLU()],
                *[nn.Conv2d(features, features, 3, 1, 1, bias=False), nn.BatchNorm2d(features)],
            )
            self.shortcut = nn.Identity()
            if stride > 1 or before != features:
                layers = [nn.Conv2d(before, features, 1, stride, bias=False), nn.BatchNorm2d(features)]
                self.shortcut = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.branch(x) + self.shortcut(x))

    if name == "mlp":
        dense = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
        return nn.Sequential(nn.Flatten(), *dense)
    if name == "cnn":
        return nn.Sequential(
            *[nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
            *[nn.Flatten(), nn.Linear(7 * 7 * 64, 128), nn.ReLU(), nn.Linear(128, 10)],
        )
    if name == "lstm":
        return Last()
    if name == "gpt":
        return GPT()
    blocks, before = [], 64
    for stage in range(4):
        for block in range(2):
            features = 64 * 2**stage
            blocks.append(Residual(before, features, 2 if stage and not block else 1))
            before = features
    return nn.Sequential(
        *[nn.Conv2d(1, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), *blocks],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)],
    )


def training(name: str, compiled: bool) -> Callable[[], float]:
    """Steps per second."""
    import torch  # type: ignore

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    batch, steps = arrays(name), SIZES[name][1]
    inputs = batch["input"].transpose(0, 3, 1, 2) if batch["input"].ndim == 4 else batch["input"]
    x, y = torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(batch["target"]).long().flatten()
    model = network(name)
    assert math.prod(model(x).shape[:-1]) == len(y)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    forward = torch.compile(model) if compiled else model

    def measure() -> float:
        begin, losses = time.perf_counter(), []
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(forward(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
        return steps / (time.perf_counter() - begin)

    return measure


if __name__ == "__main__":
    serve(training(sys.argv[1], sys.argv[2] == "compiled"))

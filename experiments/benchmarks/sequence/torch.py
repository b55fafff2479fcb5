"""PyTorch by hand: q, k and v by one product, `scaled_dot_product_attention`, fused Adam; the cache lies where it is written."""

import functools
from typing import Any

import torch
from torch.nn import functional

from experiments.benchmarks.peer import Arrays
from experiments.benchmarks.sequence.problems import EPSILON, Cell, weights
from experiments.benchmarks.torch_peer import TorchPeer


class Block(torch.nn.Module):
    """Attention and two layers, each behind a norm."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        features, self._heads = cell.num_features, cell.num_heads
        self.attention_norm, self.mlp_norm = (torch.nn.LayerNorm(features, EPSILON) for _ in range(2))
        self.qkv, self.out = torch.nn.Linear(features, 3 * features), torch.nn.Linear(features, features)
        self.up, self.down = torch.nn.Linear(features, 4 * features), torch.nn.Linear(4 * features, features)

    def forward(self, h: torch.Tensor, cache: torch.Tensor | None = None, t: int = 0) -> torch.Tensor:
        """h of all steps, or with a cache of step t alone; a cache is (2, n, heads, length, features of a head)."""
        n, num, features = h.shape
        qkv = self.qkv(self.attention_norm(h)).view(n, num, 3, self._heads, features // self._heads).permute(2, 0, 3, 1, 4)
        if cache is None:
            attended = functional.scaled_dot_product_attention(*qkv, is_causal=True)
        else:
            cache[:, :, :, t] = qkv[1:, :, :, 0]
            attended = functional.scaled_dot_product_attention(qkv[0], *cache[:, :, :, : t + 1])
        h = h + self.out(attended.transpose(1, 2).reshape(n, num, features))
        return h + self.down(functional.gelu(self.up(self.mlp_norm(h)), approximate="tanh"))


class Network(torch.nn.Module):
    """From tokens to logits, with the shared weights."""

    def __init__(self, cell: Cell, arrays: Arrays) -> None:
        super().__init__()
        self._cell, self._shared = cell, {name: torch.from_numpy(a) for name, a in weights(cell, arrays).items()}
        features = cell.num_features
        self.embedding = torch.nn.Embedding(cell.vocabulary + 1, features)
        self.input = torch.nn.Linear(features, features)
        self.positions = torch.nn.Parameter(torch.empty(cell.length, features))
        self.blocks = torch.nn.ModuleList(Block(cell) for _ in range(cell.num_layers))
        self.norm, self.logits = torch.nn.LayerNorm(features, EPSILON), torch.nn.Linear(features, cell.vocabulary)
        self.load("initial")

    def load(self, which: str) -> None:
        with torch.no_grad():
            self.embedding.weight.copy_(self._shared["embedding"])
            self.positions.copy_(self._shared["positions"])
            for name in ("input", "logits", "norm"):
                self._copy(name, getattr(self, name))
            for i, block in enumerate(self.blocks):
                for name, layer in block.named_children():
                    self._copy(name, layer, i)

    def _copy(self, name: str, layer: Any, *index: int) -> None:
        layer.weight.copy_(
            self._shared[f"{name}_w"][index].T if isinstance(layer, torch.nn.Linear) else self._shared[f"{name}_w"][index]
        )
        layer.bias.copy_(self._shared[f"{name}_b"][index])

    def forward(self, read: torch.Tensor) -> torch.Tensor:
        """Logits of every step, (n, T, V), from what stands before it, the start first."""
        h = self.input(self.embedding(read)) + self.positions[: read.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.logits(self.norm(h))

    def step(self, read: torch.Tensor, caches: torch.Tensor, t: int) -> torch.Tensor:
        """The logits of step t, (n, V), from the token before it, (n, 1), and the caches, which it writes."""
        h = self.input(self.embedding(read)) + self.positions[t]
        for block, cache in zip(self.blocks, caches, strict=True):
            h = block(h, cache, t)
        return self.logits(self.norm(h))[:, 0]

    def start(self, num: int) -> torch.Tensor:
        return torch.full((num, 1), self._cell.vocabulary)

    def cached(self) -> torch.Tensor:
        """Sequences, (batch_size, length)."""
        cell = self._cell
        size = cell.num_features // cell.num_heads
        caches = torch.empty(cell.num_layers, 2, cell.batch_size, cell.num_heads, cell.length, size)
        read = [self.start(cell.batch_size)]
        for t in range(cell.length):
            read.append(draw(self.step(read[-1], caches, t)))
        return torch.cat(read[1:], 1)

    def uncached(self) -> torch.Tensor:
        """The same by a pass over all that is there for every new token."""
        read = self.start(self._cell.batch_size)
        for _ in range(self._cell.length):
            read = torch.cat([read, draw(self(read)[:, -1])], 1)
        return read[:, 1:]


def draw(logits: torch.Tensor) -> torch.Tensor:
    """One token of each row, (n, 1)."""
    return torch.multinomial(torch.softmax(logits, -1), 1)


def build(cell: Cell, arrays: Arrays) -> TorchPeer:
    """The network and its loss, nats per token."""
    network = Network(cell, arrays)

    def loss(x: torch.Tensor) -> torch.Tensor:
        x = x.long()
        logits = network(torch.cat([network.start(len(x)), x[:, :-1]], 1))
        return functional.cross_entropy(logits.flatten(0, 1), x.flatten())

    functions = {"nll": loss, "cached": network.cached, "uncached": network.uncached}
    batches, adam = arrays["batches"].astype("int64"), functools.partial(torch.optim.Adam, fused=True)
    return TorchPeer(network, batches, {"train": loss}, functions, network.load, optimizer=adam)

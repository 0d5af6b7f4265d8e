"""A frozen language model that reads an episodic memory at one of its layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._checks import check_int
from . import _layers
from ._alignment import aligned
from ._arguments import as_rows, named
from ._attached import Attached
from ._augmented_files import load_augmented, save_augmented
from ._episode import Episode
from ._reads import EpisodicRead
from .memory import EpisodicMemory

__all__ = ["MemoryAugmented", "Retrieved"]


class Retrieved(NamedTuple):
    """What `MemoryAugmented.retrieved` says of each position of the last call.

    Attributes:
        ids: lists in the shape of the positions, (B, T) say: of each the k facts that have most in
            what was read, the largest first. In an `episode`, their numbers.
        shares: (B, T, k), what these facts have in it: the read-out is the sum over all facts of
            share times value, exactly.
        score: (B, T), nats that the memory knows of each element of the value.
        is_known: (B, T) bool, whether that passes the memory's threshold.
        read_var: (B, T), predictive variance of each element of the value.
        weight: (B, T), by what the read-out was multiplied before it was added; 0: the hidden state
            is as it was.
    """

    ids: list
    shares: Tensor
    score: Tensor
    is_known: Tensor
    read_var: Tensor
    weight: Tensor


class MemoryAugmented(Attached):
    """A frozen model with an `EpisodicMemory` at one of its layers.

    At every position the layer's hidden state, normed and projected, is a key; what the memory
    holds there is projected back and added to the hidden state, as strongly as the memory is sure
    of it. Where it knows nothing (``is_known``) the hidden state stays as it is, to the bit. Its
    own parameters are the projections ``key`` (of what is written), ``query`` and ``output``, and
    ``sureness``, which says from what score on it adds. ``output`` starts at 0, where all answers
    are those of the model alone. Train them on facts that come and go (`align`, then `episode`):
    they learn to read, and facts are then written without training. Then `calibrate`: the memory's
    own threshold is that of its facts' keys alone, which questions in other words may never pass.

    ``parameters()`` and ``state_dict()`` are of these alone; ``to`` moves the model as well. It
    starts in evaluation, where ``is_known`` decides; in training (``train()``) it does not, so that
    there is a gradient at what is not known yet. The model stays in evaluation.

    Args:
        model: any module. It is frozen: its parameters need no gradients until `remove`.
        layer: name of the submodule, as `torch.nn.Module.named_modules` gives it. It returns the
            hidden states (..., hidden_size), or a tuple that begins with them.
        memory: the facts, with keys of its ``key_size`` and values of its ``value_size``. It is
            changed by `write` and by its own methods alone (``edit``, ``forget``, ...).
        hidden_size: width of the hidden states; None: ``model.config.hidden_size``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or size, or no such layer: the names
            closest to it are shown.

    >>> import torch
    >>> from torch import nn
    >>> from kanerva_ext.episodic import EpisodicMemory, MemoryAugmented
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50))
    >>> memory = EpisodicMemory(key_size=32, value_size=32, slots=256)
    >>> augmented = MemoryAugmented(model, "1", memory, hidden_size=32).train()
    >>> words = torch.arange(50)[:, None]
    >>> _ = augmented.align(words, words)  # pairs of texts that mean the same: here, the same
    >>> optimizer = torch.optim.Adam(augmented.parameters(), lr=1e-2)
    >>> for _ in range(150):  # other facts in every step
    ...     texts, answers = torch.randperm(50)[:20, None], torch.randint(50, (20,))
    ...     with augmented.episode(texts, model[0](answers)):
    ...         loss = nn.functional.cross_entropy(augmented(texts)[:, -1], answers)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     _ = optimizer.step()
    >>> (texts, others), answers = torch.randperm(50)[:, None].split([20, 30]), answers.flip(0)
    >>> ids = augmented.eval().write(texts, model[0](answers))  # no training
    >>> _ = augmented.calibrate(others)  # what it cannot answer
    >>> said, found = augmented(texts)[:, -1].argmax(-1), augmented.retrieved()
    >>> bool((said == answers).float().mean() > 0.9), [[id] for id in ids] == sum(found.ids, [])
    (True, True)
    >>> augmented.remove()  # the model is as it was before
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        memory: EpisodicMemory,
        *,
        hidden_size: int | None = None,
    ) -> None:
        if not isinstance(memory, EpisodicMemory):
            raise TypeError(f"memory must be an EpisodicMemory, got {type(memory).__name__}")
        super().__init__(model, layer, hidden_size)
        self.memory = memory
        self.key = nn.Linear(self.hidden_size, memory.key_size)
        self.query = nn.Linear(self.hidden_size, memory.key_size)
        self.query.load_state_dict(self.key.state_dict())  # to begin with
        self.output = nn.Linear(memory.value_size, self.hidden_size, bias=False)
        nn.init.zeros_(self.output.weight)
        self.sureness = nn.Parameter(torch.tensor([4.0, 0.5]))
        self._which: int | list[int] | None = None
        self._episode: Episode | None = None
        self._last: tuple | None = None
        self.eval()
        self.attach()

    # Reading

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, whose layer reads the memory.

        Args:
            *args, **kwargs: the model's.

        Returns:
            What the model returns.

        Raises:
            RuntimeError: after `remove`; in training, where a parameter of the model needs a
                gradient, or there are no facts to learn to read.
            ValueError: the layer's hidden states have another width than ``hidden_size``.
            TypeError: the layer returns none.
        """
        if self._hook is None:
            raise RuntimeError("the memory has been removed from the model: attach() puts it back")
        return self.model(*args, **kwargs)

    def _at_layer(self, output: Any, hidden: Tensor) -> Any:
        if self._episode is None and self._last is not None and self._last[3] is not None:
            _layers.check_not_again(self.layer)
        if self.training and torch.is_grad_enabled():
            self._check_training()
        if self._episode is None and not len(self.memory):
            self._last = None
            return None
        added, use = self._added(hidden)
        new = torch.where(use[..., None], hidden + added.to(hidden), hidden)
        return _layers.with_hidden(output, new)

    def _check_training(self) -> None:
        trained = [name for name, p in self.model.named_parameters() if p.requires_grad]
        if trained:
            raise RuntimeError(
                f"the model is frozen, but its parameter(s) {named(trained)} need gradients: "
                "train the parameters() of the MemoryAugmented, or remove() it first"
            )
        if self._episode is None and not len(self.memory):
            raise RuntimeError(
                "the memory has no facts to learn to read: give them by episode(inputs, values) "
                "or write them; for answers alone call eval()"
            )

    def _added(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to hidden states, and where."""
        finite = torch.isfinite(hidden.detach()).all(-1)  # what padding may not be
        queries = self._project(self.query, torch.where(finite[..., None], hidden, 0))
        read = self._read(queries)
        slope, offset = self.sureness
        weight = torch.sigmoid(slope * (read.score - offset))
        use = finite if self.training else finite & read.is_known
        weight = torch.where(use, weight, 0)
        seen = EpisodicRead(*(x.detach() for x in read))
        self._last = queries.detach(), seen, weight.detach(), self._episode, self._which
        return weight[..., None] * self.output(read.values), use

    def _project(self, projection: nn.Linear, hidden: Tensor) -> Tensor:
        """Keys of hidden states, which are normed: layers of a model differ in scale."""
        return projection(self._normed(hidden))

    def _normed(self, hidden: Tensor) -> Tensor:
        hidden = hidden.to(self.key.weight)
        return functional.layer_norm(hidden, hidden.shape[-1:])

    def _read(self, queries: Tensor) -> EpisodicRead:
        flat = queries.reshape(-1, queries.shape[-1])
        if self._episode is not None:
            read = self._episode.read(flat)
        else:
            read = self.memory.read(flat, memory=self._memory_of(queries))
        shape = queries.shape[:-1]
        parts = (x.to(queries.device).reshape(*shape, *x.shape[1:]) for x in read)
        values, score, known, var = parts
        return EpisodicRead(values.to(queries), score.to(queries), known, var.to(queries))

    # Facts

    def select(self, memory: int | Sequence[int] | None) -> None:
        """Choose among ``num_memories`` memories, for all that follows.

        Args:
            memory: of all, an int, or of each row of the batch; None: of a single memory.

        Raises:
            TypeError, ValueError: there is none of this number.
        """
        many = self.memory.num_memories
        which = memory if isinstance(memory, (list, tuple)) else [memory]
        for m in which:
            if m is None and many is None:
                continue
            if many is None:
                raise ValueError("memory must be None without num_memories")
            if isinstance(m, bool) or not isinstance(m, int):
                raise TypeError(f"memory must be an int or ints, got {type(m).__name__}")
            if not 0 <= m < many:
                raise ValueError(f"memory must be in 0 .. {many - 1}, got {m}")
        self._which = list(memory) if isinstance(memory, (list, tuple)) else memory

    def _memory_of(self, queries: Tensor) -> Any:
        if self.memory.num_memories is not None and self._which is None:
            raise ValueError("select(memory) must say which of the num_memories memories is meant")
        if not isinstance(self._which, list):
            return self._which
        if queries.dim() < 2 or len(queries) != len(self._which):
            raise ValueError(
                f"the batch must have a row for each memory selected, {len(self._which)}, got "
                f"hidden states of shape {(*queries.shape[:-1], self.hidden_size)}; for beams, "
                "select each memory as many times as there are beams"
            )
        each = queries[0, ..., 0].numel()
        return [m for m in self._which for _ in range(each)]

    def keys(self, inputs: Any, positions: Any = None) -> Tensor:
        """Keys of facts (N, key_size), from the hidden states of the model without the memory.

        Args:
            inputs: N texts as the model takes them: a tensor (N, T), a tuple of arguments, or a
                mapping of named ones. Each ends where its answer would begin.
            positions: (N,) ints, where each one ends; None: at its last position, which is the last
                1 of an ``attention_mask`` in the inputs.

        Raises:
            TypeError, ValueError: positions or hidden states of another kind or shape.
        """
        return self._project(self.key, self._ends(inputs, positions))

    def _ends(self, inputs: Any, positions: Any) -> Tensor:
        """Hidden states (N, hidden_size) where each text ends."""
        hidden = self.hidden(inputs)
        if hidden.dim() != 3:
            raise ValueError(
                "inputs must be N texts, hidden states of shape (N, T, hidden_size), got "
                f"{tuple(hidden.shape)}"
            )
        rows, steps = hidden.shape[:2]
        if positions is None:
            positions = _layers.last_positions(inputs, hidden)
        positions = torch.as_tensor(positions)
        if positions.is_floating_point() or positions.dtype == torch.bool:
            raise TypeError(f"positions must be integers, got {positions.dtype}")
        if positions.shape != (rows,):
            raise ValueError(
                f"positions must be one for each of {rows} texts, got {tuple(positions.shape)}"
            )
        if rows and not (-steps <= int(positions.min()) and int(positions.max()) < steps):
            raise ValueError(f"positions must be in {-steps} .. {steps - 1}, got {positions}")
        return hidden[torch.arange(rows), positions.to(hidden.device)]

    @torch.no_grad()
    def align(
        self, told: Any, asked: Any, *, told_positions: Any = None, asked_positions: Any = None
    ) -> Tensor:
        """Set ``key`` and ``query`` by pairs of texts that mean the same: no gradients.

        By canonical correlation analysis of the hidden states where they end. It gives training
        its start, for which gradients alone take long, or takes its place. Facts that are in the
        memory have to be written anew.

        Args:
            told, asked: N texts each, the n-th of which state a fact and ask for it; several times
                as many as ``hidden_size``.
            told_positions, asked_positions: where each ends, see `keys`.

        Returns:
            The correlations, largest first, (hidden_size,): near 1 of what both say alike.

        Raises:
            TypeError, ValueError: as `keys`, or not as many, or fewer than two.
        """
        both = self._ends(told, told_positions), self._ends(asked, asked_positions)
        if len(both[0]) != len(both[1]) or len(both[0]) < 2:
            raise ValueError(
                "told and asked must be as many texts, at least two, got "
                f"{len(both[0])} and {len(both[1])}"
            )
        found, correlations = aligned(*(self._normed(x) for x in both), self.memory.key_size)
        for linear, (weight, bias) in zip((self.key, self.query), found, strict=True):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
        return correlations

    @torch.no_grad()
    def write(
        self,
        inputs: Any,
        values: Tensor,
        ids: Any = None,
        *,
        positions: Any = None,
        memory: Any = None,
        replace: bool = False,
    ) -> list:
        """Write facts into the memory: no training.

        After more training of ``key`` the keys of old facts are no longer those that it would give:
        write them anew (``replace=True``).

        Args:
            inputs, positions: N texts and where each ends, see `keys`.
            values: (N, value_size), such as the model's embeddings of the answers.
            ids, memory, replace: see `EpisodicMemory.write`.

        Returns:
            The N ids, to edit and forget the facts by.

        Raises:
            TypeError, ValueError, OSError: as `EpisodicMemory.write` and `keys`.
        """
        values = self._values(values)
        keys = self.keys(inputs, positions)
        memory = self._which if memory is None else memory
        return self.memory.write(keys, values, ids, memory=memory, replace=replace)

    def _values(self, values: Tensor) -> Tensor:
        return as_rows("values", values, self.memory.value_size, "value_size")

    @contextmanager
    def episode(self, inputs: Any, values: Tensor, positions: Any = None) -> Iterator[None]:
        """Within it the model reads these facts alone, and the memory stays as it is.

        The reads are those of a memory that has just these facts, with gradients for what was
        written as well as for what is asked: to train on facts that come and go.

        Args:
            inputs, positions: N texts and where each ends, see `keys`.
            values: (N, value_size).

        Raises:
            TypeError, ValueError: arguments of the wrong kind or shape, or no facts.
        """
        values = self._values(values)
        keys = self.keys(inputs, positions)
        if values.shape != (len(keys), self.memory.value_size) or not len(keys):
            raise ValueError(
                f"values must be one for each fact, and at least one, for {len(keys)} texts, got "
                f"{tuple(values.shape)}"
            )
        before, self._episode = self._episode, Episode(self.memory, keys, values)
        try:
            yield
        finally:
            self._episode = before

    @torch.no_grad()
    def calibrate(self, inputs: Any, mask: Tensor | None = None) -> float:
        """Set the memory's threshold by texts that it has nothing to say to, at every position.

        Without it the threshold is the memory's own guess, from its facts alone: where ``query``
        has learnt to ask in other words than ``key`` writes, it may call nothing known.

        Args:
            inputs: N texts as the model takes them, see `keys`.
            mask: (N, T) bool, positions that count; None: all.

        Returns:
            The threshold, see `EpisodicMemory.calibrate`.

        Raises:
            ValueError: too few positions, a mask of another shape, or no facts.
        """
        which = None if self.memory.num_memories is None else self._which
        if isinstance(which, list):
            raise ValueError("calibrate needs one memory: select it by an int")
        if not self.memory.count(memory=which):
            raise ValueError("the memory has no facts: write them first, then calibrate")
        queries = self._project(self.query, self.hidden(inputs))
        if mask is not None:
            if mask.shape != queries.shape[:-1]:
                raise ValueError(
                    f"mask must have the shape of the positions, {tuple(queries.shape[:-1])}, got "
                    f"{tuple(mask.shape)}"
                )
            queries = queries[mask.to(queries.device, torch.bool)]
        queries = queries.reshape(-1, queries.shape[-1])
        return self.memory.calibrate(queries, memory=which)

    # What was read

    @torch.no_grad()
    def retrieved(self, k: int = 1) -> Retrieved:
        """What the last call read at each position, and how sure the memory was.

        It is computed when it is asked for, through all facts: ask before they change.

        Args:
            k: facts for each position; fewer where there are fewer.

        Raises:
            RuntimeError: nothing has been read: no call yet, or no facts at the last one.
        """
        k = check_int("retrieved", "k", k)
        if self._last is None:
            raise RuntimeError("nothing has been read: call the model with facts in its memory")
        queries, read, weight, episode, which = self._last
        flat, shape = queries.reshape(-1, queries.shape[-1]), queries.shape[:-1]
        if episode is not None:
            shares = episode.shares(flat)
            top = shares.abs().topk(min(k, len(episode)), dim=-1).indices
            ids, shares = top.tolist(), shares.gather(-1, top)
        else:
            before, self._which = self._which, which
            try:
                of = self._memory_of(queries)
            finally:
                self._which = before
            ids, shares = self.memory.sources(flat, k, memory=of)
        shares = shares.to(weight).reshape(*shape, shares.shape[-1])
        return Retrieved(
            _nested(ids, shape), shares, read.score, read.is_known, read.read_var, weight
        )

    # The whole

    def save(self, folder: str | os.PathLike) -> None:
        """Write the projections and the memory to a folder; the model is not in it.

        Its files are ``projections.safetensors`` and ``memory.db``, each replaced as a whole.

        Raises:
            ModuleNotFoundError: safetensors is not installed.
            OSError: a file cannot be written.
        """
        save_augmented(self, Path(folder))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        model: nn.Module,
        features: Callable[[Tensor], Tensor] | None = None,
        *,
        in_memory: bool = False,
    ) -> MemoryAugmented:
        """Put what `save` wrote at the same layer of a model.

        Args:
            folder: of `save`.
            model: as it was then.
            features, in_memory: see `EpisodicMemory.load`.

        Raises:
            ModuleNotFoundError: safetensors is not installed.
            OSError: a file is missing or cannot be read.
            ValueError: a file is damaged or none of `save`, or the model has no such layer.
        """
        return load_augmented(cls, Path(folder), model, features, in_memory)

    def extra_repr(self) -> str:
        where = "" if self._hook is not None else ", removed"
        return f"{type(self.model).__name__} at {self.layer!r}{where}, {self.memory!r}"


def _nested(items: list, shape: Sequence[int]) -> list:
    """A flat list in the shape of the positions."""
    for size in reversed(shape[1:]):
        items = [items[i : i + size] for i in range(0, len(items), size)] if size else []
    return items if len(shape) else items[0]

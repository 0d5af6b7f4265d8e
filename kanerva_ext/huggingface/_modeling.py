"""The models."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .._convolution import ShortConvolution
from .._layer_gates import Gate
from ..block import KanervaBlock
from ._cache import KanervaModelCache
from ._configuration import KanervaConfig
from ._packing import bounds_of


class KanervaPreTrainedModel(PreTrainedModel):
    """Starts, saves and loads the weights: see transformers' ``PreTrainedModel``."""

    config_class = KanervaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("KanervaBlock",)
    _is_stateful = True
    # What a layer keeps beside its parameters stands in the configuration.
    _keys_to_ignore_on_load_missing = (r"_extra_state$",)
    _keys_to_ignore_on_load_unexpected = (r"_extra_state$",)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Gate):
            start = torch.tensor(module.start, dtype=torch.float64, device=module.bias.device)
            init.copy_(module.bias, start.to(module.bias.dtype))
        elif isinstance(module, ShortConvolution):
            bound = module.size**-0.5
            init.uniform_(module.weight, -bound, bound)


class KanervaModel(KanervaPreTrainedModel):
    """Embeddings, `KanervaBlock`s and a norm.

    Args:
        config: `KanervaConfig`.
    """

    def __init__(self, config: KanervaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            KanervaBlock(**config.block_options()) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: KanervaModelCache | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others,
    ) -> tuple | BaseModelOutputWithPast:
        """See `KanervaForCausalLM.forward`; last_hidden_state is (B, T, hidden_size)."""
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise ValueError(f"KanervaModel: give either input_ids or inputs_embeds, got {got}")
        cache = _by_any_name(cache, others)
        cu_seqlens = bounds_of(cu_seqlens, attention_mask, others)
        if cache is not None and not isinstance(cache, KanervaModelCache):
            raise TypeError(
                "KanervaModel: cache must be a KanervaModelCache or None, got "
                f"{type(cache).__name__}"
            )
        if cache is not None and len(cache) not in (0, len(self.layers)):
            raise ValueError(
                f"KanervaModel: cache must hold one KanervaCache for each of {len(self.layers)} "
                f"layers, or none yet, got {len(cache)}"
            )
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if cache is None and use_cache:
            cache = KanervaModelCache()
        states, caches = [], []
        for i, block in enumerate(self.layers):
            states.append(x)
            if cache is None and self.gradient_checkpointing and self.training:
                call = partial(
                    block.__call__, cu_seqlens=cu_seqlens
                )  # reentrant ones take no names
                x = self._gradient_checkpointing_func(call, x, attention_mask)
                continue
            before = cache.layers[i] if cache is not None and cache.layers else None
            out = block(
                x,
                attention_mask,
                cache=before,
                use_cache=cache is not None,
                cu_seqlens=cu_seqlens,
                inplace=before is not None and _can_overwrite(before, x),
            )
            if cache is None:
                x = out
            else:
                x = out.hidden_states
                caches.append(out.cache)
        if cache is not None:
            cache.layers = caches
            cache.seen_tokens += x.shape[1]
        x = self.norm(x)
        states.append(x)
        result = BaseModelOutputWithPast(
            last_hidden_state=x,
            cache=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
        )
        return result if _as_output(return_dict, self.config) else result.to_tuple()


class KanervaForCausalLM(KanervaPreTrainedModel, GenerationMixin):
    """`KanervaModel` that predicts the next token; ``generate`` samples or searches with beams.

    Args:
        config: `KanervaConfig`.

    For example::

        config = KanervaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2)
        model = KanervaForCausalLM(config)
        loss = model(tokens, labels=tokens).loss
        text = model.generate(tokens[:, :8], max_new_tokens=20, num_beams=3)
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: KanervaConfig) -> None:
        super().__init__(config)
        self.model = KanervaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model makes its own

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: KanervaModelCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> tuple | CausalLMOutputWithPast:
        """Predict the token after each.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 0 at padding, at any place (left of the text for ``generate``);
                with a cache also (B, S) with S > T, for all tokens so far.
            inputs_embeds: (B, T, hidden_size), in place of input_ids.
            cache: from the call with the tokens before these; past_key_values, as other models call
                it, is the same. It is changed.
            labels: (B, T), tokens to predict, usually input_ids: the one at t from those before
                it. -100 leaves a token out.
            use_cache: return a cache; None: as configured, and not in training.
            cu_seqlens: (N + 1,), bounds of texts packed in one row, see `KanervaLayer.forward`;
                cu_seq_lens_q, or position_ids that start again, say the same. A label that begins
                a text is left out.
            output_hidden_states: also return those between the blocks.
            return_dict: False: a tuple.
            logits_to_keep: logits of so many tokens at the end alone, or of those at an index;
                0: all.

        Returns:
            loss (nats, the mean over labels), logits (B, T, vocab_size), cache, hidden_states.

        Raises:
            TypeError, ValueError: naming the argument, what was expected and what came.
        """
        cache = _by_any_name(cache, kwargs)
        cu_seqlens = bounds_of(cu_seqlens, attention_mask, kwargs)
        out = self.model(
            input_ids,
            attention_mask,
            inputs_embeds,
            cache,
            use_cache,
            cu_seqlens,
            output_hidden_states,
            return_dict=True,
        )
        x = out.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            x = x[:, logits_to_keep]
        elif logits_to_keep:
            x = x[:, -logits_to_keep:]
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels, cu_seqlens, kwargs.get("num_items_in_batch"))
        result = CausalLMOutputWithPast(
            loss=loss, logits=logits, cache=out.cache, hidden_states=out.hidden_states
        )
        return result if _as_output(return_dict, self.config) else result.to_tuple()

    def _loss(self, logits, labels, cu_seqlens, count) -> Tensor:
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                "KanervaForCausalLM: labels must have the shape (B, T) of the logits, "
                f"{tuple(logits.shape[:2])}, got {tuple(labels.shape)}"
            )
        if cu_seqlens is not None:
            first = torch.zeros_like(labels, dtype=torch.bool)
            starts = cu_seqlens[:-1].long().to(labels.device)
            first[:, starts[starts < labels.shape[1]]] = True
            labels = labels.masked_fill(first, -100)
        scores = logits[:, :-1].flatten(0, 1).float()
        labels = labels[:, 1:].flatten().to(scores.device)
        if count is None:
            return functional.cross_entropy(scores, labels)
        return functional.cross_entropy(scores, labels, reduction="sum") / count


def _by_any_name(cache, others: dict):
    """The cache, which other models' callers give by other names."""
    for name in ("past_key_values", "cache_params"):
        given = others.get(name)
        if given is None or given is cache:
            continue
        if cache is not None:
            raise ValueError(f"KanervaModel: {name} must be None beside another cache")
        cache = given
    return cache


def _can_overwrite(cache, x: Tensor) -> bool:
    """Whether one more token may change the cache in place, without an allocation of it."""
    if x.shape[1] != 1 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    fields = [each for each in (*cache.state, cache.history, cache.forgotten) if each is not None]
    inside = torch.is_inference_mode_enabled()
    return all(
        each.is_contiguous() and not each.requires_grad and (inside or not each.is_inference())
        for each in fields
    )


def _as_output(return_dict: bool | None, config: KanervaConfig) -> bool:
    return config.return_dict if return_dict is None else return_dict

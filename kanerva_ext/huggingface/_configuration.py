"""What a model of `KanervaBlock`s is made of."""

from transformers import PreTrainedConfig


class KanervaConfig(PreTrainedConfig):
    """The sizes and options of `KanervaModel` and `KanervaForCausalLM`.

    Names are those of transformers' other models where they mean the same.

    Args:
        vocab_size: tokens.
        hidden_size: width of the residual stream.
        num_hidden_layers: blocks.
        num_attention_heads: heads of a layer, each with a memory.
        num_key_value_heads: heads of queries and keys; None: num_attention_heads.
        head_dim: slots of a memory; None: hidden_size / num_attention_heads.
        value_dim: size of a head's values; None: head_dim.
        intermediate_size: inside the MLP; None: see `KanervaBlock`; 0: no MLP.
        conv_kernel: taps of the short convolution; 0: none.
        use_decay: let the memory forget.
        dynamics: how, "stationary" or "decay", see `KanervaLayer`.
        use_gate: gate the output of each head.
        noise_var: observation noise variance at the start of training.
        noise_floor: the smallest it can become.
        rms_norm_eps: of every norm.
        hidden_dropout: of what is added to the residual stream.
        initializer_range: standard deviation of matrices and embeddings at the start.
        chunk_size: see `ops.causal_scan`.
        use_cache: return a cache unless told otherwise, out of training.
        tie_word_embeddings: the output matrix is the table of embeddings.
        pad_token_id, bos_token_id, eos_token_id: tokens with a meaning of their own.

    Wrong sizes are named by the layer when a model is made.
    """

    model_type = "kanerva"
    attribute_map = {"num_heads": "num_attention_heads"}  # noqa: RUF012

    vocab_size: int = 32000
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    value_dim: int | None = None
    intermediate_size: int | None = None
    conv_kernel: int = 4
    use_decay: bool = True
    dynamics: str = "stationary"
    use_gate: bool = True
    noise_var: float = 0.25
    noise_floor: float = 1e-3
    rms_norm_eps: float = 1e-5
    hidden_dropout: float = 0.0
    initializer_range: float = 0.02
    chunk_size: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def block_options(self) -> dict:
        """Arguments of `KanervaBlock`."""
        return {
            "d_model": self.hidden_size,
            "num_heads": self.num_attention_heads,
            "mlp_dim": self.intermediate_size,
            "dropout": self.hidden_dropout,
            "norm_eps": self.rms_norm_eps,
            "num_kv_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "value_dim": self.value_dim,
            "conv_size": self.conv_kernel,
            "use_decay": self.use_decay,
            "dynamics": self.dynamics,
            "use_gate": self.use_gate,
            "noise_var": self.noise_var,
            "noise_floor": self.noise_floor,
            "chunk_size": self.chunk_size,
        }

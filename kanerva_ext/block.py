"""A residual block around `KanervaLayer`: norm, layer, norm, MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._checks import check_int
from .cache import KanervaCache
from .layer import KanervaLayer, KanervaOutput

__all__ = ["KanervaBlock"]


class KanervaBlock(nn.Module):
    """What a transformer's block is, with `KanervaLayer` in place of attention.

    ``x = x + layer(norm(x))``, then ``x = x + mlp(norm(x))``, with RMS norms and the gated MLP
    ``down(silu(gate(x)) * up(x))`` (Shazeer, GLU Variants Improve Transformer, 2020). It takes and
    returns a tensor, so that blocks chain in ``nn.Sequential``.

    Args:
        d_model: width of the tokens.
        num_heads: of the layer.
        mlp_dim: width inside the MLP; None: the multiple of 16 above 8/3 d_model, so that the MLP
            has about 8 d_model² parameters; 0: no MLP.
        dropout: of what is added to the residual stream, in training, in [0, 1).
        norm_eps: of the block's two norms, and of the layer's own.
        **layer_options: of `KanervaLayer`, keyword-only there.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> import torch, kanerva_ext
    >>> blocks = [kanerva_ext.KanervaBlock(64, num_heads=2) for _ in range(2)]
    >>> torch.nn.Sequential(*blocks)(torch.randn(3, 10, 64)).shape
    torch.Size([3, 10, 64])
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        mlp_dim: int | None = None,
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        **layer_options,
    ) -> None:
        super().__init__()
        d_model = check_int("KanervaBlock", "d_model", d_model)
        mlp_dim = check_int("KanervaBlock", "mlp_dim", mlp_dim, least=0, optional=True)
        if mlp_dim is None:
            mlp_dim = -(-8 * d_model // 48) * 16
        if isinstance(dropout, bool) or not isinstance(dropout, int | float):
            raise TypeError(f"KanervaBlock: dropout must be a number, got {type(dropout).__name__}")
        if not 0 <= dropout < 1:
            raise ValueError(f"KanervaBlock: dropout must be in [0, 1), got {dropout}")
        self.norm = nn.RMSNorm(d_model, eps=norm_eps)
        self.layer = KanervaLayer(d_model, num_heads, norm_eps=norm_eps, **layer_options)
        self.mlp_norm = nn.RMSNorm(d_model, eps=norm_eps) if mlp_dim else None
        self.mlp = GatedMLP(d_model, mlp_dim) if mlp_dim else None
        self.dropout = dropout

    def reset_parameters(self) -> None:
        """Draw every parameter anew, as the constructor does; also after ``to_empty``."""
        for module in self.children():
            module.reset_parameters()

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: KanervaCache | None = None,
        use_cache: bool = False,
        cu_seqlens: Tensor | None = None,
        inplace: bool = False,
    ) -> Tensor | KanervaOutput:
        """Mix the tokens of each sequence, and transform each.

        Args:
            hidden_states: (B, T, d_model).
            attention_mask, cache, use_cache, cu_seqlens, inplace: see `KanervaLayer.forward`.

        Returns:
            (B, T, d_model). With ``cache`` or ``use_cache`` the `KanervaOutput` of the layer, with
            the block's hidden states in it. At padding they are of no use, and finite if the
            tokens there are.

        Raises:
            TypeError, ValueError, RuntimeError: see `KanervaLayer.forward`.
        """
        if not isinstance(hidden_states, Tensor):
            raise TypeError(
                "KanervaBlock: hidden_states must be a torch.Tensor, got "
                f"{type(hidden_states).__name__}"
            )
        width = self.layer.d_model
        if hidden_states.dim() != 3 or hidden_states.shape[-1] != width:
            raise ValueError(
                f"KanervaBlock: hidden_states must have shape (B, T, d_model = {width}), got "
                f"{tuple(hidden_states.shape)}"
            )
        out = self.layer(
            self.norm(hidden_states),
            attention_mask,
            cache=cache,
            use_cache=use_cache,
            cu_seqlens=cu_seqlens,
            inplace=inplace,
        )
        x = hidden_states + self._drop(out.hidden_states)
        if self.mlp is not None:
            x = x + self._drop(self.mlp(self.mlp_norm(x)))
        if cache is None and not use_cache:
            return x
        return out._replace(hidden_states=x)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training) if self.dropout else x

    def extra_repr(self) -> str:
        return f"dropout={self.dropout}" if self.dropout else ""


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``, without biases; gate and up are one matrix."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def reset_parameters(self) -> None:
        self.up_proj.reset_parameters()
        self.down_proj.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up_proj(x).chunk(2, -1)
        return self.down_proj(torch.mul(functional.silu(gate), up))

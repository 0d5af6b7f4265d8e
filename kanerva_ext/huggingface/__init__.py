"""A language model of `KanervaBlock`s with the interface of Hugging Face's transformers.

Needs transformers (``pip install 'kanerva_ext[transformers]'``). Importing it also lets
``AutoConfig``, ``AutoModel`` and ``AutoModelForCausalLM`` find the classes by ``"kanerva"``.
"""

try:
    import transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "kanerva_ext.huggingface needs transformers, which is not installed: "
        "pip install 'kanerva_ext[transformers]'",
        name=error.name,
    ) from error

from ._cache import KanervaModelCache
from ._configuration import KanervaConfig
from ._modeling import KanervaForCausalLM, KanervaModel, KanervaPreTrainedModel

transformers.AutoConfig.register("kanerva", KanervaConfig, exist_ok=True)
transformers.AutoModel.register(KanervaConfig, KanervaModel, exist_ok=True)
transformers.AutoModelForCausalLM.register(KanervaConfig, KanervaForCausalLM, exist_ok=True)

__all__ = [
    "KanervaConfig",
    "KanervaForCausalLM",
    "KanervaModel",
    "KanervaModelCache",
    "KanervaPreTrainedModel",
]

"""How kanerva_ext is built: what to build (plan), how (ninja), and the PEP 517 hooks.

Nothing here imports torch: only its headers are needed, and they are found by path.
"""

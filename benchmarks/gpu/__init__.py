"""What a machine with a GPU is asked, by ``benchmarks/gpu_check.py``, and how no answer is lost.

Processes: `rows` (JSON lines that survive a full disk), `processes` (one child with its limits),
`schedule` (many of them, resumed), `visit` (the machine, the build), `phases` (what is asked when).
None of these imports torch, so that the parent never holds a CUDA context. In the children:
`child` (the entry), `checks` (right results), `timing` (times), `suite` (the tests), `counters`
(Nsight Compute). From rows to pages: `results`, `status_page`.
"""

// The clocks that a warp's instruction takes on Hopper: the one table of the estimates, which
// scripts/kernel_times.py reads too (a line for each, the text is where the numbers are from).
//
// issue: clocks of its scheduler, of which a multiprocessor has four: 32 lanes through the units
// that one scheduler has. latency: clocks from its issue until its result can be used. "Guide" is
// the table of throughputs in NVIDIA's CUDA C++ Programming Guide, compute capability 9.0; "H100"
// are measurements of an H100 SXM5 published as "CUDA Performance Study - NVIDIA H100 SXM5";
// "Ampere" is Abdelkhalik et al. 2022 (arXiv:2208.11174), of an A100. What has no source is
// assumed.
//
// Whoever includes this defines KANERVA_COST(kind, issue, latency, source), of the kinds of
// program.h, and KANERVA_CLOCKS(name, clocks, source).
// clang-format off
KANERVA_COST(integer32, 2, 4, "Guide: 64 lanes a clock; Ampere: 4")
KANERVA_COST(integer64, 4, 8, "two of 32 bits")
KANERVA_COST(float32, 1, 4, "Guide: 128 lanes a clock; Ampere: 4")
KANERVA_COST(float64, 2, 8, "Guide: 64 lanes a clock; latency assumed")
KANERVA_COST(special, 8, 20, "Guide: 16 lanes a clock, H100: 9 clocks; latency assumed")
KANERVA_COST(division, 16, 80, "H100: 87 for a reciprocal, 66 for a root, rounded; issue assumed")
KANERVA_COST(compare, 2, 4, "as integer32")
KANERVA_COST(logic, 2, 4, "as integer32")
KANERVA_COST(convert, 2, 4, "Guide: 64 lanes a clock; latency assumed")
KANERVA_COST(move, 0, 0, "ptxas drops it")
KANERVA_COST(branch, 1, 5, "H100: 13 clocks for a loop's add, compare and branch; one not taken: 1")
KANERVA_COST(call, 1, 5, "as branch")
KANERVA_COST(load_global, 1, 570, "H100: device memory; issue for each 128 bytes")
KANERVA_COST(store_global, 1, 0, "issue for each 128 bytes; nothing waits for it")
KANERVA_COST(load_shared, 1, 29, "H100: 28.6; issue for each wavefront")
KANERVA_COST(store_shared, 1, 0, "issue for each wavefront; only barriers wait for it")
KANERVA_COST(load_local, 1, 40, "H100: first-level cache; issue assumed")
KANERVA_COST(store_local, 1, 0, "assumed")
KANERVA_COST(parameter, 0, 0, "an operand from the constant bank")
KANERVA_COST(generic_load, 1, 570, "counted by the space that it reaches")
KANERVA_COST(generic_store, 1, 0, "counted by the space that it reaches")
KANERVA_COST(atomic, 1, 260, "H100: second-level cache")
KANERVA_COST(fence, 1, 260, "assumed: a round trip to the second-level cache")
KANERVA_COST(barrier, 1, 24, "assumed: from the last warp's arrival until all go on")
KANERVA_COST(cluster_barrier, 1, 440, "assumed: a quarter of a microsecond, from the last arrival")
KANERVA_COST(shuffle, 2, 24, "assumed; and a clock of the path to shared memory (Guide)")
KANERVA_COST(matrix, 4, 33, "m16n8k8 tf32 at the dense peak of the data sheet; latency assumed")
KANERVA_COST(asynchronous, 1, 570, "cp.async: as load_global; commits and waits: issue alone")
KANERVA_COST(other, 1, 4, "assumed")
KANERVA_CLOCKS(second_level, 260, "H100: a load of what this launch touched before")
// clang-format on

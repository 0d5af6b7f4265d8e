// Parts of a write that the library itself calls, for the sums of several processes. They are of
// the CPU alone and no operators: no backend has them in its table.
#pragma once

#include "arguments.h"

namespace kanerva {

// G = sum s w w', H = sum s w z', energy = sum s |z|^2, with weights s of the steps (float64).
// The arithmetic is that of h. g may be absent; values may be some columns of them.
struct EpisodeSumsArgs {
  Sizes n;
  View weights, values, scale;
  View g, h, energy;
};

// The posterior of such sums: G's rows from the diagonal on, one after another, and H. `terms` are
// ln det N, see posterior_of_sums.h, and square less what the memory explains of it; NaN where
// that is too hard, for float32 arithmetic or, unless `always`, for sums at all.
struct PosteriorOfSumsArgs {
  Sizes n;  // of no steps
  bool in_float32 = false, always = false;
  View mean, cov, triangle, h, square;
  View mean_out, cov_out, terms;
};

#define KANERVA_PARTS(X)           \
  X(episode_sums, EpisodeSumsArgs) \
  X(posterior_of_sums, PosteriorOfSumsArgs)

struct Parts {
#define KANERVA_MEMBER(part, Args) void (*part)(const Args&, const Executor&);
  KANERVA_PARTS(KANERVA_MEMBER)
#undef KANERVA_MEMBER
};

// Of the instruction set that the kernels are of.
const Parts& parts();

}  // namespace kanerva

// The sums over steps that a posterior is made of, for whoever adds up those of several processes.
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

void episode_sums(const EpisodeSumsArgs& args, const Executor& executor);

}  // namespace kanerva

#include "episode_sums.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_episode_sums(const EpisodeSumsArgs& args, const Executor& executor) {
  episode_sums_here(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva

// Picks the sums of the instruction set that dispatch.cpp chose. They are no operator of a
// backend, so that they stand in no table of them.
#include "../common/episode_sums.h"

#include <cstring>

namespace kanerva {

#define KANERVA_DECLARE(isa)                                      \
  namespace isa {                                                 \
  void run_episode_sums(const EpisodeSumsArgs&, const Executor&); \
  }
KANERVA_DECLARE(baseline)
#ifdef KANERVA_HAVE_AVX2
KANERVA_DECLARE(avx2)
#endif
#ifdef KANERVA_HAVE_AVX512
KANERVA_DECLARE(avx512)
#endif
#undef KANERVA_DECLARE

void episode_sums(const EpisodeSumsArgs& args, const Executor& executor) {
  const char* level = simd_level();
#ifdef KANERVA_HAVE_AVX512
  if (std::strcmp(level, "avx512") == 0) return avx512::run_episode_sums(args, executor);
#endif
#ifdef KANERVA_HAVE_AVX2
  if (std::strcmp(level, "avx2") == 0) return avx2::run_episode_sums(args, executor);
#endif
  (void)level;
  baseline::run_episode_sums(args, executor);
}

}  // namespace kanerva

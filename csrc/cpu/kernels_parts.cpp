#include "episode_sums.h"

namespace kanerva {
namespace KANERVA_ISA {

const Parts& parts() {
  static const Parts p = {
#define KANERVA_ENTRY(part, Args) part,
      KANERVA_PARTS(KANERVA_ENTRY)
#undef KANERVA_ENTRY
  };
  return p;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva

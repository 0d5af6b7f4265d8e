// The table of this instruction set.
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

const Kernels& table() {
  static const Kernels t = {
#define KANERVA_ENTRY(op, Args) run_##op,
      KANERVA_OPERATORS(KANERVA_ENTRY)
#undef KANERVA_ENTRY
  };
  return t;
}

}  // namespace KANERVA_ISA
}  // namespace kanerva

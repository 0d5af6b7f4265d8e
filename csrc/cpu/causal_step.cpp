#include "../torch/causal_step.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("causal_step", TORCH_BOX(&ops::causal_step<Backend>));
}

}  // namespace kanerva::cpu

#include "../torch/statistics.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("statistics", TORCH_BOX(&ops::statistics<Backend>));
  m.impl("statistics_backward", TORCH_BOX(&ops::statistics_backward<Backend>));
}

}  // namespace kanerva::cpu

#include "../torch/solve_addresses.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("solve_addresses", TORCH_BOX(&ops::solve_addresses<Backend>));
  m.impl("solve_addresses_backward", TORCH_BOX(&ops::solve_addresses_backward<Backend>));
}

}  // namespace kanerva::cpu

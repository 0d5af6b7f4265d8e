#include "../torch/causal_scan.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("causal_scan", TORCH_BOX(&ops::causal_scan<Backend>));
  m.impl("causal_scan_backward", TORCH_BOX(&ops::causal_scan_backward<Backend>));
}

}  // namespace kanerva::cpu

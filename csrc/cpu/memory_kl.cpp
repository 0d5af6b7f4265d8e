#include "../torch/memory_kl.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("memory_kl", TORCH_BOX(&ops::memory_kl<Backend>));
  m.impl("memory_kl_backward", TORCH_BOX(&ops::memory_kl_backward<Backend>));
}

}  // namespace kanerva::cpu

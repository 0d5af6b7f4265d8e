#include "../torch/adaptive_write.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("adaptive_write", TORCH_BOX(&ops::adaptive_write<Backend>));
  m.impl("adaptive_write_backward", TORCH_BOX(&ops::adaptive_write_backward<Backend>));
}

}  // namespace kanerva::cpu

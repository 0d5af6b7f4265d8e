#include "../torch/forget.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("forget", TORCH_BOX(&ops::forget<Backend>));
  m.impl("forget_backward", TORCH_BOX(&ops::forget_backward<Backend>));
}

}  // namespace kanerva::cpu

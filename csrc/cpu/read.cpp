#include "../torch/read.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("read", TORCH_BOX(&ops::read<Backend>));
  m.impl("read_backward", TORCH_BOX(&ops::read_backward<Backend>));
}

}  // namespace kanerva::cpu

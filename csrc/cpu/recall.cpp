#include "../torch/recall.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("recall", TORCH_BOX(&ops::recall<Backend>));
  m.impl("recall_backward", TORCH_BOX(&ops::recall_backward<Backend>));
}

}  // namespace kanerva::cpu

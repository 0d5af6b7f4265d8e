#include "../torch/bayes_write.h"

#include "backend.h"

namespace kanerva::cpu {

STABLE_TORCH_LIBRARY_IMPL(kanerva, CPU, m) {
  m.impl("bayes_write", TORCH_BOX(&ops::bayes_write<Backend>));
  m.impl("bayes_write_backward", TORCH_BOX(&ops::bayes_write_backward<Backend>));
}

}  // namespace kanerva::cpu

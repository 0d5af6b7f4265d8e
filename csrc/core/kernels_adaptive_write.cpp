#include "adaptive_write.h"
#include "adaptive_write_backward.h"
#include "kernels.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_adaptive_write(const AdaptiveWriteArgs& args, const Executor& executor) {
  adaptive_write(args, executor);
}

void run_adaptive_write_backward(const AdaptiveWriteBackwardArgs& args, const Executor& executor) {
  adaptive_write_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva

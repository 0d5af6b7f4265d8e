#include "kernels.h"
#include "memory_kl.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_memory_kl(const MemoryKlArgs& args, const Executor& executor) {
  memory_kl(args, executor);
}

void run_memory_kl_backward(const MemoryKlBackwardArgs& args, const Executor& executor) {
  memory_kl_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva

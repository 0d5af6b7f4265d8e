#include "kernels.h"
#include "read.h"

namespace kanerva {
namespace KANERVA_ISA {

void run_read(const ReadArgs& args, const Executor& executor) { read(args, executor); }

void run_read_backward(const ReadBackwardArgs& args, const Executor& executor) {
  read_backward(args, executor);
}

}  // namespace KANERVA_ISA
}  // namespace kanerva
